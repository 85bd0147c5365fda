"""The nouns every stage shares: tiers, sends, origins, outcomes, and the fixed list of reasons.

Nothing here acts. The wire format these mirror is documented in docs/wire-format.md.
"""

from __future__ import annotations

from enum import IntEnum, StrEnum
from typing import NamedTuple

import msgspec

WIRE_VERSION = 1
MAX_RECIPIENTS = 10_000
MAX_ID_BYTES = 128
MAX_CAMPAIGN_BYTES = 128
MAX_CONTENT_BYTES = 64 * 1024
MAX_META_BYTES = 4 * 1024


class Tier(IntEnum):
    """Scheduling class of a send; the topic it was read from decides it. The value is the core's column value."""

    SYSTEM = 0
    TEMPLATE = 1
    BASIC = 2

    @property
    def label(self) -> str:
        """The name on topics, metrics and receipts: system, template, basic."""
        return self.name.lower()


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


class Recipient(msgspec.Struct, frozen=True, gc=False):
    """A recipient with template values of its own (``data``: a map, kept as its raw encoding)."""

    id: str
    data: msgspec.Raw = msgspec.Raw(b"")


class Send(msgspec.Struct, frozen=True, gc=False):
    """One decoded record (wire format version 1). Times are ms since the epoch; raw fields keep their encoding."""

    id: str
    channel: str
    to: list[str | Recipient]
    content: msgspec.Raw
    v: int = WIRE_VERSION
    account: str | None = None
    tenant: str | None = None
    campaign: str | None = None
    not_before: int | None = None
    due: int | None = None
    deadline: int | None = None
    meta: msgspec.Raw = msgspec.Raw(b"")


class Origin(NamedTuple):
    """Where a send first stood in the log."""

    topic: str
    partition: int
    offset: int


# Why a record or a send was refused before any call. Public: they stand in receipts, headers and metrics.
REASONS: dict[str, str] = {
    "empty": "the record has no value",
    "malformed": "neither a msgpack map nor a JSON object, or cut off, or trailing bytes",
    "too_deep": "nested deeper than 64 levels",
    "too_large": "the record is larger than 2 MiB",
    "not_a_map": "the value is not a map with string keys",
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
    "data_invalid": "a recipient's `data` is not a map, or the channel cannot carry values of a recipient's own",
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
    "meta_too_large": "`meta` is larger than 4 KiB",
}
