"""Waits between tries."""

from __future__ import annotations

from engine.backoff import Backoff


async def test_doubles_up_to_a_bound_and_starts_over() -> None:
    backoff = Backoff(0.001, 0.003)
    waits = []
    for _ in range(4):
        waits.append(backoff.next_s)
        await backoff.wait()
    assert waits == [0.001, 0.002, 0.003, 0.003]
    backoff.reset()
    assert backoff.next_s == 0.001
