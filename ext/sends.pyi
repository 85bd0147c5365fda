"""The sends a process has taken in and not finished, and what they share.

``OpenSend`` is one record, ``Flow`` what all sends of one (tier, channel, account, tenant, campaign) share, ``Content``
what all sends of one content do. Their attributes are C fields: Python reads them one by one, the compiled stages
(ext.intake, ext.batches) without asking.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from engine.commit import Ledger
from engine.drivers import Prepared
from engine.logs import Headers
from engine.send import Origin, Tier

def dedupe_scope(tenant: str, channel: str) -> bytes:
    """What tells ids of one tenant on one channel from all others: their lengths (a byte each), then both."""

class Flow:
    """What sends that share tier, channel, account, tenant and campaign have in common. ``open``: sends;
    ``names``: the keys under which SendTable.by_names has it."""

    tier: Tier
    channel: str
    account: str
    tenant: str
    campaign: str | None
    account_handle: int
    tenant_handle: int
    campaign_handle: int
    open: int
    names: list[bytes]
    level: int  # engine.overload's; of template and basic
    def __init__(self, tier: Tier, channel: str, account: str, tenant: str, campaign: str | None) -> None: ...

class Content:
    """A content checked once by its driver. ``raws``: the keys under which SendTable.by_raw has it, ``open``: sends
    that use it, ``complete``: it needs no values of the recipients' own."""

    handle: int
    key: tuple[str, bytes]
    prepared: Prepared
    complete: bool
    raws: list[bytes]
    open: int
    def __init__(self, handle: int, key: tuple[str, bytes], prepared: Prepared) -> None: ...

class OpenSend:
    """One record from intake to completion. ``left``: recipients not ended; ``data``: values of recipients' own, by
    position; ``taken``: somebody was accepted (or may have been), so the id stays claimed; ``given_back``: some of its
    recipients were, so its record is not completed here; ``total``: the recipients it
    came for; ``partial``: its record names more, whose ends were told before it was moved."""

    id: str
    origin: Origin
    flow: Flow
    content: Content
    ledger: Ledger
    offset: int
    key: bytes  # dedupe
    total: int
    left: int
    first_seen_ms: int
    pushed_ns: int  # these four in the core's time
    due_ns: int
    deadline_ns: int
    linger_ns: int
    meta: bytes  # msgpack
    record_key: bytes | None  # this and the next two as they came, for the dead-letter topic
    value: bytes
    headers: Headers
    data: Mapping[int, Mapping[str, Any]]
    taken: bool
    given_back: bool
    partial: bool
    move_key: bytes | None  # dedupe of moved records
    def __init__(
        self,
        id: str,
        origin: Origin,
        flow: Flow,
        content: Content,
        ledger: Ledger,
        offset: int,
        key: bytes,
        total: int,
        left: int,
        first_seen_ms: int,
        pushed_ns: int,
        due_ns: int,
        deadline_ns: int,
        linger_ns: int,
        meta: bytes,
        record_key: bytes | None,
        value: bytes,
        headers: Headers,
        data: Mapping[int, Mapping[str, Any]],
        partial: bool = False,
        move_key: bytes | None = None,
        declined: int = 0,
    ) -> None: ...
    def decline(self, positions: Sequence[int]) -> None:
        """The platform has answered that these were not reached and may come again: a call with them needs another
        name, since a platform that knows names repeats its answer."""

    def most_declined(self, positions: Sequence[int]) -> int:
        """The most often that one of these was, ``declined`` times before it was taken in included; modulo 256."""

    def whole(self, count: int) -> bool:
        """Whether so many of its recipients are all that its record names."""

class SendTable:
    """OpenSends by handle, a u32 that is given again once its send is removed. ``by_names`` and ``by_raw`` are where
    ext.intake looks for flows and contents it has met before; who fills them empties them."""

    by_names: tuple[dict[bytes, Flow], ...]  # by tier
    by_raw: dict[bytes, Content]
    count: list[int]  # sends, per tier
    sizes: list[int]  # bytes of their records, per tier
    size: int
    def __len__(self) -> int: ...
    def __getitem__(self, handle: int) -> OpenSend: ...
    def __iter__(self) -> Iterator[int]: ...
    def add(self, send: OpenSend) -> int:
        """Keep it; returns its handle. Every ``add`` is followed by exactly one ``remove``."""

    def remove(self, handle: int) -> None:
        """It has ended: forget it, and what only it used. Raises KeyError."""

    def forget_flow(self, flow: Flow) -> None:
        """Called with a flow that has no open send left."""

    def forget_content(self, content: Content) -> None:
        """Called with a content that has no open send left."""
