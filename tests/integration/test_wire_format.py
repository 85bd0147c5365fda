"""The examples in docs/wire-format.md, run as written against a real Kafka: only address and prefix are swapped."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from engine import wire, wire_control
from engine.decode import decode
from engine.send import Origin, Outcome

pytestmark = pytest.mark.kafka
DOC = (Path(__file__).parents[2] / "docs" / "wire-format.md").read_text()
EXAMPLES = {
    title: (kind, code) for title, kind, code in re.findall(r"### (.+?)\n(?:.*\n)*?```(\w+)\n([\s\S]+?)```", DOC)
}
TOPICS = ("system", "template", "basic", "receipts", "dead", "control", "content")
WAIT_S = 60


class Place:
    """Topics of this run's own."""

    def __init__(self, bootstrap: str) -> None:
        self.bootstrap = bootstrap
        self.prefix = f"t{uuid.uuid4().hex[:8]}"
        self.admin = AdminClient({"bootstrap.servers": bootstrap})
        made = self.admin.create_topics([NewTopic(f"{self.prefix}.{name}", 1, 1) for name in TOPICS])
        for future in made.values():
            future.result(WAIT_S)

    def remove(self) -> None:
        for future in self.admin.delete_topics([f"{self.prefix}.{name}" for name in TOPICS]).values():
            future.result(WAIT_S)

    def run(self, title: str) -> str:
        """What the example prints."""
        kind, code = EXAMPLES[title]
        if kind == "sh" and not shutil.which("kcat"):
            pytest.skip("kcat is not installed")
        code = code.replace("127.0.0.1:9092", self.bootstrap).replace("receipts-reader", self.prefix)
        code = re.sub(r"\bsurgetank\.(?=\w)", f"{self.prefix}.", code)
        shell = [sys.executable, "-c"] if kind == "python" else ["sh", "-ec"]
        ran = subprocess.run([*shell, code], capture_output=True, text=True, timeout=WAIT_S, check=False)
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    def write(self, topic: str, value: bytes, headers: wire.Headers = ()) -> None:
        producer = Producer({"bootstrap.servers": self.bootstrap})
        producer.produce(f"{self.prefix}.{topic}", value, headers=list(headers))
        assert producer.flush(WAIT_S) == 0

    def first(self, topic: str) -> tuple[bytes, bytes | None, dict[str, object]]:
        """Value, key and headers of the topic's first record."""
        consumer = Consumer({"bootstrap.servers": self.bootstrap, "group.id": "none", "enable.auto.commit": False})
        consumer.assign([TopicPartition(f"{self.prefix}.{topic}", 0, 0)])
        message = consumer.poll(WAIT_S)
        consumer.close()
        assert message is not None
        assert message.error() is None
        value = message.value()
        assert value is not None
        return value, message.key(), dict(message.headers() or ())


@pytest.fixture
def place(kafka_bootstrap: str) -> Iterator[Place]:
    place = Place(kafka_bootstrap)
    yield place
    place.remove()


def test_every_example_is_run() -> None:
    source = Path(__file__).read_text()
    assert len(EXAMPLES) == DOC.count("\n### ") == 7
    assert all(f'place.run("{title}")' in source for title in EXAMPLES)


def test_send_with_aiokafka(place: Place) -> None:
    place.run("Send, with aiokafka")
    value, key, _ = place.first("basic")
    assert decode(value).to == ["zhangsan", "lisi"]
    assert key == b"order-4711"


def test_send_with_confluent_kafka(place: Place) -> None:
    place.run("Send with values of each recipient's own, with confluent-kafka")
    send = decode(place.first("template")[0])
    assert [wire.decode_map(r.data)["name"] for r in send.to if not isinstance(r, str)] == ["李", "王"]


def test_send_with_kcat(place: Place) -> None:
    place.run("Send, with kcat")
    value, _, headers = place.first("system")
    assert decode(value).id == "alert-1"
    assert str(headers["traceparent"]).startswith("b'00-")


def test_register_with_kcat(place: Place) -> None:
    place.run("Register a content, with kcat")
    value, key, _ = place.first("content")
    assert wire.content_id(key) == "reminder"
    assert wire.decode_registered(value).fields == {"name": wire.FieldRule(True, 20)}


def test_cancel(place: Place) -> None:
    place.run("Cancel a campaign")
    value, key, _ = place.first("control")
    command = wire_control.decode_command(value)
    assert (command.campaign, command.tenant) == ("parcels", None)
    assert wire_control.encode_command(command) == (key, value)


def test_read_receipts(place: Place) -> None:
    facts = wire.ReceiptFacts(
        tier="basic",
        channel="c",
        account="a",
        tenant="t",
        campaign=None,
        outcome=Outcome.FAILED,
        code="81013",
        reason="",
        batch="b",
        platform_id="",
        at=1,
    )
    sends = [
        wire.ReceiptSend("o-1", Origin("t", 0, 0), None, 1, 5),
        wire.ReceiptSend("o-2", Origin("t", 0, 1), ["u"], 1, 5),
    ]
    for value in wire.encode_receipts(facts, wire.receipt_parts(sends)):
        place.write("receipts", value)
    assert place.run("Read receipts") == "failed 81013 o-1 all None\nfailed 81013 o-2 ['u'] None\n"


def test_look_at_the_dead(place: Place) -> None:
    place.write("dead", b"x", wire.dead_headers("id_missing", "", Origin("t", 0, 7), 0, 0, 5, None))
    assert "surgetank-reason=id_missing" in place.run("Look at what is dead, with kcat")
