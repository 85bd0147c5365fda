"""What the recorder does with a record that its log will never take."""

from __future__ import annotations

import asyncio
from array import array
from pathlib import Path

from engine.clock import Clock
from engine.commit import Ledger
from engine.counters import Counters
from engine.logs import Partition
from engine.logs.sqlite import SqliteLog
from engine.record import Recorder


async def test_a_record_the_log_refuses_does_not_hold_up_the_others(tmp_path: Path) -> None:
    log = SqliteLog(str(tmp_path / "log.db"), engine=False, first_start="earliest", retention_ms=10**9)
    await log.start()
    recorder = Recorder(log, "surgetank", Clock(), Counters())
    running = asyncio.create_task(recorder.run())
    ledger = Ledger(Partition("surgetank.basic", 0), 0, epoch=1)
    ledger.open_many([0], [0])
    try:
        recorder.dead_record(None, b"before", (), ())
        recorder.dead_record(None, b"x" * (17 << 20), (), ())
        recorder.dead_record(None, b"after", (), ())
        recorder.complete(ledger, array("q", [0]))
        assert await recorder.flushed(30)
        assert recorder.refused == 1
        assert ledger.watermark == 1
        reader = await log.reader(["surgetank.dead"])
        kept = []
        while not await reader.at_end():
            kept += [value for chunk in await reader.poll(10, 0.2) for value in chunk.values]
        assert set(kept) == {b"before", b"after"}
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await log.close()
