"""A disk that fills up under the embedded log, with the engine's state on it: told, waited out, nothing lost."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.config import load
from engine.errors import LogUnavailable
from engine.send import Outcome
from tests.integration.support import Gateway, channel, configured, gateway, opened, record, send, working, write_config
from tests.integration.test_pipeline_process import WITHIN_S, Engine, log_of, serving

DISK_MIB, KEPT_MIB = 24, 16
PER_APPEND = 20


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system for the log and the state; most of it is taken by a file that can be deleted."""
    where = tmp_path / "disk"
    where.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", str(where)]
    mounted = subprocess.run(["mount", *options], capture_output=True, text=True, check=False)
    if mounted.returncode:
        message = f"cannot mount a small file system: {mounted.stderr.strip()}"
        if os.environ.get("CI") and os.geteuid() == 0:
            pytest.fail(message, pytrace=False)
        pytest.skip(message)
    try:
        (where / "filler").write_bytes(bytes(KEPT_MIB << 20))
        (where / "state").mkdir()
        for name in ("state", "log.db"):
            (tmp_path / name).symlink_to(where / name)
        yield where
    finally:
        subprocess.run(["umount", "--lazy", str(where)], check=True)


async def fill(directory: Path, number: int) -> int:
    """Append sends until the disk takes no more; how many are acknowledged, ids ``i0`` to that."""
    async with opened(load(directory / "surgetank.toml"), engine=False) as log:
        while True:
            ids = range(number, number + PER_APPEND)
            try:
                await log.append([record("basic", send(f"i{n}", f"u{n}", meta="x" * 2000)) for n in ids])
            except LogUnavailable as error:
                assert "full" in str(error)  # noqa: PT017 - the loop's only end
                return number
            number += PER_APPEND


async def delivered(engine: Engine, disk: Path, partner: Gateway, sends: int) -> None:
    """There is room again: it goes on by itself, and ends in peace."""
    (disk / "filler").unlink()
    async with asyncio.timeout(WITHIN_S):
        while len(partner.ids) < sends:
            assert engine.process.returncode is None, engine.said
            await asyncio.sleep(0.02)
    engine.process.send_signal(signal.SIGTERM)
    assert await engine.ended() == 0, engine.said


@pytest.mark.parametrize("killed", [True, False])
async def test_nothing_is_lost_when_the_disk_is_full(tmp_path: Path, disk: Path, killed: bool) -> None:
    async with gateway() as partner:
        part = channel("partner", partner.url, "batch = 50")
        write_config(tmp_path, part)
        async with serving(tmp_path, part) as engine:
            await engine.ready()
            if not killed:  # its first record comes when the disk is full already
                engine.process.send_signal(signal.SIGSTOP)
            acknowledged = await fill(tmp_path, 0)
            engine.process.send_signal(signal.SIGCONT)
            assert acknowledged
            # What it wants to tell now does not fit either: it says so, and waits.
            async with asyncio.timeout(WITHIN_S):
                while not any("full" in line for line in engine.said.splitlines()):
                    assert engine.process.returncode is None, engine.said
                    await asyncio.sleep(0.02)
            assert (await engine.probe("livez"))[0] == 200
            if killed:
                os.kill(engine.process.pid, signal.SIGKILL)
                assert await engine.ended() == -signal.SIGKILL
            else:
                await delivered(engine, disk, partner, acknowledged)
        if killed:
            async with serving(tmp_path, part) as engine:
                async with asyncio.timeout(WITHIN_S):
                    while "waiting for the log" not in engine.said:
                        assert engine.process.returncode is None, engine.said
                        await asyncio.sleep(0.02)
                await delivered(engine, disk, partner, acknowledged)
        async with working(configured(tmp_path, part)) as worker:
            deadline = time.monotonic() + WITHIN_S
            wanted = {(f"i{n}", f"u{n}") for n in range(acknowledged)}
            while not wanted <= set((await worker.told()).by_id()):
                worker.check()
                assert time.monotonic() < deadline, (len(partner.ids), acknowledged)
                await asyncio.sleep(0.1)
        ends = (await log_of(tmp_path)).by_id()
        assert {end.outcome for all_ in ends.values() for end in all_} == {Outcome.ACCEPTED}
        assert set(partner.ids) == {to for _, to in ends}
