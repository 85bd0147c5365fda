"""The sends this process has taken in and not finished: handles for the core, names for people, and what is shared.

Holds no recipient: their ids stand in the core's arena. One OpenSend per record, one Flow for all sends of the same
(tier, channel, account, tenant, campaign), one Content for all of the same content. Handles are u32s that are used
again once nobody needs them, so tables stay as large as what is open, not as what has passed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from engine.commit import Ledger
from engine.decode import decode
from engine.drivers import Prepared
from engine.logs import Headers
from engine.send import Origin, Tier


class Flow:
    """What sends that share tier, channel, account, tenant and campaign have in common."""

    __slots__ = (
        "account",
        "account_handle",
        "campaign",
        "campaign_handle",
        "channel",
        "open",
        "tenant",
        "tenant_handle",
        "tier",
    )

    def __init__(self, tier: Tier, channel: str, account: str, tenant: str, campaign: str | None) -> None:
        self.tier = tier
        self.channel = channel
        self.account = account
        self.tenant = tenant
        self.campaign = campaign
        self.account_handle = 0
        self.tenant_handle = 0
        self.campaign_handle = 0
        self.open = 0  # sends


class Content:
    """A content checked once by its driver. ``raws``: the encodings it was met in, ``open``: sends that use it."""

    __slots__ = ("handle", "key", "open", "prepared", "raws")

    def __init__(self, handle: int, key: tuple[str, bytes], prepared: Prepared) -> None:
        self.handle = handle
        self.key = key
        self.prepared = prepared
        self.raws: list[tuple[str, bytes]] = []
        self.open = 0


class OpenSend(msgspec.Struct, gc=False):
    """One record from intake to completion. ``left``: recipients not ended; ``data``: values of recipients' own."""

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
    meta: msgspec.Raw
    record_key: bytes | None  # this and the next two as they came, for the dead-letter topic
    value: bytes
    headers: Headers
    data: Mapping[int, Mapping[str, Any]]  # by position
    taken: bool = False  # somebody was accepted (or may have been): the id stays claimed

    def recipients(self, positions: Sequence[int]) -> list[str]:
        """Their ids, read from the record again: only the core keeps ids. Cost: a decode."""
        to = decode(self.value).to
        return [r if isinstance(r, str) else r.id for r in (to[position] for position in positions)]


class Handles:
    """Numbers 0.. given out, and given again once freed."""

    __slots__ = ("_free", "_next")

    def __init__(self) -> None:
        self._free: list[int] = []
        self._next = 0

    def new(self) -> int:
        """A number nobody holds."""
        if self._free:
            return self._free.pop()
        self._next += 1
        return self._next - 1

    def free(self, number: int) -> None:
        """Its holder is gone."""
        self._free.append(number)


class Names:
    """Strings as handles, counted."""

    __slots__ = ("_counts", "_handles", "_table")

    def __init__(self) -> None:
        self._table: dict[str, int] = {}
        self._counts: dict[str, int] = {}
        self._handles = Handles()

    def hold(self, name: str) -> int:
        """The name's handle, held once more."""
        handle = self._table.get(name)
        if handle is None:
            handle = self._table[name] = self._handles.new()
            self._counts[name] = 0
        self._counts[name] += 1
        return handle

    def drop(self, name: str) -> None:
        """Held once less."""
        self._counts[name] -= 1
        if not self._counts[name]:
            self._handles.free(self._table.pop(name))
            del self._counts[name]


class OpenSends:
    """All of them. Every ``add`` is followed by exactly one ``remove``."""

    def __init__(self) -> None:
        self.by_handle: dict[int, OpenSend] = {}
        self.count = [0, 0, 0]  # sends, per tier
        self.bytes = [0, 0, 0]  # of their records, per tier
        self._handles = Handles()
        self._flows: dict[tuple[int, str, str, str, str | None], Flow] = {}
        self._campaigns: dict[str, set[Flow]] = {}
        self._tenant_names = Names()
        self._campaign_names = Names()
        self._contents: dict[tuple[str, bytes], Content] = {}  # by (channel, prepared key)
        self._raw: dict[tuple[str, bytes], Content] = {}  # by (channel, encoding)
        self._content_handles = Handles()

    def add(self, send: OpenSend) -> int:
        """Keep it; returns its handle."""
        handle = self._handles.new()
        self.by_handle[handle] = send
        tier = send.flow.tier
        self.count[tier] += 1
        self.bytes[tier] += len(send.value)
        send.flow.open += 1
        send.content.open += 1
        return handle

    def remove(self, handle: int) -> None:
        """It has ended: forget it, and what only it used."""
        send = self.by_handle.pop(handle)
        self._handles.free(handle)
        flow, content = send.flow, send.content
        self.count[flow.tier] -= 1
        self.bytes[flow.tier] -= len(send.value)
        flow.open -= 1
        if not flow.open:
            self._forget_flow(flow)
        content.open -= 1
        if not content.open:
            del self._contents[content.key]
            for raw in content.raws:
                if self._raw.get(raw) is content:
                    del self._raw[raw]
            self._content_handles.free(content.handle)

    def flow(
        self, tier: Tier, channel: str, account: str, account_handle: int, tenant: str, campaign: str | None
    ) -> Flow:
        """The flow of that name; made when it is not there. It lives until its last open send is removed."""
        key = (tier, channel, account, tenant, campaign)
        flow = self._flows.get(key)
        if flow is None:
            flow = self._flows[key] = Flow(tier, channel, account, tenant, campaign)
            flow.account_handle = account_handle
            flow.tenant_handle = self._tenant_names.hold(tenant)
            flow.campaign_handle = self._campaign_names.hold(_campaign_name(campaign))
            if campaign is not None:
                self._campaigns.setdefault(campaign, set()).add(flow)
        return flow

    def content_by_raw(self, channel: str, raw: bytes) -> Content | None:
        """The content already checked in this encoding, if an open send uses it."""
        return self._raw.get((channel, raw))

    def content(self, channel: str, raw: bytes, prepared: Prepared) -> Content:
        """The one for ``prepared``, from now on found by ``raw`` too."""
        key = (channel, prepared.key)
        content = self._contents.get(key)
        if content is None:
            content = self._contents[key] = Content(self._content_handles.new(), key, prepared)
        self._raw[channel, raw] = content
        content.raws.append((channel, raw))
        return content

    def forget_encodings(self, channel: str) -> None:
        """What the channel's encodings stand for has changed (a template was registered anew): check them again."""
        for raw in [raw for raw in self._raw if raw[0] == channel]:
            del self._raw[raw]

    def of_campaign(self, campaign: str, tenant: str | None) -> list[Flow]:
        """The flows of a campaign (of one tenant, or of all)."""
        flows = self._campaigns.get(campaign, ())
        return [flow for flow in flows if tenant is None or flow.tenant == tenant]

    def _forget_flow(self, flow: Flow) -> None:
        del self._flows[flow.tier, flow.channel, flow.account, flow.tenant, flow.campaign]
        self._tenant_names.drop(flow.tenant)
        self._campaign_names.drop(_campaign_name(flow.campaign))
        if flow.campaign is not None:
            siblings = self._campaigns[flow.campaign]
            siblings.discard(flow)
            if not siblings:
                del self._campaigns[flow.campaign]


def _campaign_name(campaign: str | None) -> str:
    # None and "" are two merge units; no name on the wire is longer than 128 bytes.
    return "\0" * 129 if campaign is None else campaign
