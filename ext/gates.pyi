"""What intake asks before it takes a send in: a tenant's allowance, a channel's levels."""

class Meter:
    """A bucket of ``most`` (1..10**9) that fills up evenly in ``per_ns`` (a second..a day): at most ``most`` at once,
    ``most`` every ``per_ns`` in the long run. One integer of state, as GCRA has it (ITU-T I.371)."""

    most: int
    per_ns: int
    whole_ns: int  # when nothing of it is used any more
    def __init__(self, most: int, per_ns: int) -> None: ...
    def take(self, n: int, now_ns: int) -> bool:
        """Take ``n`` (0..100,000) out of it, or nothing and False when it does not hold so many."""

class Levels:
    """How much arrived at each of 256 levels, and to which of them it is admitted; engine.overload.Gate moves that."""

    level: int  # the last one admitted
    sends: int  # of this window
    def admits(self, level: int, recipients: int, slack_ns: int) -> bool:
        """Count an arrival, and say whether it may come in."""

    def window(self) -> tuple[list[int], tuple[float, float]]:
        """Recipients that arrived by level, and their slack summed up by tier; both begin anew."""
