"""Work that is not urgent is spread over the loop's turns."""

import asyncio
from functools import partial
from itertools import pairwise

import pytest

from engine.clock import Clock
from engine.send import Tier
from engine.turns import BUSY_NS, LATELY_NS, MOST, PATIENCE_NS, PIECE_NS, SMALL_NS, Turns


class Works(Clock):
    """Time passes by work alone."""

    ns = 0

    def now_ns(self) -> int:
        return self.ns


async def done_in_turns(each_ns: int, pieces: int) -> list[int]:
    """How many pieces of so long each turn of the loop saw, the last one aside."""
    clock = Works()
    turns, done, seen = Turns(clock), 0, list[int]()

    async def work() -> None:
        nonlocal done
        await turns.mine(Tier.BASIC)
        clock.ns += each_ns
        done += 1

    async with asyncio.TaskGroup() as tasks:
        for _ in range(pieces):
            tasks.create_task(work())
        while done < pieces:
            seen.append(done)
            await asyncio.sleep(0)
    return [after - before for before, after in pairwise(seen)]


async def test_long_pieces_are_done_one_a_turn() -> None:
    turns = await done_in_turns(2 * PIECE_NS + 1, 50)
    assert sum(turns) >= 45
    assert set(turns[4:]) <= {0, 1}


async def test_short_pieces_fill_the_turn_up_to_a_number() -> None:
    turns = await done_in_turns(PIECE_NS // 1000, 50 * MOST)
    assert max(turns) == MOST


@pytest.mark.parametrize("others_ns", [BUSY_NS // 2, 2 * BUSY_NS, PATIENCE_NS, 5 * PATIENCE_NS])
@pytest.mark.parametrize("waiting", [1, 2, 50])
async def test_where_something_urgent_has_come_other_work_goes_first_and_not_for_long(
    others_ns: int, waiting: int
) -> None:
    clock, gone = Works(), list[int]()
    turns = Turns(clock)

    async def work() -> None:
        while len(gone) < 100:
            await turns.mine(Tier.BASIC)
            gone.append(clock.ns)
            clock.ns += SMALL_NS

    async with asyncio.TaskGroup() as tasks:
        for _ in range(waiting):
            tasks.create_task(work())
        while len(gone) < 100:
            await turns.mine(Tier.SYSTEM)
            clock.ns += others_ns
    gaps = [after - before for before, after in pairwise(gone[4:])]
    if others_ns < BUSY_NS:
        assert max(gaps) <= 2 * SMALL_NS + 3 * others_ns
        return
    assert max(gaps) <= PATIENCE_NS + 2 * (SMALL_NS + others_ns)
    if others_ns < PATIENCE_NS:
        of_two_turns = [gap for gap in gaps if gap > SMALL_NS + others_ns]  # several pieces may go in one
        assert len(of_two_turns) > 10
        assert min(of_two_turns) >= PATIENCE_NS


async def test_pieces_are_small_while_something_urgent_has_come_lately() -> None:
    clock = Works()
    turns = Turns(clock)
    assert turns.piece_ns(Tier.BASIC) == PIECE_NS
    await turns.mine(Tier.SYSTEM)
    clock.ns += LATELY_NS - 1
    assert (turns.piece_ns(Tier.BASIC), turns.piece_ns(Tier.SYSTEM)) == (SMALL_NS, PIECE_NS)
    clock.ns += 1
    assert turns.piece_ns(Tier.BASIC) == PIECE_NS


async def test_pieces_of_one_kind_come_in_their_order() -> None:
    turns, came = Turns(Clock()), list[int]()

    async def work(number: int) -> None:
        await turns.mine(Tier.TEMPLATE)
        came.append(number)

    async with asyncio.TaskGroup() as tasks:
        for number in range(0, 20, 2):
            tasks.create_task(work(number))
            await asyncio.sleep(0)
            turns.add(Tier.BASIC, partial(came.append, number + 1))
    for _ in range(100):
        await asyncio.sleep(0)
    assert sorted(came) == list(range(20))
    assert [n for n in came if n % 2 == 0] == list(range(0, 20, 2))
    assert [n for n in came if n % 2] == list(range(1, 20, 2))


async def test_what_is_urgent_does_not_wait_for_the_others() -> None:
    turns, begun = Turns(Works()), list[str]()
    waiting = [asyncio.create_task(turns.mine(Tier.BASIC)) for _ in range(100)]
    await asyncio.sleep(0)
    turns.add(Tier.SYSTEM, lambda: begun.append("now"))
    assert begun == ["now"]
    await asyncio.wait_for(turns.mine(Tier.SYSTEM), 5)
    assert not waiting[-1].done()
    await asyncio.gather(*waiting)


@pytest.mark.parametrize("cut", [0, 3])
async def test_one_that_is_cut_off_while_it_waits_holds_nobody_up(cut: int) -> None:
    turns = Turns(Works())
    waiting = [asyncio.create_task(turns.mine(Tier.BASIC)) for _ in range(8)]
    await asyncio.sleep(0)
    waiting[cut].cancel()
    done = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 5)
    assert [isinstance(one, asyncio.CancelledError) for one in done] == [at == cut for at in range(8)]


async def test_at_the_end_nothing_waits() -> None:
    turns, begun = Turns(Works()), list[int]()
    for number in range(100):
        turns.add(Tier.BASIC, partial(begun.append, number))
    turns.finish()
    assert begun == list(range(100))
