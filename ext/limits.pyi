"""The limits of the core by themselves. A scope is everything, a tier, a channel, ...; a call passes all of them."""

NEVER: int  # a time that is not known: an answer or a grant comes first
FREE: int
BLOCKED: int
FULL: int
GRANT: int

class Limits:
    """Six scopes, 0..5. ``unit`` 0: calls, 1: recipients; times are ns of a clock that never goes back."""

    def add_limit(
        self, scope: int, handle: int, unit: int, number: int, per_ns: int, reserved: int = 0, calendar: bool = False
    ) -> int:
        """A limit's handle; ``handle``, the scope's, means nothing here. ``reserved`` of ``number`` is kept for system.
        Its grant is endless until ``ration``."""

    def most(self, now_ns: int, n: int, system: bool = False) -> int:
        """What a call of up to n recipients may carry."""

    def refuse(self, now_ns: int, n: int, system: bool = False) -> tuple[int, int, int | None, int]:
        """(why, scope, limit, until) of the first that refuses a call with n <= ``most`` recipients; FREE: none."""

    def hold(self, n: int) -> None:
        """A call leaves; ``refuse`` said FREE."""

    def settle(self, now_ns: int, n: int, left: int) -> None:
        """It has been answered; ``left`` of its n recipients were on it, 0: it never left."""

    def block(self, scope: int, until_ns: int) -> None:
        """Nothing of the scope before."""

    def set_limit(
        self, scope: int, handle: int, unit: int, number: int, per_ns: int, reserved: int = 0, calendar: bool = False
    ) -> int:
        """Another number from now on for the scope's limit of this unit and window; what is counted stays."""

    def set_period(self, handle: int, now_ns: int, period: int, ends_ns: int, next_ns: int, guard_ns: int = 0) -> None:
        """A calendar limit's period, when it and the next one end (the guard included)."""

    def restore(self, handle: int, at_ns: int, n: int) -> None:
        """Uses of an earlier life, oldest first."""

    def ration(self, handle: int, portion: int) -> None:
        """Only what is granted may be used; it asks for a portion when half of one is left."""

    def asked(self) -> list[tuple[int, int]]:
        """(limit, amount) asked for since the last time."""

    def grant(self, handle: int, n: int) -> None:
        """So much more may be used."""

    def use(self, handle: int, now_ns: int) -> tuple[int, int, int, int]:
        """Counted ever; of it in the window or period that ends now; held; granted and not used."""

    def free_at(self, handle: int, now_ns: int) -> int:
        """When one more call or recipient of the other tiers than system fits; NEVER: that hangs on calls held."""
