"""Work that is not urgent is spread over the loop's turns."""

import asyncio
from functools import partial
from itertools import pairwise

import pytest

from engine.clock import Clock
from engine.send import Tier
from engine.turns import BUSY_NS, LATELY_NS, MOST, PATIENCE, PIECE_NS, SMALL_NS, Turns


class Works(Clock):
    """Time passes by work alone."""

    ns = 0

    def now_ns(self) -> int:
        return self.ns


async def done_in_turns(each_ns: int, pieces: int, urgent: bool = False, others_ns: int = 0) -> list[int]:
    """How many pieces each turn of the loop saw, but the last one; ``others_ns``: what else a turn has to do."""
    clock = Works()
    turns, done, seen = Turns(clock), 0, list[int]()

    async def work() -> None:
        nonlocal done
        await turns.mine(Tier.BASIC)
        clock.ns += each_ns
        done += 1

    if urgent:
        await turns.mine(Tier.SYSTEM)
    async with asyncio.TaskGroup() as tasks:
        for _ in range(pieces):
            tasks.create_task(work())
        while done < pieces:
            seen.append(done)
            clock.ns += others_ns
            await asyncio.sleep(0)
    return [after - before for before, after in pairwise(seen)]


async def test_long_pieces_are_done_one_a_turn() -> None:
    turns = await done_in_turns(2 * PIECE_NS + 1, 50)
    assert sum(turns) >= 45
    assert set(turns[4:]) <= {0, 1}


async def test_short_pieces_fill_the_turn_up_to_a_number() -> None:
    turns = await done_in_turns(PIECE_NS // 1000, 50 * MOST)
    assert max(turns) == MOST


async def test_where_something_urgent_has_come_every_other_turn_has_no_piece() -> None:
    turns = await done_in_turns(SMALL_NS, 50, urgent=True, others_ns=BUSY_NS // 2)
    assert sum(turns) >= 45
    assert all(not (one and next) for one, next in pairwise(turns))
    assert "0, 0, 0" not in str(turns[4:])


async def test_where_something_urgent_has_come_other_work_goes_first_and_not_for_ever() -> None:
    turns = await done_in_turns(SMALL_NS, 50, urgent=True, others_ns=2 * BUSY_NS)
    at = [number for number, pieces in enumerate(turns) if pieces]
    assert {after - before for before, after in pairwise(at)} == {PATIENCE + 2}
    assert sum(turns) >= 45


async def test_pieces_are_small_while_something_urgent_has_come_lately() -> None:
    clock = Works()
    turns = Turns(clock)
    assert turns.piece_ns == PIECE_NS
    await turns.mine(Tier.SYSTEM)
    clock.ns += LATELY_NS - 1
    assert turns.piece_ns == SMALL_NS
    clock.ns += 1
    assert turns.piece_ns == PIECE_NS


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
