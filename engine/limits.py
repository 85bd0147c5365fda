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
from engine.shares import key_of
from engine.state.uses import Row, Use, Uses
from engine.wire_control import LimitUse, Target

logger = structlog.get_logger("surgetank.limits")
CALLS, RECIPIENTS = 0, 1
NEVER = 2**63 - 1  # the core's
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


def _target(name: Sequence[str]) -> Target:
    if name[0] == "account":
        return Target(channel=name[1], account=name[2])
    return Target() if name[0] == "everything" else Target(**{name[0]: name[1]})  # type: ignore[arg-type]


class Kept(msgspec.Struct):
    """One limit."""

    handle: int  # the core's
    number: int  # the file's
    keep_ms: int
    most: int
    portion: int | None  # None: everything is granted
    zone: str | None
    monthly: bool
    rule: Limit
    on: Target
    written: int = 0  # of what was ever counted


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
        self._asked: dict[int, int] = {}
        self._wake = asyncio.Event()

    def add(self, scope: int, handle: int, name: Sequence[str], rule: Limit) -> None:
        """A limit of a scope, with what was used of it before. ``name`` tells the scope apart in the file."""
        number, unit = (rule.calls, CALLS) if rule.calls is not None else (rule.recipients or 0, RECIPIENTS)
        reserved = number // 10 if self._reserves else 0
        limit = self._core.add_limit(scope, handle, unit, number, rule.per, reserved, rule.zone is not None)
        kept = Kept(
            limit,
            self._uses.number(key_of(name, rule)),
            keep_ms(rule),
            number,
            portion(number, rule.per),
            rule.zone,
            rule.per == MONTH,
            rule,
            _target(name),
        )
        self._kept[limit] = kept
        self._restore(kept)

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
                )
            )
        return found

    def told(self, limit: int) -> str:
        """The core's limit as people say it: "100 calls per 1s"."""
        rule = self._kept[limit].rule
        number, unit = (rule.calls, "calls") if rule.calls is not None else (rule.recipients, "recipients")
        return f"{number} {unit} per {rule.per}" + (f" in {rule.zone}" if rule.zone else "")

    def start(self) -> None:
        """Write what a restart must know before anything leaves, and grant the first portions. Blocks on the disk.
        Raises LogUnusable."""
        first = {limit: kept.portion or 0 for limit, kept in self._kept.items()}
        rows = self._rows(first)
        try:
            self._uses.write(rows)
        except sqlite3.Error as error:
            raise LogUnusable(f"limits cannot be written: {error}") from error
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
