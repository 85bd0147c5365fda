"""Pacing on its own, as the core uses it inside (ext/pace.h): when the next call may leave.

Rates are integers in calls per 10**15 ns: CALL_A_SECOND is 1,000,000. Times are integer nanoseconds, 0..2**62, of one
clock; they must not go back.
"""

ASAP: int
EVEN: int
PACED: int
BELOW: int
FULL: int
OVER: int
CALL_A_SECOND: int
FASTEST: int

class Waiter:
    """Something whose next call waits for its turn."""

class Pacer:
    """``mode``: PACED (the lowest rate that meets every due time) or EVEN (each call's share from its arrival to its
    due time). ``tau_ns``: how slowly a past peak is forgotten; 0 = at once. ``floor``: never slower than this rate."""

    def __init__(self, mode: int = ..., tau_ns: int = 0, floor: int = ...) -> None: ...
    def add(self, now_ns: int, due_ns: int, calls: int = 1) -> int:
        """Calls (1..2**31 - 1, fewer than 2**32 in all) to leave by a due time. Returns the slot they are counted in.
        O(1)."""

    def remove(self, slot: int, calls: int = 1) -> None:
        """Calls counted in a slot, with ``add``, have left or never will. O(1)."""

    def wait(self, now_ns: int, waiter: Waiter, slot: int) -> None:
        """It waits; its next call is counted in this slot until it waits no more. ValueError: it waits already."""

    def wait_no_more(self, waiter: Waiter) -> None:
        """ValueError: it does not wait here."""

    def first(self) -> Waiter | None:
        """Who is due first, by slot, and inside a slot has waited longest. O(1)."""

    def when(self, now_ns: int) -> int:
        """When the next call may leave, or this must be asked again; 0 = now. Reads the slots in use, but not more than
        once in 2**26 ns."""

    def expects(self, slot: int) -> int:
        """About when the first call of a slot leaves: when those due before it have, at the rate of the last reading,
        but by the slot's own time; not before the next call. Changes nothing. Steps: the slots in use before it."""

    def leave(self, now_ns: int) -> None:
        """A call leaves: the next one waits for its turn. O(1)."""

    ceiling: int  # what can leave at most, a rate
    @property
    def work(self) -> int:
        """Calls counted."""
    @property
    def state(self) -> int:
        """BELOW (calls are held back), FULL or OVER (they are not), as of the last reading, like need and rate."""
    @property
    def need(self) -> int:
        """The rate that meets every due time."""
    @property
    def rate(self) -> int:
        """The rate at which calls leave."""

class Learner:
    """What a channel of so many slots (1..2**20) can deliver, learned from its calls. Every operation is O(1)."""

    def __init__(self, slots: int) -> None: ...
    def start(self, now_ns: int) -> None:
        """A call takes a slot. ValueError: all are in use."""

    def end(self, now_ns: int) -> None:
        """A call has ended. ValueError: none is in flight."""

    @property
    def rate(self) -> int:
        """Calls that could end; CALL_A_SECOND at least, FASTEST while too little is known."""
