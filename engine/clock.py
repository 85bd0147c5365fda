"""The two clocks, read by shells only and handed to the pure stages as plain integers.

Wall time (``ms`` since the epoch) stands on the wire and in receipts; the core works in monotonic nanoseconds.
Intake turns the one into the other once, with the offset read at that moment, so that a step of the wall clock
moves nothing that is already queued.
"""

from __future__ import annotations

from time import monotonic_ns, time_ns

NS_PER_MS = 1_000_000
NS_PER_S = 1_000_000_000


class Clock:
    """The machine's clocks; tests and simulations pass one of their own."""

    def now_ns(self) -> int:
        """Monotonic nanoseconds."""
        return monotonic_ns()

    def wall_ms(self) -> int:
        """Milliseconds since the epoch."""
        return time_ns() // NS_PER_MS

    def offset_ns(self) -> int:
        """Monotonic minus wall time, ns: add it to a wall time to get the core's time."""
        wall_ns = time_ns()  # first: should the process stand still here, times come out later, not sooner
        return self.now_ns() - wall_ns
