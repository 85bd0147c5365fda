"""One burst through the real pipeline: embedded log, engine and platform as processes of their own, real HTTP; counted
where it arrives. Once paced, once as soon as possible, under the same limit."""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from array import array
from collections import Counter
from contextlib import AsyncExitStack
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import aiohttp
import msgpack

from bench import stack
from bench.judge import read_input
from bench.optimum import Work, least_peak
from bench.smooth_figures import Figures, binned, figures
from engine.config import Config, load
from engine.logs import Log, Record

S, MS = 10**9, 10**6
DUE_S = 120
CALLS = 30_000  # 250 a second
SPREAD_S = 6  # to the due time as day_30s is to its own
TENANTS = 20
MODES = ("paced", "asap")
GIVE_UP_S = 180.0
CONFIG = """
state = "{folder}/state"
[log]
{log}
[tiers.basic]
pacing = "{mode}"
due_after = "{due_s}s"
[channels.mass]
driver = "webhook"
base_url = "{url}/webhook/mass"
in_flight = 64
batch = 1
limits = [{{ calls = {most}, per = "1s" }}]
[http]
metrics = "127.0.0.1:{port}"
admin = ""
"""
PLATFORM = {"webhook": {"latency": {"kind": "lognormal", "median_s": 0.01, "sigma": 0.4, "max_s": 0.2}}}


class Burst(NamedTuple):
    """What one run came to."""

    rstar_per_s: float
    figures: Figures
    bins: list[int]


async def measure(ceiling: int) -> dict[str, Burst]:
    """By mode; the limit is ``ceiling`` times the burst's mean rate."""
    bursts = {}
    for mode in MODES:
        print(f"real burst, {mode}: {CALLS} calls in {DUE_S} s", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory(prefix="surgetank-smooth-") as folder:
            bursts[mode] = await _burst(Path(folder), mode, ceiling * CALLS // DUE_S)
    return bursts


async def _burst(folder: Path, mode: str, most: int) -> Burst:
    async with AsyncExitStack() as exits:
        session = await exits.enter_async_context(aiohttp.ClientSession())
        platform = await exits.enter_async_context(stack.simulator(folder, PLATFORM, session, ledger=False))
        config, port = _config(folder, mode, platform.url, most)
        log = await exits.enter_async_context(stack.opened(config, engine=False))
        engine = await exits.enter_async_context(stack.engine(folder, folder / "c.toml", port, session))
        await _feed(log)
        await _ended(engine)
        arrived = {row["recipient"]: row["arrived_ns"] async for row in platform.lines("ledger/export")}
        appended = (await read_input(log, config.log.prefix)).appended_ms
    return _judge(arrived, {name: ms * MS for name, (_, ms) in appended.items()})


def _config(folder: Path, mode: str, url: str, most: int) -> tuple[Config, int]:
    port = stack.free_port()
    keys = {"mode": mode, "due_s": DUE_S, "url": url, "most": most, "port": port, "log": stack.log_keys(folder, None)}
    path = folder / "c.toml"
    path.write_text(CONFIG.format(folder=folder, **keys))
    return load(path), port


async def _feed(log: Log) -> None:
    """In tenths of a second, whatever the appends take."""
    steps, started = SPREAD_S * 10, time.monotonic()
    for step in range(steps):
        await asyncio.sleep(max(0.0, started + step / 10 - time.monotonic()))
        await log.append([_send(n) for n in range(CALLS * step // steps, CALLS * (step + 1) // steps)])


def _send(n: int) -> Record:
    tenant = f"t{n % TENANTS}"
    send = {
        "id": f"s{n}",
        "channel": "mass",
        "to": [f"r{n}"],
        "tenant": tenant,
        "campaign": tenant,
        "content": {"n": 1},
    }
    return Record("surgetank.basic", msgpack.packb(send))


async def _ended(engine: stack.Engine) -> None:
    deadline = time.monotonic() + DUE_S + GIVE_UP_S
    while (await engine.samples()).sum("recipients_total", outcome="accepted") < CALLS:
        if time.monotonic() > deadline:
            raise RuntimeError(f"the burst was not over {GIVE_UP_S:.0f} s after it was due:\n{engine.child.tail()}")
        await asyncio.sleep(1.0)


def _judge(arrived: dict[str, int], appended: dict[str, int]) -> Burst:
    """Times count from the second in which the first send was appended; late is what arrived after its due time."""
    assert len(arrived) == len(appended) == CALLS
    zero = min(appended.values()) // S * S
    released = Counter(at - zero for at in appended.values())
    work = [Work(at, at + DUE_S * S, calls) for at, calls in sorted(released.items())]
    left = array("q", sorted(at - zero for at in arrived.values()))
    late = sum(arrived[name] > at + DUE_S * S for name, at in appended.items())
    rstar_per_s: Fraction = least_peak(work) * S
    return Burst(float(rstar_per_s), figures(left, work, rstar_per_s, late), binned(left, left[-1] // S))
