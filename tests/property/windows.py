"""The judge of limits: what a platform that counts at arrival has seen, in every window of a length."""

from __future__ import annotations

from collections.abc import Iterable


def most_in_a_window(log: Iterable[tuple[int, int]], per: int) -> int:
    """The most that arrived in any half-open window of length ``per``; log: (time, n), in any order.

    A window that holds the most can be moved to begin at an arrival and still hold it, so those are all looked at.
    """
    log = sorted(log)
    most = inside = last = 0
    for at, n in log:
        inside += n
        while log[last][0] <= at - per:
            inside -= log[last][1]
            last += 1
        most = max(most, inside)
    return most
