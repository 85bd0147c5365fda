"""A Kafka that asks who we are: TLS both ways, SCRAM and PLAIN passwords, over listeners of a real broker."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from bench.kafka import Broker, free_port
from engine.config import LogConfig, Security
from engine.errors import LogUnavailable
from engine.logs import Partition, Position, Record, TopicSpec
from engine.logs.open import open_log
from tests.conftest import started
from tests.contract.log_kit import Listener, poll_until, values

PASSWORD = "not-so-secret"
JAAS = 'org.apache.kafka.common.security.plain.PlainLoginModule required user_app="{}";'
SCRAM = "org.apache.kafka.common.security.scram.ScramLoginModule required;"


class Secure(NamedTuple):
    """A broker with a port for each protocol, and the files a client needs."""

    ports: dict[str, int]
    folder: Path

    def config(self, security: Security, host: str = "127.0.0.1") -> LogConfig:
        return LogConfig(kind="kafka", bootstrap=f"{host}:{self.ports[security.protocol]}", security=security)

    def file(self, name: str) -> str:
        return str(self.folder / name)


def certify(folder: Path, name: str, *more: str) -> None:
    """A certificate that vouches for itself, and its key."""
    openssl = shutil.which("openssl")
    if openssl is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("openssl is not on the PATH")
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-keyout", f"{name}.key", "-out", f"{name}.pem")
    command = [openssl, "req", "-x509", *key, "-days", "2", "-subj", f"/CN={name}", *more]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secure]:
    folder = tmp_path_factory.mktemp("tls")
    certify(folder, "broker", "-nodes", "-addext", "subjectAltName=IP:127.0.0.1")
    certify(folder, "client", "-passout", f"pass:{PASSWORD}")
    (folder / "broker.store").write_text((folder / "broker.key").read_text() + (folder / "broker.pem").read_text())
    ports = {name: free_port() for name in ("SSL", "SASL_PLAINTEXT", "SASL_SSL")}
    properties = {
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(folder / "broker.store"),
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": str(folder / "client.pem"),
        "listener.name.ssl.ssl.client.auth": "required",
        "sasl.enabled.mechanisms": "SCRAM-SHA-512,PLAIN",
    }
    for listener in ("sasl_plaintext", "sasl_ssl"):
        properties[f"listener.name.{listener}.plain.sasl.jaas.config"] = JAAS.format(PASSWORD)
        properties[f"listener.name.{listener}.scram-sha-512.sasl.jaas.config"] = SCRAM
    scram = ("--add-scram", f"SCRAM-SHA-512=[name=app,password={PASSWORD}]")
    with started(Broker(listeners=ports, properties=properties, format=scram)):
        yield Secure(ports, folder)


def with_certificate(secure: Secure) -> Security:
    return Security(
        protocol="SSL",
        ca_file=secure.file("broker.pem"),
        cert_file=secure.file("client.pem"),
        key_file=secure.file("client.key"),
        key_password=PASSWORD,
    )


def with_scram(secure: Secure) -> Security:
    return Security(protocol="SASL_SSL", ca_file=secure.file("broker.pem"), user="app", password=PASSWORD)


def with_plain(_: Secure) -> Security:
    return Security(protocol="SASL_PLAINTEXT", mechanism="PLAIN", user="app", password=PASSWORD)


@pytest.mark.parametrize("who", [with_certificate, with_scram, with_plain])
async def test_everything_a_log_does_works(secure: Secure, who: Callable[[Secure], Security]) -> None:
    topic = who.__name__
    log = open_log(secure.config(who(secure)), state="", engine=True)
    await log.start()
    try:
        await log.create_topics([TopicSpec(topic)])
        await log.append([Record(topic, b"x")])
        consumer = log.consumer(topic, [topic], Listener())
        await consumer.start()
        assert values(await poll_until(consumer, 1)) == {(topic, 0): [b"x"]}
        await consumer.commit({Partition(topic, 0): Position(1)})
        assert await log.committed(topic) == {Partition(topic, 0): Position(1)}
        assert values(await poll_until(await log.reader([topic]), 1)) == {(topic, 0): [b"x"]}
    finally:
        await log.close()


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    """All that aiokafka says, however often."""
    monkeypatch.setattr("engine.logs.kafka_quiet.LINES", 10**9)
    return caplog


async def refused(config: LogConfig, said: pytest.LogCaptureFixture) -> str:
    """Why, as the log of the client has it."""
    log = open_log(config, state="", engine=True)
    with pytest.raises(LogUnavailable):
        await log.start()
    await log.close()
    assert PASSWORD not in said.text
    return said.text


@pytest.mark.parametrize("mechanism", ["SCRAM-SHA-512", "PLAIN"])
async def test_a_wrong_password_is_told(secure: Secure, mechanism: Any, said: pytest.LogCaptureFixture) -> None:
    who = Security(protocol="SASL_PLAINTEXT", mechanism=mechanism, user="app", password="wrong")
    assert "SaslAuthenticationFailed" in await refused(secure.config(who), said)


async def test_a_mechanism_the_broker_does_not_know_is_told(secure: Secure, said: pytest.LogCaptureFixture) -> None:
    who = Security(protocol="SASL_PLAINTEXT", mechanism="SCRAM-SHA-256", user="app", password=PASSWORD)
    assert "UnsupportedSaslMechanism" in await refused(secure.config(who), said)


async def test_a_broker_nobody_vouches_for_is_refused(secure: Secure, said: pytest.LogCaptureFixture) -> None:
    who = Security(protocol="SASL_SSL", user="app", password=PASSWORD)
    assert "self-signed certificate" in await refused(secure.config(who), said)


async def test_a_broker_of_another_name_is_refused(secure: Secure, said: pytest.LogCaptureFixture) -> None:
    config = secure.config(with_scram(secure), host="localhost")
    assert "Hostname mismatch" in await refused(config, said)


async def test_without_the_certificate_the_broker_asks_for(secure: Secure, said: pytest.LogCaptureFixture) -> None:
    await refused(secure.config(Security(protocol="SSL", ca_file=secure.file("broker.pem"))), said)
