"""What every test may ask for."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from secrets import randbits
from typing import Any
from uuid import uuid4

import hypothesis
import pytest

import ext.schedule
from bench.kafka import Broker, Unavailable

# Nothing is timed inside a test: Hypothesis's 200 ms an example would fail where the machine is busy.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")
SEEDS = 1000

# A shell's background job ignores SIGINT, and so would the processes that tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    """tests/sim: one story again, or another number of them."""
    parser.addoption("--seed", type=int, default=None, help="tests/sim: tell this story alone")
    parser.addoption("--seeds", type=int, default=SEEDS, help="tests/sim: tell so many stories (default: %(default)s)")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Hypothesis's seed is drawn here, before its plugin and the worker processes ask for it, so that it can be told.

    ``make test-debug`` and ``make test-sanitize`` mean their own builds, not the one beside the sources."""
    if config.option.hypothesis_seed is None:
        config.option.hypothesis_seed = getattr(config, "workerinput", {}).get("seed", str(randbits(32)))
    for kind in ("debug", "sanitize"):
        name, used = f"SURGETANK_{kind.upper()}", ext.schedule.__file__ or ""
        if os.environ.get(name) == "1" and f"build/{kind}/" not in used:
            raise pytest.UsageError(f"{name} is set and the core is {used}: see make test-{kind}")


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """A worker process of pytest-xdist draws from the same seed."""
    node.workerinput["seed"] = node.config.option.hypothesis_seed


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Also of a run that passed: what it looked at can be looked at again."""
    terminalreporter.write_line(f"Drawn with --hypothesis-seed={config.option.hypothesis_seed}")


def started(broker: Broker) -> Broker:
    """The broker, started. None on this machine: the test is skipped, but fails where CI is set."""
    try:
        broker.start()
    except Unavailable as error:
        if os.environ.get("CI"):
            pytest.fail(f"no Kafka: {error}", pytrace=False)
        pytest.skip(f"no Kafka: {error}")
    return broker


@pytest.fixture(scope="session")
def kafka_broker() -> Iterator[Broker]:
    """A real Apache Kafka, started once a run."""
    with started(Broker()) as broker:
        yield broker


@pytest.fixture(scope="module")
def mortal_broker() -> Iterator[Broker]:
    """One that tests may kill."""
    with started(Broker()) as broker:
        yield broker


@pytest.fixture(scope="session")
def kafka_bootstrap(request: pytest.FixtureRequest) -> str:
    """Address of a real Kafka: SURGETANK_TEST_BOOTSTRAP, or a broker of our own."""
    given = os.environ.get("SURGETANK_TEST_BOOTSTRAP")
    if given:
        return given
    broker: Broker = request.getfixturevalue("kafka_broker")
    return broker.bootstrap


@pytest.fixture
def topic() -> str:
    """A name nobody else uses."""
    return f"t-{uuid4().hex}"
