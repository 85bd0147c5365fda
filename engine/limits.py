"""The limits of the configuration (shell): puts them into the core, keeps what they used, moves their calendars on.

In: limits, and what the core asks to be granted. Out: grants, each on disk before the core has it.
Invariant: what the file says was used or is open is never less than what the core let leave. Never: lets the core wait
for the disk while a grant still lasts; half a portion is left when the next is asked for.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import msgspec
import structlog

from engine.clock import NS_PER_MS, Clock
from engine.config import MONTH, Limit
from engine.errors import LogUnusable
from engine.periods import GUARD_MS, period_at, portion
from engine.shares import key_of, number_of
from engine.state.uses import Row, Use, Uses
from engine.wire_control import LimitUse, Target, Window

logger = structlog.get_logger("surgetank.limits")
CALLS, RECIPIENTS = 0, 1
EACH_TENANT = 6  # the core's, and so are the next ones
NEVER = 2**63 - 1
NO_LIMIT = 2**60  # its largest number
PERIODS_S = 10.0  # how often calendars are looked at: a wall clock that was set is noticed by then
AGAIN_S = 1.0
LATE_NS = 1_000 * NS_PER_MS  # so long after a process has died what it had written arrives, at most
LONGEST_MS = {True: 32 * 86_400_000, False: 26 * 3_600_000}  # a month, a day


def keep_ms(rule: Limit) -> int:
    """How long a use matters."""
    return LONGEST_MS[rule.per == MONTH] if rule.zone else -(-rule.per // NS_PER_MS)


class Core(Protocol):
    """What is asked of the core."""

    def add_limit(
        self, scope: int, handle: int, unit: int, number: int, per_ns: int, reserved: int = 0, calendar: bool = False
    ) -> int:
        """The limit's handle."""

    def set_limit(
        self, scope: int, handle: int, unit: int, number: int, per_ns: int, reserved: int = 0, calendar: bool = False
    ) -> int:
        """Another number."""

    def set_period(self, limit: int, now_ns: int, period: int, ends_ns: int, next_ns: int, guard_ns: int = 0) -> None:
        """A calendar limit's period."""

    def restore(self, limit: int, at_ns: int, n: int) -> None:
        """Uses of an earlier life, oldest first."""

    def ration(self, limit: int, portion: int) -> None:
        """Only what is granted may be used from now on."""

    def asked(self) -> list[tuple[int, int]]:
        """(limit, amount) asked for since the last time."""

    def grant(self, limit: int, n: int) -> None:
        """So much more may be used."""

    def use(self, limit: int, now_ns: int) -> tuple[int, int, int, int]:
        """Counted ever, counted in the window, held, granted and not used."""

    def free_at(self, limit: int, now_ns: int) -> int:
        """When template and basic may use more of it; now: they may."""


def unit_of(rule: Limit) -> int:
    """The core's."""
    return CALLS if rule.calls is not None else RECIPIENTS


def with_number(rule: Limit, number: int) -> Limit:
    """The same limit with another number."""
    return msgspec.structs.replace(rule, **{"calls" if rule.calls is not None else "recipients": number})


def window_of(rule: Limit) -> Window:
    """Which limit of a scope it is."""
    return Window("calls" if rule.calls is not None else "recipients", str(rule.per), rule.zone)


def _target(name: Sequence[str]) -> Target:
    if name[0] == "account":
        return Target(channel=name[1], account=name[2])
    return Target() if name[0] == "everything" else Target(**{name[0]: name[1]})  # type: ignore[arg-type]


class Kept(msgspec.Struct):
    """One limit. ``most``: the number it has or, once the file says so, will have; ``rule`` with that number."""

    handle: int  # the core's
    scope: tuple[int, int]  # the core's
    number: int  # the file's
    keep_ms: int
    most: int
    portion: int | None  # None: everything is granted
    zone: str | None
    monthly: bool
    rule: Limit
    on: Target
    configured: int | None  # its number without commands; None: then there is no such limit
    written: int = 0  # of what was ever counted
    told: int = 0  # the number the core has
    until_ms: int | None = None  # of the command that changed it


class Limits:
    """One process's. ``add`` all, then ``start``."""

    def __init__(self, core: Core, uses: Uses, clock: Clock, *, keep_for_system: bool = True, cut_off: int = 0) -> None:
        """``cut_off``: recipients in calls when the life before this one ended."""
        self.granted: Callable[[], None] = lambda: None  # called when something may go again
        self.forfeited = 0  # uses that were open when the process before this one ended
        self._core = core
        self._uses = uses
        self._clock = clock
        self._reserves = keep_for_system
        self._cut_off = cut_off
        self._kept: dict[int, Kept] = {}
        self._for_each: dict[int, Limit] = {}
        self._asked: dict[int, int] = {}
        self._started = False
        self._wake = asyncio.Event()

    def add(self, scope: int, handle: int, name: Sequence[str], rule: Limit, *, configured: bool = True) -> Kept:
        """A limit of a scope, with what was used of it before. ``name`` tells the scope apart in the file."""
        number, unit = number_of(rule), unit_of(rule)
        limit = self._core.add_limit(
            scope, handle, unit, number, rule.per, self._reserved(number), rule.zone is not None
        )
        kept = Kept(
            limit,
            (scope, handle),
            self._uses.number(key_of(name, rule)),
            keep_ms(rule),
            number,
            portion(number, rule.per),
            rule.zone,
            rule.per == MONTH,
            rule,
            _target(name),
            number if configured else None,
            told=number,
        )
        self._kept[limit] = kept
        self._restore(kept)
        return kept

    def add_for_each(self, channel: int, rule: Limit) -> None:
        """A limit that every tenant has on a channel of the core, each for itself; nothing of it is kept."""
        number = number_of(rule)
        limit = self._core.add_limit(EACH_TENANT, channel, unit_of(rule), number, rule.per, self._reserved(number))
        self._for_each[limit] = rule

    def _reserved(self, number: int) -> int:
        return number // 10 if self._reserves and number < NO_LIMIT else 0

    def of(self, on: Target) -> list[Kept]:
        """The limits of a scope that are in force."""
        return [kept for kept in self._kept.values() if kept.on == on and kept.most < NO_LIMIT]

    def find(self, on: Target, rule: Limit) -> Kept | None:
        """The scope's limit of this unit and window, in force or not."""
        key = key_of((), rule)
        return next((kept for kept in self._kept.values() if kept.on == on and key_of((), kept.rule) == key), None)

    def renumber(self, kept: Kept, number: int) -> None:
        """Another number (NO_LIMIT: none); what was used stays. A smaller one holds at once, a larger one as soon as
        the file says that so much may be used."""
        kept.most = number
        kept.rule = with_number(kept.rule, number)
        if number < kept.told or number >= NO_LIMIT or not self._started:
            self._tell(kept)
        else:
            self._asked.setdefault(kept.handle, 0)
            self._wake.set()

    def _tell(self, kept: Kept) -> None:
        kept.told = kept.most
        self._core.set_limit(
            *kept.scope, unit_of(kept.rule), kept.most, kept.rule.per, self._reserved(kept.most), kept.zone is not None
        )
        if kept.portion is None:
            return
        if kept.most >= NO_LIMIT:
            self._core.grant(kept.handle, NO_LIMIT)  # it asks no more
        else:
            kept.portion = portion(kept.most, kept.rule.per) or 0
            self._core.ration(kept.handle, kept.portion)

    def _restore(self, kept: Kept) -> None:
        now_ms, offset_ns = self._clock.wall_ms(), self._clock.offset_ns()
        since_ms = self._set_period(kept, now_ms) if kept.zone else now_ms - kept.keep_ms
        used, open_ = self._uses.load(kept.number, since_ms)
        for use in used:
            self._core.restore(kept.handle, min(use.at_ms, now_ms) * NS_PER_MS + offset_ns, use.amount)
        if open_:
            self.forfeited += open_
            now_ns, late = now_ms * NS_PER_MS + offset_ns, min(open_, self._cut_off)
            if open_ > late:
                self._core.restore(kept.handle, now_ns, open_ - late)
            if late:
                self._core.restore(kept.handle, now_ns + LATE_NS, late)
        kept.written = self._core.use(kept.handle, self._clock.now_ns())[0] - open_
        if kept.portion is not None:
            self._core.ration(kept.handle, kept.portion)

    def _set_period(self, kept: Kept, now_ms: int) -> int:
        """Returns when what counts in the period begins, ms."""
        assert kept.zone is not None  # noqa: S101
        period, offset_ns = period_at(kept.zone, kept.monthly, now_ms - GUARD_MS), self._clock.offset_ns()
        ends_ns, next_ns = ((at + GUARD_MS) * NS_PER_MS + offset_ns for at in (period.ends_ms, period.next_ends_ms))
        self._core.set_period(kept.handle, self._clock.now_ns(), period.number, ends_ns, next_ns, GUARD_MS * NS_PER_MS)
        return period.starts_ms - GUARD_MS

    def uses(self) -> list[LimitUse]:
        """Every limit, with what is used of it now, in the order they were added."""
        found, now_ns = [], self._clock.now_ns()
        for limit, kept in self._kept.items():
            if kept.most >= NO_LIMIT:
                continue
            _, counted, held, _ = self._core.use(limit, now_ns)
            free_ns = self._core.free_at(limit, now_ns)
            found.append(
                LimitUse(
                    on=kept.on,
                    limit=self.told(limit),
                    number=kept.most,
                    used=counted,
                    in_flight=held,
                    full=free_ns > now_ns,
                    until=(free_ns - self._clock.offset_ns()) // NS_PER_MS if now_ns < free_ns < NEVER else None,
                    changed_until=kept.until_ms,
                    configured=kept.configured if kept.until_ms is not None else None,
                )
            )
        return found

    def told(self, limit: int) -> str:
        """The core's limit as people say it: "100 calls per 1s"."""
        rule = self._for_each[limit] if limit in self._for_each else self._kept[limit].rule
        return f"{number_of(rule)} {window_of(rule)}"

    def start(self) -> None:
        """Write what a restart must know before anything leaves, and grant the first portions. Blocks on the disk.
        Raises LogUnusable."""
        first = {limit: kept.portion or 0 for limit, kept in self._kept.items()}
        rows = self._rows(first)
        try:
            self._uses.write(rows)
        except sqlite3.Error as error:
            raise LogUnusable(f"limits cannot be written: {error}") from error
        self._started = True
        self._done(first, rows)

    def look(self) -> None:
        """Notice what the core asks for. Cheap; to be called after every pop."""
        for limit, amount in self._core.asked():
            self._asked[limit] = amount
            self._wake.set()

    async def run(self) -> None:
        """Grant what is asked for and move calendars on, until cancelled."""
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), PERIODS_S)
            self._wake.clear()
            self.move_on()
            await self.grant()

    def move_on(self) -> None:
        """Tell the core which day and month it is in each calendar."""
        for kept in self._kept.values():
            if kept.zone:
                self._set_period(kept, self._clock.wall_ms())

    async def grant(self) -> None:
        """Grant what was asked for, once it is on disk."""
        asked, self._asked = self._asked, {}
        if not asked:
            return
        rows = self._rows(asked)
        try:
            await asyncio.to_thread(self._uses.write, rows)
        except sqlite3.Error as error:
            logger.warning("limits cannot be written: sends wait", error=str(error), again_in_s=AGAIN_S)
            await asyncio.sleep(AGAIN_S)
            self._asked = asked | self._asked
            self._wake.set()
            return
        self._done(asked, rows)
        self.granted()

    def _rows(self, asked: Mapping[int, int]) -> list[Row]:
        """What must be on disk before so much is granted."""
        rows, at_ms, now_ns = [], self._clock.wall_ms() + 1, self._clock.now_ns()
        for limit, amount in asked.items():
            kept = self._kept[limit]
            total, _, held, granted = self._core.use(limit, now_ns)
            open_ = kept.most if kept.portion is None else held + granted + amount
            rows.append(Row(kept.number, kept.keep_ms, Use(at_ms, total - kept.written), open_))
        return rows

    def _done(self, asked: Mapping[int, int], rows: Sequence[Row]) -> None:
        for (limit, amount), row in zip(asked.items(), rows, strict=True):
            kept = self._kept[limit]
            kept.written += row.used.amount
            if kept.told != kept.most and (kept.portion is not None or kept.most <= row.open):
                self._tell(kept)  # else it was raised again meanwhile, and that is yet to be written
            if kept.portion is not None:
                self._core.grant(limit, amount)

    def close(self) -> None:
        """Give back what is open; what is under way counts as used. Blocks on the disk."""
        rows, at_ms, now_ns = [], self._clock.wall_ms() + 1, self._clock.now_ns()
        for limit, kept in self._kept.items():
            total, counted, held, _ = self._core.use(limit, now_ns)
            used = counted if kept.portion is None else total - kept.written
            rows.append(Row(kept.number, kept.keep_ms, Use(at_ms, used), held))
        try:
            self._uses.write(rows)
        except sqlite3.Error as error:
            logger.warning("limits cannot be written: what is granted is lost", error=str(error))
        self._uses.close()
