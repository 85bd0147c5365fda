"""A defect of our own: it is carried to whoever can end the process, and nothing is committed past it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

import engine.dispatch
from engine.clock import Clock
from engine.logs.open import open_log
from engine.pipeline import Pipeline
from engine.send import Tier
from tests.integration.support import channel, configured, gateway, record, send


@pytest.mark.parametrize("stage", ["settle", "batches_of"])
async def test_a_defect_around_a_call_is_told_and_commits_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("broken on purpose")

    async with gateway() as partner:
        config = configured(tmp_path, channel("partner", partner.url))
        log = open_log(config.log, state=config.state, engine=True)
        await log.start()
        pipeline = Pipeline(config, [Tier.BASIC], log, Clock())
        try:
            await pipeline.start()
            monkeypatch.setattr(engine.dispatch, stage, broken)
            await log.append([record("basic", send("i1", ["u1"]))])
            with pytest.raises(RuntimeError, match="broken on purpose"):
                await asyncio.wait_for(pipeline.dispatcher.failure, 10)
            await pipeline.stop()
            committed = await log.committed("surgetank.basic")
            assert all(position.offset == 0 for position in committed.values())
        finally:
            await log.close()
