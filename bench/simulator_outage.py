"""What goes wrong when: the outages under way, and how each looks on the wire."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Iterable
from typing import NamedTuple

from aiohttp import web

from bench.simulator_limits import SECOND, ns
from bench.simulator_options import Kind, Outage

GARBAGE = b"<html><head><title>502</title></head><body>\x00\xff upstream \xfe</body>"
SLOW_STEP_S = 0.05


class Trouble(NamedTuple):
    """An outage with its times."""

    endpoint: str
    kind: Kind
    start_ns: int
    end_ns: int
    retry_after_s: int | None


class Outages:
    """All that are to come or under way. The one that was set last wins."""

    def __init__(self) -> None:
        self._troubles: list[Trouble] = []

    def add(self, outages: Iterable[Outage], now_ns: int) -> None:
        """Their times count from ``now_ns``."""
        for outage in outages:
            start = now_ns + ns(outage.start_s)
            end = start + ns(outage.duration_s)
            self._troubles.append(Trouble(outage.endpoint, outage.kind, start, end, outage.retry_after_s))

    def clear(self) -> None:
        """None any more, from the next request on."""
        self._troubles.clear()

    def at(self, endpoint: str, now_ns: int) -> Trouble | None:
        """What is wrong with ``endpoint`` now."""
        if not self._troubles:
            return None
        self._troubles = [trouble for trouble in self._troubles if trouble.end_ns > now_ns]
        for trouble in reversed(self._troubles):
            if trouble.endpoint == endpoint and trouble.start_ns <= now_ns:
                return trouble
        return None


def reset(request: web.BaseRequest) -> None:
    """A TCP reset instead of an answer: the client sees the connection break."""
    transport = request.transport
    if transport is None:
        return
    sock = transport.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


async def hang(closing: asyncio.Event, left_ns: int) -> None:
    """Nothing, until the outage ends or the server does. A client that leaves cancels it."""
    try:
        await asyncio.wait_for(closing.wait(), left_ns / SECOND)
    except TimeoutError:
        return


async def drip(response: web.StreamResponse, body: bytes, closing: asyncio.Event, left_ns: int) -> None:
    """``body`` a byte at a time, the rest at once when the outage ends."""
    loop = asyncio.get_running_loop()
    end = loop.time() + left_ns / SECOND
    for position in range(len(body)):
        left = end - loop.time()
        if left <= 0 or closing.is_set():
            await response.write(body[position:])
            return
        await response.write(body[position : position + 1])
        await hang(closing, ns(min(left, SLOW_STEP_S)))
