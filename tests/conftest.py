"""What every test may ask for."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from bench.kafka import Broker, Unavailable


@pytest.fixture(scope="session")
def kafka_broker() -> Iterator[Broker]:
    """A real Apache Kafka, started once a run. None on this machine: skipped, but a failure where CI is set."""
    broker = Broker()
    try:
        broker.start()
    except Unavailable as error:
        if os.environ.get("CI"):
            pytest.fail(f"no Kafka: {error}", pytrace=False)
        pytest.skip(f"no Kafka: {error}")
    yield broker
    broker.stop()


@pytest.fixture(scope="session")
def kafka_bootstrap(request: pytest.FixtureRequest) -> str:
    """Address of a real Kafka: SURGETANK_TEST_BOOTSTRAP, or a broker of our own."""
    given = os.environ.get("SURGETANK_TEST_BOOTSTRAP")
    if given:
        return given
    broker: Broker = request.getfixturevalue("kafka_broker")
    return broker.bootstrap
