"""One timer for all blocks, and each block as if it had its own."""

from __future__ import annotations

import asyncio

import pytest

from engine.time_limit import TimeLimit

LONG_S, SHORT_S = 3600.0, 0.001


async def forever() -> None:
    await asyncio.get_running_loop().create_future()


async def test_a_block_that_takes_too_long_is_cancelled_alone() -> None:
    limit = TimeLimit(SHORT_S)

    async def late() -> None:
        with pytest.raises(TimeoutError), limit.block():
            await forever()
        await asyncio.sleep(0)  # and goes on as if nothing had been

    async def in_time(ended: asyncio.Event) -> str:
        with limit.block():
            await asyncio.sleep(0)
        await ended.wait()
        return "whole"

    ended = asyncio.Event()
    quick = asyncio.create_task(in_time(ended))
    await asyncio.gather(*(late() for _ in range(100)))
    ended.set()
    assert await quick == "whole"
    assert not limit.running


async def test_a_block_ends_at_its_own_time_though_an_older_one_ended_before() -> None:
    limit, loop = TimeLimit(SHORT_S), asyncio.get_running_loop()
    with limit.block():
        await asyncio.sleep(0)
    for _ in range(3):  # the one timer is for a block that is gone, then for none, then for this one
        began = loop.time()
        with pytest.raises(TimeoutError), limit.block():
            await forever()
        assert loop.time() >= began + SHORT_S


async def test_whoever_else_cancels_is_not_mistaken_for_the_limit() -> None:
    async def cut_off() -> None:
        with TimeLimit(LONG_S).block():
            await forever()

    task = asyncio.create_task(cut_off())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_cancelled_by_both_is_cancelled() -> None:
    limit = TimeLimit(LONG_S)

    async def cut_off() -> None:
        with limit.block():
            await forever()

    task = asyncio.create_task(cut_off())
    await asyncio.sleep(0)
    (block,) = limit.running
    del limit.running[block]
    block.expire()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_an_error_of_the_block_passes_as_it_is() -> None:
    limit = TimeLimit(LONG_S)
    with pytest.raises(ZeroDivisionError), limit.block():
        raise ZeroDivisionError
    assert not limit.running
