"""How often recipients got messages, in memory of a fixed size; errs only towards not sending (frequency.h: how far).

Times are wall ns, for they outlive the process. ``key`` is 16 bytes of the account's own, so that one recipient of two
accounts counts apart.
"""

from collections.abc import Sequence
from mmap import mmap

SET_BYTES: int  # memory is cut into sets of so many bytes, seven recipients each

class Frequency:
    """Up to eight rules; each has a table in memory of the caller's, zeroed at first."""

    def __init__(self, tables: Sequence[tuple[bytearray | mmap, int, int]], caseless: bool = False) -> None:
        """(memory, number, per_ns): at most ``number`` messages to one recipient in any window. ``caseless``: ids that
        differ in the case of ASCII letters alone are one recipient; they then have at most 128 bytes. Raises
        ValueError."""

    def take(
        self, key: bytes, ids: list[str], now_ns: int, at_ns: int, urgent: bool = True, anyway: bool = False
    ) -> dict[int, tuple[int, int]]:
        """Who may get no message now: index -> until when, ns, and by which rule. Everybody else is counted as at
        ``at_ns``, the latest the message can arrive; ``anyway``: everybody is. A tenth of every number, rounded down,
        is for urgent ones only. 50 to 350 ns a recipient and rule, as much of the memory as the caches hold."""

    def give_back(self, key: bytes, ids: list[str], now_ns: int, at_ns: int) -> None:
        """These, counted as at ``at_ns``, got none."""

    def move(self, key: bytes, ids: list[str], now_ns: int, from_ns: int, to_ns: int) -> None:
        """These got theirs by ``to_ns``."""

    def full_share(self, now_ns: int) -> float:
        """Of a thousand sets, those without room for another recipient, 0..1."""
