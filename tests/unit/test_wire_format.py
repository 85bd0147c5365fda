"""docs/wire-format.md says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

from engine import wire, wire_control
from engine.send import REASONS, Outcome, Send

DOC = (Path(__file__).parents[2] / "docs" / "wire-format.md").read_text()


def table(heading: str, first: str) -> dict[str, str]:
    """First cell -> last cell of the table that begins with the column ``first`` under a heading."""
    section = DOC.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    rows = section.split(f"\n| {first} |")[1].split("\n\n")[0].splitlines()[2:]
    cells = [[cell.strip() for cell in row.strip("|").split(" | ")] for row in rows]
    return {name: row[-1] for row in cells for name in re.findall(r"`([\w-]+)`", row[0])}


def table_row(name: str) -> str:
    return table("Control", "key of a command")[name]


def test_reasons() -> None:
    assert list(table("Reasons", "reason").items()) == list(REASONS.items())


def test_outcomes() -> None:
    assert set(table("Receipts", "outcome")) == set(Outcome)


def test_keys_of_a_send() -> None:
    assert set(table("Sends", "key")) == set(Send.__struct_fields__)


def test_keys_of_a_receipt() -> None:
    assert set(table("Receipts", "key")) == set(wire.Receipt.__struct_fields__)
    assert tuple(table("Receipts", "in `sends`")) == wire.ReceiptSend.__struct_fields__


def test_headers() -> None:
    assert set(table("Headers", "header")) == wire.OURS


def test_registered_and_control() -> None:
    assert set(table("Registered content", "key")) == set(wire.Registered.__struct_fields__)
    assert set(table("Control", "key of a command")) == set(wire_control.Command.__struct_fields__)
    assert set(table("Control", "key of a reply")) == set(wire_control.Reply.__struct_fields__)
    assert set(table("Control", "in `limits`")) == set(wire_control.LimitUse.__struct_fields__)
    assert set(table("Control", "in `why`")) == set(wire_control.Hold.__struct_fields__)
    assert re.findall(r"`(\w+)`", table_row("command")) == list(wire_control.COMMANDS)
