"""Dead letters by the command line: looked at, sent again, given up."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from engine.config import load
from engine.logs.open import open_log
from engine.wire import Receipt, decode_receipt
from tests.integration.test_cli import WITHIN_S, Engine, Gateway, config, engine, gateway, line, run

__all__ = ["config", "engine", "gateway"]  # fixtures


async def receipts(path: Path, count: int) -> list[Receipt]:
    """The first so many."""
    settings = load(path)
    log = open_log(settings.log, state=settings.state, engine=False)
    await log.start()
    reader = await log.reader([f"{settings.log.prefix}.receipts"])
    found: list[Receipt] = []
    async with asyncio.timeout(WITHIN_S):
        while len(found) < count:
            for chunk in await reader.poll(100, 0.2):
                found += [decode_receipt(value or b"") for value in chunk.values]
    await log.close()
    return found


async def listed(path: Path, count: int, *options: str) -> Any:
    """What `dead list --json` says once there are so many."""
    async with asyncio.timeout(WITHIN_S):
        while True:
            code, out, err = await run("dead", "list", "-c", path, "--json", *options)
            assert code == 0, err
            document = json.loads(out)
            if document["total"] >= count:
                return document
            await asyncio.sleep(0.1)


async def test_a_letter_is_sent_again_to_those_who_did_not_get_it_and_only_once(
    gateway: tuple[Gateway, str], config: Path, engine: Engine
) -> None:
    gateway[0].refuses = {"u2"}
    text = line("1", ["u2"], campaign="k") + line("2", ["ok", "\u0001"], campaign="l")
    assert (await run("send", "-c", config, "system", input=text))[0] == 0
    document = await listed(config, 2)
    assert document["by_reason"] == {"http_401": 1, "recipient_forbidden": 1}
    letter = next(one for one in document["letters"] if one["campaign"] == "k")
    assert (letter["id"], letter["recipients"], letter["attempts"], letter["channel"]) == ("1", 1, 1, "partner")
    code, out, _ = await run("dead", "show", "-c", config, letter["place"])
    assert code == 0
    shown = json.loads(out)
    assert (shown["record"]["to"], shown["hop"], shown["headers"]["surgetank-attempts"]) == (["u2"], 0, "1")

    gateway[0].refuses = set()
    code, out, _ = await run("dead", "replay", "-c", config, "--campaign", "k", "--dry-run", "--json")
    assert (code, json.loads(out)) == (0, {"letters": 1, "recipients": 1, "left": 0, "dry_run": True})
    assert gateway[0].got == ["ok"]
    assert (await run("dead", "replay", "-c", config, letter["place"]))[0] == 0
    await gateway[0].until(2)
    assert (await run("dead", "replay", "-c", config, letter["place"]))[0] == 0, "once more, which must do nothing"
    assert (await run("send", "-c", config, "system", input=line("3", ["last"])))[0] == 0
    await gateway[0].until(3)
    assert gateway[0].got == ["ok", "u2", "last"]
    told = {(r.outcome.value, s.id) for r in await receipts(config, 5) for s in r.sends}
    assert told == {("dead", "1"), ("accepted", "1"), ("dead", "2"), ("accepted", "2"), ("accepted", "3")}
    assert await engine.stop() == 0


async def test_of_a_send_partly_dead_only_the_dead_part_is_sent_again(
    gateway: tuple[Gateway, str], config: Path, engine: Engine
) -> None:
    text = line("1", ["a", "b\u0001", "c"])
    assert (await run("send", "-c", config, "basic", input=text))[0] == 0
    (letter,) = (await listed(config, 1))["letters"]
    assert letter["recipients"] == 1
    await gateway[0].until(2)
    code, out, _ = await run("dead", "replay", "-c", config, "--all", "--json")
    assert (code, json.loads(out)["recipients"]) == (0, 1)
    again = (await listed(config, 2))["letters"]
    shown = [json.loads((await run("dead", "show", "-c", config, one["place"]))[1]) for one in again]
    assert sorted((one["hop"], one["positions"], one["origin"]) for one in shown) == [
        (0, [1], shown[0]["origin"]),
        (1, [1], shown[0]["origin"]),
    ]
    assert sorted(gateway[0].got) == ["a", "c"]
    sends = [send for receipt in await receipts(config, 3) for send in receipt.sends]
    assert sorted(list(send.to or ["all"]) for send in sends) == [["a", "c"], ["b\u0001"], ["b\u0001"]]
    assert await engine.stop() == 0


async def test_two_letters_of_one_send_are_two(gateway: tuple[Gateway, str], config: Path) -> None:
    """A send that needs two calls, both refused: each letter is replayed on its own, also after it has died again."""
    await asyncio.to_thread(to_twos, config)
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "engine.cli", "serve", "-c", str(config))
    gateway[0].refuses = {"a", "d"}
    await run("send", "-c", config, "system", input=line("1", ["a", "b", "c", "d", "e"]))
    assert (await listed(config, 2))["total"] == 2
    await gateway[0].until(1)
    gateway[0].refuses = {"d"}
    assert (await run("dead", "replay", "-c", config, "--all"))[0] == 0
    await gateway[0].until(3)
    assert sorted(gateway[0].got) == ["a", "b", "e"]
    assert (await listed(config, 3))["total"] == 3
    gateway[0].refuses = set()
    assert (await run("dead", "replay", "-c", config, "--all"))[0] == 0
    await gateway[0].until(5)
    await run("send", "-c", config, "system", input=line("1", ["z"]) + line("2", ["last"]))
    await gateway[0].until(6)
    assert sorted(gateway[0].got) == ["a", "b", "c", "d", "e", "last"], "everybody once, and the id is taken"
    process.terminate()
    assert await process.wait() == 0


def to_twos(config: Path) -> None:
    config.write_text(config.read_text().replace('driver = "webhook"', 'driver = "webhook"\nbatch = 2'))


async def test_letters_are_chosen_and_purged(gateway: tuple[Gateway, str], config: Path, engine: Engine) -> None:
    await run("send", "-c", config, "basic", input=line("1", ["\u0001"], tenant="t"))
    await run("send", "-c", config, "system", input=line("2", ["\u0001"]))
    await listed(config, 2)
    assert (await listed(config, 1, "--tier", "system"))["total"] == 1
    assert (await listed(config, 1, "--tenant", "t"))["total"] == 1
    assert (await listed(config, 0, "--reason", "other"))["total"] == 0
    assert (await listed(config, 0, "--until", "2020-01-01"))["total"] == 0
    assert (await listed(config, 2, "--since", "2020-01-01T00:00+08:00", "--limit", "1"))["letters"][0]["place"]
    code, out, _ = await run("dead", "list", "-c", config)
    assert code == 0
    assert "2 letters" in out
    code, out, _ = await run("dead", "purge", "-c", config, "--before", "2020-01-01", "--json")
    assert json.loads(out) == {"letters": 0, "dry_run": False}
    code, out, _ = await run("dead", "purge", "-c", config, "--before", "2999-01-01", "--dry-run", "--json")
    assert json.loads(out) == {"letters": 2, "dry_run": True}
    assert (await run("dead", "purge", "-c", config, "--before", "2999-01-01"))[0] == 0
    assert (await listed(config, 0))["total"] == 0
    assert await engine.stop() == 0


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["replay"], 2, "say which"),
        (["list", "--since", "yesterday"], 2, "is not a time such as"),
        (["show", "0:99"], 1, "no letter at 0:99"),
        (["purge"], 2, "--before"),
    ],
)
async def test_what_is_wrong_is_said(config: Path, arguments: list[str], code: int, words: str) -> None:
    got, _, err = await run("dead", arguments[0], "-c", config, *arguments[1:])
    assert got == code
    assert words in err
