"""What a limit's use survives: an engine that is ended at any moment, any number of times, on a virtual clock."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.clock import Clock
from engine.config import Limit, Span
from engine.limits import Limits
from engine.periods import period_at, portion
from engine.state.uses import Row, Uses
from ext.limits import FREE
from ext.limits import Limits as Core
from tests.property.windows import most_in_a_window

S = 1_000_000_000
EPOCH_NS = 1_790_000_000 * S
DAY = Span(86_400 * S)


class Hand(Clock):
    """A clock that goes when it is told to; wall and monotonic start apart."""

    def __init__(self) -> None:
        self.ns = 5 * S

    def now_ns(self) -> int:
        """Since the last boot, in a way."""
        return self.ns

    def wall_ms(self) -> int:
        """As ``offset_ns`` says."""
        return (self.ns + EPOCH_NS) // 1_000_000

    def offset_ns(self) -> int:
        """Constant."""
        return -EPOCH_NS


class Life:
    """One process's limits, from start to its end."""

    def __init__(self, path: Path, rule: Limit, clock: Hand, number: int | None = None) -> None:
        self.core, self.clock = Core(), clock
        self.uses = Uses(path)
        self.limits = Limits(self.core, self.uses, clock)
        self.kept = self.limits.add(0, 0, ["everything"], rule)
        if number is not None:  # a command that still stands
            self.limits.renumber(self.kept, number)
        self.limits.start()
        self.under_way: list[tuple[int, bool]] = []
        self.arrived: list[tuple[int, int]] = []

    async def send(self, n: int, late: bool) -> None:
        """One call of n recipients, if it may leave now; a grant that is asked for comes. Counted now, or as late as
        can be: ``late``."""
        for _ in range(3):
            if self.core.refuse(self.clock.ns, n)[0] == FREE:
                self.core.hold(n)
                self.under_way.append((n, late))
                if not late:
                    self.arrived.append((self.clock.ns, n))
                return
            self.limits.look()
            await self.limits.grant()

    def arrives(self) -> None:
        """What was late."""
        self.arrived += [(self.clock.ns, n) for n, late in self.under_way if late]

    def answered(self) -> None:
        """Every call under way."""
        self.arrives()
        for n, _ in self.under_way:
            self.core.settle(self.clock.ns, n, n)
        self.under_way.clear()

    def open(self) -> int:
        """Under way, and granted and not used."""
        return sum(self.core.use(0, self.clock.ns)[2:])

    def killed(self) -> None:
        """Without a word to anybody."""
        self.arrives()
        self.uses.close()


rules = st.one_of(
    st.builds(lambda n, s: Limit(Span(s * S), recipients=n), st.integers(1, 3_000), st.sampled_from([1, 5, 60])),
    st.builds(lambda n: Limit(DAY, recipients=n, zone="Europe/Berlin"), st.integers(1, 3_000)),
)
steps = st.one_of(
    st.tuples(st.sampled_from(["send", "late"]), st.integers(1, 50)),
    st.tuples(st.just("wait"), st.integers(1, 20 * S)),
    st.tuples(st.just("wait"), st.integers(1, 40 * 3_600 * S)),
    st.tuples(st.sampled_from(["answers", "kill", "stop"]), st.just(0)),
    st.tuples(st.just("number"), st.integers(1, 4_000)),
)


@settings(max_examples=60, deadline=None, print_blob=True)
@given(rules, st.lists(steps, max_size=60))
def test_no_window_is_over_whenever_the_process_ends(rule: Limit, drawn: list[tuple[str, int]]) -> None:
    asyncio.run(live(rule, drawn))


async def live(rule: Limit, drawn: list[tuple[str, int]]) -> None:
    """Steps, one process after the other, judged by where the calls arrived."""
    most, number = rule.recipients or 0, None
    clock, arrived = Hand(), list[tuple[int, int]]()
    with TemporaryDirectory() as directory:
        path = Path(directory) / "limits.db"
        life = Life(path, rule, clock)
        for what, value in drawn:
            if what in ("send", "late"):
                await life.send(life.core.most(clock.ns, value), what == "late")
            elif what == "wait":
                clock.ns += value
                life.limits.move_on()
            elif what == "answers":
                life.answered()
            elif what == "number":
                number, most = value, max(most, value)
                life.limits.renumber(life.kept, value)
                assert life.kept.told <= value
            else:
                arrived += end(life, what)
                life = Life(path, rule, clock, number)
        life.killed()
        arrived += life.arrived
    assert worst(arrived, rule) <= most


def end(life: Life, what: str) -> list[tuple[int, int]]:
    """The process ends; returns what arrived of it."""
    if what == "stop":
        life.answered()
        life.limits.close()
    else:
        life.killed()
    return life.arrived


def worst(arrived: list[tuple[int, int]], rule: Limit) -> int:
    """The most in any window or day."""
    if rule.zone is None:
        return most_in_a_window(arrived, rule.per)
    days: dict[int, int] = {}
    for at, n in arrived:
        number = period_at(rule.zone, False, (at + EPOCH_NS) // 1_000_000).number
        days[number] = days.get(number, 0) + n
    return max(days.values(), default=0)


@pytest.mark.parametrize("rule", [Limit(Span(60 * S), recipients=6_000), Limit(DAY, recipients=50_000, zone="UTC")])
async def test_a_crash_costs_what_was_open_and_a_stop_nothing(rule: Limit, tmp_path: Path) -> None:
    clock, path = Hand(), tmp_path / "limits.db"
    life = Life(path, rule, clock)
    for _ in range(40):
        await life.send(7, late=False)
        life.answered()
        clock.ns += S
    granted = life.open()
    life.killed()
    assert granted <= max(portion(rule.recipients or 0, rule.per) or 0, 7)
    life = Life(path, rule, clock)
    total, counted, held, _ = life.core.use(0, clock.ns)
    # What it forfeits: the grant as it was last written, less what was used of it.
    assert counted - 40 * 7 == granted
    assert held == 0
    life.limits.close()
    life = Life(path, rule, clock)
    assert life.core.use(0, clock.ns)[1] == counted
    assert life.limits.forfeited == 0
    life.limits.close()
    assert total


async def test_a_larger_number_holds_once_it_is_written_and_a_smaller_one_at_once(tmp_path: Path) -> None:
    """A second's limit is granted whole: what a crash may have used must stand in the file before it can be used."""
    clock, path = Hand(), tmp_path / "limits.db"
    life = Life(path, Limit(Span(S), recipients=10), clock)
    life.limits.renumber(life.kept, 30)
    assert life.core.most(life.clock.ns, 100, system=True) == 10
    await life.limits.grant()
    assert life.core.most(life.clock.ns, 100, system=True) == 30
    await life.send(27, late=False)
    life.killed()
    life = Life(path, Limit(Span(S), recipients=10), clock, 30)
    assert life.core.use(0, clock.ns)[1] == 30, "all of it may have been used"
    life.limits.renumber(life.kept, 5)
    assert life.core.most(clock.ns, 100, system=True) == 1, "more than that is used"
    life.limits.close()


async def test_a_number_raised_while_the_one_before_is_written_waits_for_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    life = Life(tmp_path / "limits.db", Limit(Span(S), recipients=10), Hand())
    life.limits.renumber(life.kept, 30)
    write = life.uses.write

    def writes(rows: Sequence[Row]) -> None:
        write(rows)
        if life.kept.most == 30:
            life.limits.renumber(life.kept, 90)

    monkeypatch.setattr(life.uses, "write", writes)
    await life.limits.grant()
    assert life.core.most(life.clock.ns, 100, system=True) == 10
    await life.limits.grant()
    assert life.core.most(life.clock.ns, 100, system=True) == 90
    life.limits.close()


async def test_what_cannot_be_written_is_not_granted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.limits.AGAIN_S", 0.0)
    life = Life(tmp_path / "limits.db", Limit(Span(60 * S), calls=60), Hand())
    with sqlite3.connect(tmp_path / "limits.db") as other:
        other.execute("PRAGMA journal_mode = WAL")
        other.execute("DROP TABLE used")
    await life.send(1, late=False)
    await life.send(1, late=False)
    assert len(life.under_way) == 1
