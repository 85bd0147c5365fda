"""The recipients of a msgpack send, read where they stand: 4 bytes of memory each, however short their ids."""

from collections.abc import Iterator

from typing_extensions import Buffer

from engine.send import Recipient

class RecipientsError(ValueError):
    """``reason``: to_invalid, to_empty, to_too_many, recipient_invalid or data_invalid."""

    reason: str
    def __init__(self, reason: str, detail: str) -> None: ...

class Recipients:
    """A sequence. ``to``: a buffer over the record's msgpack list; the record must have passed ext.scan.

    Raises RecipientsError in this order: what is no list of strings and maps, none, too many, an id that is no string
    of 1..128 characters, then of each in turn: more than 128 bytes, data that is not a map of at most 4 KiB.
    """

    def __init__(self, record: bytes, to: Buffer) -> None: ...
    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> str | Recipient: ...
    def __iter__(self) -> Iterator[str | Recipient]: ...
