"""One pass over a record before anything is built from it.

The typed decoder skips what it is not asked for without looking inside (text that is not UTF-8, keys that are not
strings), bounds depth only by the interpreter's stack and trusts declared lengths. Whatever passes here is a
complete map, at most 64 levels deep (the map itself is the first), with string keys throughout, valid UTF-8 throughout,
no msgpack extension types, and no length that its bytes do not hold. JSON (first byte ``{``) is checked for depth and
UTF-8 here, for its grammar by the decoder.
"""

from collections.abc import Sequence

from typing_extensions import Buffer

class ScanError(ValueError):
    """``what``: malformed, not_a_map, too_deep, key_invalid, extension or (plain only) not_plain. ``at``: the byte."""

    what: str
    at: int
    def __init__(self, what: str, text: str, at: int) -> None: ...

class Scanner:
    """``names``: the top-level keys that are known, at most 16. ``plain``: also refuse what JSON cannot say."""

    def __init__(self, names: Sequence[str], *, plain: bool = False) -> None: ...
    def scan(self, value: bytes) -> int:
        """How many top-level keys are not among the names (a JSON key written with escapes is not).

        Raises ScanError. Allocates nothing. Cost: 0.1 us and about 1 ns a byte.
        """

def first_byte(raw: Buffer) -> int:
    """The first byte of a buffer, -1 when it is empty; what ``memoryview(raw)[0]`` says, in a fifth of its time."""
