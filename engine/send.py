"""The nouns every stage shares: tiers, sends, origins, outcomes, and the fixed list of reasons.

Nothing here acts. The wire format these mirror is documented in docs/wire-format.md.
"""

from __future__ import annotations

from enum import IntEnum, StrEnum
from typing import Annotated, NamedTuple

import msgspec
from msgspec import Meta

WIRE_VERSION = 1
MAX_RECIPIENTS = 10_000
MAX_ID_BYTES = 128
MAX_CAMPAIGN_BYTES = 128
MAX_CONTENT_BYTES = 64 * 1024
MAX_META_BYTES = 4 * 1024
MAX_DATA_BYTES = 4 * 1024
MAX_RECORD_BYTES = 2 * 1024 * 1024
MAX_DEPTH = 64
MAX_TIME_MS = 2**53  # what every language's JSON holds exactly

# The typed decoder holds these; lengths count characters there, so ``engine.decode`` checks bytes besides.
Id = Annotated[str, Meta(min_length=1, max_length=MAX_ID_BYTES)]
CampaignId = Annotated[str, Meta(max_length=MAX_CAMPAIGN_BYTES)]
Ms = Annotated[int, Meta(ge=0, lt=MAX_TIME_MS)]
NIL = b"\xc0"  # msgpack's nil


class Tier(IntEnum):
    """Scheduling class of a send; the topic it was read from decides it. The value is the core's column value."""

    SYSTEM = 0
    TEMPLATE = 1
    BASIC = 2

    __hash__ = int.__hash__  # in C: Enum's own costs ten times as much

    @property
    def label(self) -> str:
        """The name on topics, metrics and receipts: system, template, basic."""
        return LABELS[self]


TIERS = tuple(Tier)  # for what is done often: a class makes its list anew each time
LABELS = tuple(tier.name.lower() for tier in TIERS)


class Outcome(StrEnum):
    """Where each recipient of a send ends: in exactly one of these."""

    ACCEPTED = "accepted"
    FAILED = "failed"
    DEAD = "dead"
    EXPIRED = "expired"
    CANCELLED = "cancelled"
    DUPLICATE = "duplicate"
    SUPPRESSED = "suppressed"
    REJECTED = "rejected"
    UNKNOWN = "unknown"

    __hash__ = str.__hash__


class Recipient(msgspec.Struct, frozen=True, gc=False):
    """A recipient with template values of its own (``data``: a map, kept as its raw encoding; empty: none)."""

    id: Id
    data: msgspec.Raw = msgspec.Raw(b"")


class Send(msgspec.Struct, frozen=True, gc=False):
    """One decoded record (wire format version 1). Times are ms since the epoch, below 2**53.

    ``to`` is a list (JSON) or reads them one by one from the record (msgpack).
    Raw fields keep their encoding and point into the record: whoever outlives it copies them. ``content`` is a map
    in the record's encoding, ``meta`` always msgpack.
    """

    id: Id
    channel: Id
    to: Annotated[list[Id | Recipient], Meta(min_length=1, max_length=MAX_RECIPIENTS)]
    content: msgspec.Raw
    v: Annotated[int, Meta(ge=WIRE_VERSION, le=WIRE_VERSION)] = WIRE_VERSION
    account: Id | None = None
    tenant: Id | None = None
    campaign: CampaignId | None = None
    not_before: Ms | None = None
    due: Ms | None = None
    deadline: Ms | None = None
    meta: msgspec.Raw = msgspec.Raw(NIL)


class Origin(NamedTuple):
    """Where a send first stood in the log."""

    topic: str
    partition: int
    offset: int


# Why a record or a send was refused before any call. Public: they stand in receipts, headers and metrics.
REASONS: dict[str, str] = {
    "empty": "the record has no value",
    "too_large": "the record is larger than 2 MiB",
    "not_a_map": "the value is neither a msgpack map nor a JSON object",
    "malformed": "cut off, trailing bytes, text that is not UTF-8, or against msgpack's or JSON's grammar",
    "too_deep": "nested deeper than 64 levels",
    "key_invalid": "a map, at any level, has a key that is not a string",
    "extension": "a msgpack extension type (timestamps are one), which not every reader of receipts knows",
    "header_invalid": "a `surgetank-` header does not say what it should",
    "version_unknown": "`v` is not a version this engine reads (1)",
    "id_missing": "`id` is missing",
    "id_invalid": "`id` is not a string of 1..128 bytes",
    "channel_missing": "`channel` is missing",
    "channel_invalid": "`channel` is not a string of 1..128 bytes",
    "channel_unknown": "the config has no channel of that name",
    "account_invalid": "`account` is not a string of 1..128 bytes",
    "account_unknown": "the channel has no account of that name",
    "account_missing": "the channel has several accounts and `account` is not given",
    "tenant_invalid": "`tenant` is not a string of 1..128 bytes",
    "campaign_invalid": "`campaign` is not a string of 0..128 bytes",
    "to_missing": "`to` is missing",
    "to_invalid": "`to` is not a list of recipients (a string id, or a map with `id` and `data`)",
    "to_empty": "`to` names nobody",
    "to_too_many": "`to` has more than 10,000 recipients",
    "recipient_invalid": "a recipient's id is not a string of 1..128 bytes",
    "recipient_forbidden": "a recipient's id would be read by the platform as more, or other, than one recipient",
    "data_invalid": "a recipient's `data` is not a map of <= 4 KiB, or the channel cannot carry values of its own",
    "content_missing": "`content` is missing",
    "content_invalid": "`content` is not a map the channel's driver understands",
    "content_too_large": "`content` is larger than 64 KiB, or than the platform takes",
    "content_unknown": "the registered content or template was not there within 30 s",
    "content_other_channel": "the registered content belongs to another channel",
    "field_missing": "a required field of the registered template has no value",
    "field_too_long": "a field's value is longer than the registered template allows",
    "field_invalid": "a field's value is not a string or number",
    "not_before_invalid": "`not_before` is not a time in ms since the epoch",
    "due_invalid": "`due` is not a time in ms since the epoch",
    "deadline_invalid": "`deadline` is not a time in ms since the epoch",
    "times_contradict": "`deadline` or `due` lies before `not_before`, or `due` after `deadline`",
    "meta_invalid": "`meta`, given as JSON, has a number that msgpack cannot carry",
    "overloaded": "the channel cannot keep up, and its `overload` policy refuses sends like this one",
    "meta_too_large": "`meta` is larger than 4 KiB",
    "crashed_worker": "worker processes died while they took the record in, three times, the last time it alone",
    "registered_invalid": "a registered content is not `channel`, `content` and `fields` as documented",
    "command_invalid": "a control record is not a command this engine knows",
}
