"""A line repeated many times a second is let through a few times, then summed up."""

from __future__ import annotations

import logging

import pytest

import engine.logs.kafka  # noqa: F401 - makes aiokafka's loggers
from engine.logs import kafka_quiet
from engine.logs.kafka_quiet import LINES, WINDOW_S, Quiet, quieten


def line(text: str, *args: object) -> logging.LogRecord:
    return logging.LogRecord("aiokafka.x", logging.ERROR, "x.py", 1, text, args, None)


def test_lines_beyond_the_limit_are_left_out_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(kafka_quiet, "monotonic", lambda: now)
    quiet = Quiet()
    assert [quiet.filter(line("node %d is away", n)) for n in range(LINES + 7)] == [True] * LINES + [False] * 7
    assert quiet.filter(line("another line"))
    now += WINDOW_S
    after = line("node %d is away", 1)
    assert quiet.filter(after)
    assert after.getMessage() == "node 1 is away (7 more like it)"


def test_every_logger_of_aiokafka_is_filtered(caplog: pytest.LogCaptureFixture) -> None:
    quieten()
    quieten()
    logger = logging.getLogger("aiokafka.consumer.fetcher")
    for n in range(50):
        logger.warning("a line only this test writes, %d", n)
    assert len([record for record in caplog.records if "only this test" in record.getMessage()]) == LINES
