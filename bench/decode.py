"""What decoding costs: the typed decoder behind its scan, against msgpack's C unpacker with checks written by hand.

``python -m bench decode [--json FILE]``: records of one recipient (about 240 bytes) in both encodings, and of 10,000
recipients. Each number is the best of several runs, us a record; the hand-written way checks less (no depth, no UTF-8
inside, no sizes), so it flatters itself.
"""

from __future__ import annotations

import argparse
import json
import sys
import timeit
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import msgspec

from engine.decode import decode, decode_many
from engine.errors import Reject
from engine.send import Origin, Outcome, Send
from engine.wire import ReceiptFacts, ReceiptSend, encode_receipts, receipt_parts
from ext.scan import Scanner

SMALL_LOOPS, LARGE_LOOPS, REPEATS = 2_000, 10, 50  # short runs, many: one falls between the disturbances
RUN = 500  # records of a poll
NAMES = ("account", "tenant", "campaign")
TIMES = ("not_before", "due", "deadline")


def by_hand(value: bytes) -> dict[str, Any]:
    """msgpack's C unpacker, limits set, then a check a key."""
    send = msgpack.unpackb(value, strict_map_key=True, max_array_len=10_000, max_map_len=10_000, max_str_len=65_536)
    if not isinstance(send, dict) or send.get("v", 1) != 1:
        raise Reject("not_a_map")
    for key in ("id", "channel"):
        if not isinstance(send.get(key), str) or not 0 < len(send[key].encode()) <= 128:
            raise Reject(f"{key}_invalid")
    for key in NAMES:
        if key in send and (not isinstance(send[key], str) or len(send[key].encode()) > 128):
            raise Reject(f"{key}_invalid")
    for key in TIMES:
        if key in send and (not isinstance(send[key], int) or send[key] < 0):
            raise Reject(f"{key}_invalid")
    if not isinstance(send.get("content"), dict):
        raise Reject("content_invalid")
    to = send.get("to")
    if not isinstance(to, list) or not 0 < len(to) <= 10_000:
        raise Reject("to_invalid")
    for recipient in to:
        name = recipient if isinstance(recipient, str) else recipient["id"]
        if not isinstance(name, str) or not 0 < len(name.encode()) <= 128:
            raise Reject("recipient_invalid")
    return send


def a_send(recipients: int) -> dict[str, Any]:
    """With one recipient about 240 bytes of msgpack."""
    return {
        "id": "order-0012345",
        "channel": "wecom-notice",
        "account": "corp-a",
        "tenant": "team-7",
        "campaign": "spring-sale",
        "to": [f"user-{n:07}" for n in range(recipients)],
        "content": {"type": "text", "text": "Your parcel is at the door; the code is 4711. " * 2},
    }


def best_us(work: Callable[[], object], loops: int) -> float:
    """The least disturbed of several runs."""
    return min(timeit.repeat(work, number=loops, repeat=REPEATS)) / loops * 1e6


def measure() -> dict[str, float]:
    """All numbers, by name."""
    small, large = a_send(1), a_send(10_000)
    packed, text = msgpack.packb(small), json.dumps(small, separators=(",", ":")).encode()
    packed_large = msgpack.packb(large)
    bad = msgpack.packb(small | {"to": [""]})
    scan = Scanner(Send.__struct_fields__).scan
    typed = msgspec.msgpack.Decoder(Send).decode
    run = [packed] * RUN
    return {
        f"msgpack {len(packed)} B: decode": best_us(lambda: decode(packed), SMALL_LOOPS),
        f"msgpack {len(packed)} B: decode_many": best_us(lambda: decode_many(run), SMALL_LOOPS // RUN) / RUN,
        f"msgpack {len(packed)} B: of it the scan": best_us(lambda: scan(packed), SMALL_LOOPS),
        f"msgpack {len(packed)} B: of it the typed decoder": best_us(lambda: typed(packed), SMALL_LOOPS),
        f"msgpack {len(packed)} B: C unpacker alone": best_us(lambda: msgpack.unpackb(packed), SMALL_LOOPS),
        f"msgpack {len(packed)} B: C unpacker + checks by hand": best_us(lambda: by_hand(packed), SMALL_LOOPS),
        f"JSON {len(text)} B: decode": best_us(lambda: decode(text), SMALL_LOOPS),
        f"JSON {len(text)} B: json.loads alone": best_us(lambda: json.loads(text), SMALL_LOOPS),
        "refused (a recipient's id is empty): decode_many": best_us(lambda: decode_many([bad]), SMALL_LOOPS),
        "10,000 recipients: decode": best_us(lambda: decode(packed_large), LARGE_LOOPS),
        "10,000 recipients: C unpacker + checks by hand": best_us(lambda: by_hand(packed_large), LARGE_LOOPS),
        "receipts, a send": receipts_us(),
    }


def receipts_us() -> float:
    """Encoding, in one record of 1,000 sends."""
    facts = ReceiptFacts(
        tier="basic",
        channel="wecom-notice",
        account="corp-a",
        tenant="team-7",
        campaign="spring-sale",
        outcome=Outcome.ACCEPTED,
        code="0",
        reason="",
        batch="b-1",
        platform_id="m-1",
        at=1_790_000_000_000,
    )
    numbers = range(1_000)

    def encode() -> None:
        encode_receipts(
            facts,
            receipt_parts([ReceiptSend(f"o-{n}", Origin("surgetank.basic", 3, n), None, 1, 250) for n in numbers]),
        )

    return best_us(encode, LARGE_LOOPS) / len(numbers)


def main(argv: list[str]) -> int:
    """Print the numbers, and write them when asked to."""
    parser = argparse.ArgumentParser(prog="python -m bench decode", description="What decoding costs, us a record.")
    parser.add_argument("--json", type=Path, help="also write the numbers there")
    options = parser.parse_args(argv)
    numbers = measure()
    for name, us in numbers.items():
        sys.stdout.write(f"{us:10.2f} us  {name}\n")
    if options.json:
        options.json.write_text(json.dumps({"us": numbers}, indent=1) + "\n")
    return 0
