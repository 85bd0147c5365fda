"""The embedded log as a file: crashes, other processes, what it refuses, what it forgets."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from engine.clock import Clock
from engine.config import LogConfig, Size
from engine.errors import LogUnavailable, LogUnusable
from engine.logs import Partition, Position, Record, TopicSpec
from engine.logs.open import open_log
from engine.logs.sqlite import SqliteLog
from tests.contract.log_kit import Listener, opening, poll_until, rows, values

Opener = Callable[..., Awaitable[SqliteLog]]
# A process that appends until it is killed, and says which appends were acknowledged.
PRODUCER = """
import asyncio, sys
from engine.logs import Record
from engine.logs.sqlite import SqliteLog

async def main(path, name, most):
    log = SqliteLog(path, engine=False)
    await log.start()
    for n in range(most):
        await log.append([Record("t", b"%s %d %d" % (name, n, k)) for k in range(3)])
        print(n, flush=True)
    await log.close()

asyncio.run(main(sys.argv[1], sys.argv[2].encode(), int(sys.argv[3])))
"""


class SetClock(Clock):
    """Wall time as the test sets it."""

    def __init__(self) -> None:
        self.now_ms = 1_700_000_000_000

    def wall_ms(self) -> int:
        return self.now_ms


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "var" / "log.db")


@pytest.fixture
async def opened(path: str) -> AsyncIterator[Opener]:

    def make(*, engine: bool = True, **keys: Any) -> SqliteLog:
        return SqliteLog(path, engine=engine, **keys)

    async with opening(make) as opener:
        yield opener


def produce(path: str, name: str, most: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", PRODUCER, path, name, str(most)], stdout=subprocess.PIPE)


async def test_what_was_acknowledged_outlives_kill_9(path: str, opened: Opener) -> None:
    producer = produce(path, "p", 1_000_000)
    assert producer.stdout is not None
    try:
        for _ in range(50):
            assert await asyncio.to_thread(producer.stdout.readline)
    finally:
        os.kill(producer.pid, signal.SIGKILL)
    said, _ = await asyncio.to_thread(producer.communicate)
    acknowledged = int(said.splitlines()[-1] if said else 49)

    log = await opened()
    reader = await log.reader(["t"])
    found = rows(await poll_until(reader, 3 * (acknowledged + 1)))
    while not await reader.at_end():
        found += rows(await reader.poll(500, 0.1))
    assert [row[0] for row in found] == list(range(len(found)))
    # All of every acknowledged append, and at most the one under way besides: whole or not at all.
    assert len(found) in (3 * (acknowledged + 1), 3 * (acknowledged + 2))
    assert [row[3] for row in found] == [b"p %d %d" % divmod(n, 3) for n in range(len(found))]


async def test_several_processes_append_to_one_file(path: str, opened: Opener) -> None:
    log = await opened()
    consumer = log.consumer("g", ["t"], Listener())
    await consumer.start()
    producers = [produce(path, f"p{n}", 20) for n in range(3)]
    try:
        found = rows(await poll_until(consumer, 180))
    finally:
        for producer in producers:
            await asyncio.to_thread(producer.communicate)
    assert [producer.returncode for producer in producers] == [0, 0, 0]
    assert [row[0] for row in found] == list(range(180))
    per_producer: dict[bytes, list[bytes]] = {}
    for row in found:
        name, _, rest = (row[3] or b"").partition(b" ")
        per_producer.setdefault(name, []).append(rest)
    assert per_producer == {b"p%d" % p: [b"%d %d" % divmod(n, 3) for n in range(60)] for p in range(3)}


async def test_a_second_engine_is_refused_until_the_first_is_gone(path: str, opened: Opener) -> None:
    first = await opened()
    with pytest.raises(LogUnusable, match=f"held by another engine.*{os.getpid()}"):
        await opened()
    await (await opened(engine=False)).append([Record("t", b"x")])
    await first.close()
    await opened()


async def test_only_the_engine_consumes(opened: Opener) -> None:
    log = await opened(engine=False)
    with pytest.raises(LogUnusable, match="only the engine"):
        await log.consumer("g", ["t"], Listener()).start()


async def test_a_group_has_one_member(opened: Opener) -> None:
    log = await opened()
    first = log.consumer("g", ["t"], Listener())
    await first.start()
    with pytest.raises(LogUnusable, match="has a member already"):
        await log.consumer("g", ["t"], Listener()).start()
    await first.close()
    await log.consumer("g", ["t"], Listener()).start()


def no_sqlite(file: Path) -> None:
    file.write_bytes(b"certainly not a database, but long enough to be read as one" * 100)


def another_programs(file: Path) -> None:
    with sqlite3.connect(file) as db:
        db.execute("CREATE TABLE something (x)")
    db.close()


def newer(file: Path) -> None:
    with sqlite3.connect(file) as db:
        db.execute(f"PRAGMA application_id = {0x53544C47}")
        db.execute("PRAGMA user_version = 99")
    db.close()


@pytest.mark.parametrize(
    ("make", "said"),
    [(no_sqlite, "no SQLite file"), (another_programs, "another program"), (newer, "newer surgetank .schema 99")],
)
async def test_a_file_that_is_not_ours_is_left_alone(tmp_path: Path, make: Callable[[Path], None], said: str) -> None:
    file = tmp_path / "strange.db"
    make(file)
    before = file.read_bytes()
    log = SqliteLog(str(file), engine=True)
    with pytest.raises(LogUnusable, match=said):
        await log.start()
    assert file.read_bytes() == before
    with pytest.raises(LogUnavailable):
        await log.append([Record("t", b"x")])


def wipe_all_but_the_first_page(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[:8_192] + bytes(len(content) - 8_192))


async def test_damage_is_said(path: str, opened: Opener) -> None:
    log = await opened()
    await log.append([Record("t", os.urandom(2_000)) for _ in range(200)])
    await log.close()
    wipe_all_but_the_first_page(Path(path))
    with pytest.raises(LogUnusable, match="damaged"):
        await (await opened()).append([Record("t", b"x")])


async def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LogUnusable, match="cannot be opened"):
        await SqliteLog(str(tmp_path / "file" / "log.db"), engine=True).start()


async def consumed(log: SqliteLog, group: str, offset: int) -> None:
    """Commit ``offset`` of t/0 for the group."""
    consumer = log.consumer(group, ["t"], Listener())
    await consumer.start()
    await consumer.commit({Partition("t", 0): Position(offset)})
    await consumer.close()


async def left(log: SqliteLog, topic: str = "t") -> list[int]:
    """Offsets still in the log."""
    reader = await log.reader([topic])
    found: list[int] = []
    while not await reader.at_end():
        found += [row[0] for row in rows(await reader.poll(500, 0.1))]
    await reader.close()
    return found


async def test_old_records_go_once_every_group_has_read_them(opened: Opener) -> None:
    clock = SetClock()
    log = await opened(retention_ms=1_000, clock=clock)
    for n in range(4):
        await log.append([Record("t", b"%d" % n)])
    await consumed(log, "fast", 4)
    await consumed(log, "slow", 2)
    await log.keep_up()
    assert await left(log) == [0, 1, 2, 3]  # not old yet
    clock.now_ms += 1_001
    await log.append([Record("t", b"4")])
    await log.keep_up()
    assert await left(log) == [2, 3, 4]  # the slow group needs 2 and 3
    await consumed(log, "slow", 4)
    await log.keep_up()
    assert await left(log) == [4]
    clock.now_ms += 1_001
    await consumed(log, "slow", 5)
    await consumed(log, "fast", 5)
    await log.keep_up()
    assert await left(log) == []
    await log.append([Record("t", b"5")])
    assert await left(log) == [5]


async def test_a_topics_own_retention_wins(opened: Opener) -> None:
    clock = SetClock()
    log = await opened(retention_ms=1_000, clock=clock)
    await log.create_topics([TopicSpec("t"), TopicSpec("long", retention_ms=10_000)])
    await log.append([Record("t", b"x"), Record("long", b"x")])
    clock.now_ms += 5_000
    await log.keep_up()
    assert (await left(log), await left(log, "long")) == ([], [0])


async def test_a_file_over_its_size_gives_up_what_was_read(opened: Opener, caplog: pytest.LogCaptureFixture) -> None:
    log = await opened(max_bytes=1 << 20)
    for _ in range(40):
        await log.append([Record("t", os.urandom(100_000))])
    await consumed(log, "g", 30)
    await log.keep_up()
    assert await left(log) == list(range(30, 40))
    assert "was not read yet" in caplog.text
    await consumed(log, "g", 40)
    await log.keep_up()
    assert log.store.size() <= 1 << 20


async def test_the_size_is_what_the_configuration_says(path: str) -> None:
    log = open_log(LogConfig(path=path, max_bytes=Size(1 << 20)), state="", engine=True)
    assert isinstance(log, SqliteLog)
    await log.start()
    for _ in range(20):
        await log.append([Record("t", os.urandom(100_000))])
    await consumed(log, "g", 20)
    await log.keep_up()
    assert log.store.size() <= 1 << 20
    await log.close()


async def test_compaction_keeps_the_newest_of_each_key(opened: Opener) -> None:
    clock = SetClock()
    log = await opened(clock=clock)
    await log.create_topics([TopicSpec("c", compacted=True)])
    await log.append([Record("c", b"%d" % n, key=b"k%d" % (n % 10)) for n in range(1_000)])
    await log.append([Record("c", None, key=b"k0"), Record("c", b"last", key=b"k1")])
    await log.keep_up()
    reader = await log.reader(["c"])
    found = rows(await poll_until(reader, 10))
    assert await reader.at_end()
    assert [(row[0], row[2], row[3]) for row in found] == [
        *((990 + n, b"k%d" % n, b"%d" % (990 + n)) for n in range(2, 10)),
        (1_000, b"k0", None),
        (1_001, b"k1", b"last"),
    ]
    clock.now_ms += 86_400_001
    await log.append([Record("c", b"%d" % n, key=b"new") for n in range(20)])
    await log.keep_up()
    assert {row[2]: row[3] for row in rows(await poll_until(await log.reader(["c"]), 10))} == {
        **{b"k%d" % n: b"%d" % (990 + n) for n in range(2, 10)},
        b"k1": b"last",
        b"new": b"19",
    }


async def test_topics_nobody_created_have_one_partition(opened: Opener) -> None:
    log = await opened()
    await log.append([Record("t", b"x", key=b"a"), Record("t", b"y", key=b"b")])
    assert values(await poll_until(await log.reader(["t"]), 2)) == {("t", 0): [b"x", b"y"]}
    assert await log.check_topics([TopicSpec("t", partitions=1)]) == []


async def test_a_commit_given_up_fails_in_silence(
    path: str, opened: Opener, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("engine.logs.sqlite_store.BUSY_MS", 100)
    log = await opened(engine=True)
    consumer = log.consumer("g", ["t"], Listener())
    await consumer.start()
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(LogUnavailable, match="no commit"):
            await consumer.commit({Partition("t", 0): Position(0)}, timeout_s=0.01)
        with pytest.raises(LogUnavailable, match="locked"):  # what was given up has failed by then
            await log.append([Record("t", b"x")])
    gc.collect()
    assert "never retrieved" not in caplog.text


async def test_a_lock_held_too_long_may_pass(path: str, opened: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.logs.sqlite_store.BUSY_MS", 10)
    log = await opened()
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(LogUnavailable, match="locked"):
        await log.append([Record("t", b"x")])
    other.execute("ROLLBACK")
    other.close()
    await log.append([Record("t", b"y")])
    assert values(await poll_until(await log.reader(["t"]), 1)) == {("t", 0): [b"y"]}


@pytest.mark.parametrize("other", [False, True], ids=["its own", "another process's"])
async def test_a_poll_looks_again_only_for_its_own_topics(
    opened: Opener, monkeypatch: pytest.MonkeyPatch, other: bool
) -> None:
    log = await opened()
    writer = await opened(engine=False) if other else log
    await log.create_topics([TopicSpec("a", 1), TopicSpec("b", 2)])
    reader = await log.reader(["a"])
    views = 0
    read = log.read

    async def counted(*args: Any) -> Any:
        nonlocal views
        views += 1
        return await read(*args)

    monkeypatch.setattr(log, "read", counted)
    waiting = asyncio.create_task(reader.poll(10, 20.0))
    for n in range(30):
        await writer.append([Record("b", b"%d" % n)])
        await asyncio.sleep(0.005)  # longer than another process's append takes to be noticed
    assert 1 <= views <= 2, "at the beginning, and perhaps once for what was there before"
    assert not waiting.done()
    await writer.append([Record("a", b"x")])
    assert values(await waiting) == {("a", 0): [b"x"]}


async def test_lag_counts_what_comes_while_a_partition_is_paused(opened: Opener) -> None:
    log = await opened()
    await log.create_topics([TopicSpec("a", 1)])
    consumer = log.consumer("g", ["a"], Listener())
    await consumer.start()
    await log.append([Record("a", b"0")])
    assert values(await poll_until(consumer, 1)) == {("a", 0): [b"0"]}
    consumer.pause()
    await log.append([Record("a", b"%d" % n) for n in range(3)])
    assert consumer.lag() == {Partition("a", 0): 3}
