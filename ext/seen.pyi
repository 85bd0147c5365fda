"""The table of ids seen: a 128-bit key -> where its send first stood (place, hop, offset).

Claims and frees are noted as *entries* (32 bytes: key, place u32, hop u32, offset i64, native order) until they are
taken as one *segment*; a table is built again by replaying its segments in order, and shrinks by forgetting one.

Cost: a claim about 0.1 us; 54..107 bytes an id, in steps of a 1,024th of the table.
"""

FREED: int  # the offset of an entry that gives its key back

def siphash(secret: bytes, data: bytes) -> bytes:
    """SipHash-2-4 with 128 bits of output; the secret has 16 bytes. What ``key_of`` takes of scope and id."""

class SeenTable:
    """``secret``: 16 bytes nobody outside knows, so that nobody can make two ids collide."""

    def __init__(self, secret: bytes) -> None: ...
    def __len__(self) -> int: ...
    def key_of(self, scope: bytes, id: bytes) -> bytes:
        """The key of an id in its scope (ext.sends.dedupe_scope): 16 bytes."""

    def claim(self, key: bytes, place: int, hop: int, offset: int) -> tuple[int, int, int] | None:
        """None: the key is this record's now (or was: a redelivery); else (place, hop, offset) of who has it: another
        record, or the same one after more moves."""

    def free(self, key: bytes, place: int, offset: int) -> bool:
        """Give the key back; False (and nothing) when another record has it, or nobody."""

    def take(self) -> bytes:
        """The entries since the last ``take``; later claims belong to the next segment, unless there were none."""

    def replay(self, segment: int, entries: bytes) -> None:
        """Do again what a segment's entries say; the next claims belong to the segment after it."""

    def forget(self, segment: int, entries: bytes) -> int:
        """Drop the keys of a segment that were not claimed anew since; how many."""
