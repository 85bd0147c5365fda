"""The engine's own log: one line an event, from every logger, and no secret in any."""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from engine import oplog


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    """Leave the process's loggers as they were."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(capture=False)
    structlog.reset_defaults()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_off_a_terminal_every_event_is_a_json_line() -> None:
    stream = io.StringIO()
    oplog.set_up(stream=stream)
    structlog.get_logger("surgetank.x").info("said", channel="c", count=3, key=b"k\xff")
    (line,) = lines(stream)
    assert list(line)[:4] == ["ts", "level", "event", "logger"]
    assert line.pop("ts").endswith("Z")
    assert line == {
        "level": "info", "event": "said", "logger": "surgetank.x", "channel": "c", "count": 3, "key": "k\\xff",
    }  # fmt: skip


def test_loggers_of_libraries_and_warnings_go_the_same_way() -> None:
    stream = io.StringIO()
    oplog.set_up(stream=stream)
    logging.getLogger("aiokafka.consumer").warning("left %s", "group", extra={"node": 1})
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("old", DeprecationWarning, stacklevel=1)
    first, second = lines(stream)
    assert (first["event"], first["level"], first["logger"], first["node"]) == (
        "left group", "warning", "aiokafka.consumer", 1,
    )  # fmt: skip
    assert second["logger"] == "py.warnings"
    assert "DeprecationWarning" in second["event"]


def test_on_a_terminal_it_is_text() -> None:
    stream = Terminal()
    oplog.set_up(stream=stream)
    structlog.get_logger("surgetank.x").info("said", channel="c")
    assert "said" in stream.getvalue()
    assert not stream.getvalue().startswith("{")
    stream = Terminal()
    oplog.set_up(form="json", stream=stream)
    structlog.get_logger("surgetank.x").info("said")
    assert lines(stream)[0]["event"] == "said"


def test_below_the_level_nothing_is_written() -> None:
    stream = io.StringIO()
    oplog.set_up("warning", stream=stream)
    structlog.get_logger("surgetank.x").info("quiet")
    logging.getLogger("asyncio").info("quiet")
    structlog.get_logger("surgetank.x").warning("loud")
    assert [line["event"] for line in lines(stream)] == ["loud"]


@pytest.mark.parametrize("form", ["json", "console"])
def test_no_secret_is_written_wherever_it_stands(form: oplog.Format) -> None:
    stream = io.StringIO()
    oplog.set_up(form=form, stream=stream, secrets=["geheim", 'quo"ted', "geheim-long", "ab"])
    logger = structlog.get_logger("surgetank.x")
    logger.info("with geheim-long inside", corpsecret="s1", url="https://h/x?access_token=s2&a=b", text='a quo"ted b')
    logging.getLogger("aiohttp").error("GET %s", "https://h/x?key=s3")
    try:
        raise ValueError("".join(("ge", "heim")))
    except ValueError:
        logger.exception("failed")
    text = stream.getvalue()
    for secret in ("geheim", "long", "ted", "s1", "s2", "s3"):
        assert secret not in text, (secret, text)
    assert "a=b" in text
    assert "ValueError" in text


def test_a_traceback_shows_no_local_variables() -> None:
    stream = Terminal()
    oplog.set_up(stream=stream)
    try:
        local = "unlisted" + "-value"
        raise ValueError(len(local))
    except ValueError:
        structlog.get_logger("surgetank.x").exception("failed")
    assert "Traceback" in stream.getvalue()
    assert "unlisted-value" not in stream.getvalue()


def test_setting_up_again_replaces_the_handler() -> None:
    first, second = io.StringIO(), io.StringIO()
    oplog.set_up(stream=first)
    oplog.set_up(stream=second)
    structlog.get_logger("surgetank.x").info("once")
    assert first.getvalue() == ""
    assert len(lines(second)) == 1
