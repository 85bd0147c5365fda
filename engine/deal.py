"""What was used of the limits, dealt out anew when other processes share them than before (shell).

In: the ``limits.db`` of every process there was. Out: one for each there is. Invariant: of every limit, what all of
them have left in any window is at most what the limit has left; a crash in between changes nothing.
Never: beside a process that uses one of these files: their directories are locked meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import structlog

from engine.config import Config, Limit
from engine.errors import LogUnusable
from engine.limits import keep_ms
from engine.send import Tier
from engine.shares import dealt, held_limits, number_of, worker_config, workers
from engine.state.lock import lock
from engine.state.uses import Row, Use, Uses

logger = structlog.get_logger("surgetank.deal")
FILE, RECORD, PENDING = "limits.db", "shares.json", "shares.dealing.json"
AGAIN_S, TRIES = 1.0, 50  # longer than a worker lives without its supervisor
ALONE = "."  # the directory, within `state`, of a process without a supervisor


class Used(msgspec.Struct):
    """Of one limit, by all processes."""

    uses: list[tuple[int, int]] = []  # at ms, how many; oldest first
    open: int = 0


class Sharer(NamedTuple):
    """One process's part in a limit."""

    directory: str
    limit: Limit


Record = dict[str, dict[str, int]]  # by key and directory, the share
Sharers = Mapping[str, Sequence[Sharer]]  # by the limit's key


def shared_by_workers(config: Config) -> Sharers:
    """The processes of [[workers]]."""
    sharers: dict[str, list[Sharer]] = {}
    for worker in workers(config):
        for key, limit in held_limits(worker_config(config, worker), worker.tiers):
            sharers.setdefault(key, []).append(Sharer(f"workers/{worker.name}", limit))
    return sharers


def kept_by_one(config: Config, tiers: Sequence[Tier]) -> Sharers:
    """One process without a supervisor."""
    return {key: [Sharer(ALONE, limit)] for key, limit in held_limits(config, tiers)}


def directories(state: Path) -> list[Path]:
    """Of all processes there were."""
    return [state, *sorted(path for path in (state / "workers").glob("*") if path.is_dir())]


def is_due(state: Path, sharers: Sharers, *, alone: bool = False) -> bool:
    """Whether others kept these limits before, or with other shares. One process ``alone`` has none: what it used
    itself is still there, whatever the numbers are now."""
    if (state / PENDING).exists():
        return True
    if alone:
        return any((directory / FILE).exists() for directory in directories(state) if directory != state)
    return _record(sharers) != _read_record(state)


async def deal_if_due(state: Path, sharers: Sharers, *, alone: bool = False) -> None:
    """Before any of these processes begins. Waits for those of an earlier supervisor to end. Raises LogUnusable."""
    if not is_due(state, sharers, alone=alone):
        return
    held: list[int] = []
    try:
        for directory in directories(state)[1:]:
            held.append(await _locked(directory))  # noqa: PERF401 - those held are let go if one cannot be had
        deal(state, sharers)
        logger.info("what was used of the limits is dealt to those who share them now", limits=len(sharers))
    finally:
        for one in held:
            os.close(one)


async def _locked(directory: Path) -> int:
    for _ in range(TRIES):
        try:
            return lock(directory)
        except LogUnusable as error:
            logger.warning("waiting for a worker of an earlier supervisor", error=str(error))
        await asyncio.sleep(AGAIN_S)
    return lock(directory)


def deal(state: Path, sharers: Sharers) -> None:
    """Whether due or not. Raises LogUnusable, OSError."""
    if (state / PENDING).exists():  # it was written whole, and none of the processes has begun since
        used = msgspec.json.decode((state / PENDING).read_bytes(), type=dict[str, Used])
    else:
        used = _gathered(state)
        _write(state / PENDING, used)
    for directory in directories(state):
        for suffix in ("", "-wal", "-shm"):
            (directory / (FILE + suffix)).unlink(missing_ok=True)
    for name, rows in _parts(used, sharers).items():
        file = Uses(state / name / FILE)
        for key, limit, uses, open_ in rows:
            number = file.number(key)
            file.write([Row(number, keep_ms(limit), use, open_) for use in (*uses, Use(0, 0))])
        file.close()
    _write(state / RECORD, _record(sharers))
    (state / PENDING).unlink()
    _sync(state)  # found again after a power cut, it would undo what was used since


def _gathered(state: Path) -> dict[str, Used]:
    found: dict[str, Used] = {}
    for directory in directories(state):
        if (directory / FILE).exists():
            uses = Uses(directory / FILE)
            for key, (all_, open_) in uses.everything().items():
                known = found.get(key, Used())
                found[key] = Used(sorted([*known.uses, *all_]), known.open + open_)
            uses.close()
    return found


Part = tuple[str, Limit, list[Use], int]


def _parts(used: Mapping[str, Used], sharers: Sharers) -> dict[str, list[Part]]:
    """What each directory is dealt."""
    parts: dict[str, list[Part]] = {}
    for key, among in sharers.items():
        total = used.get(key, Used())
        columns = list(_columns(total, [number_of(limit) for _, limit in among]))
        for index, (directory, limit) in enumerate(among):
            mine = [Use(at_ms, column[index]) for at_ms, column in columns[:-1] if column[index]]
            parts.setdefault(directory, []).append((key, limit, mine, columns[-1][1][index]))
    return parts


def _columns(total: Used, shares: Sequence[int]) -> Iterator[tuple[int, list[int]]]:
    """Of each use what is whose; last, of what is open."""
    count, before = 0, [0] * len(shares)
    for at_ms, amount in (*total.uses, (0, total.open)):
        count += amount
        now = dealt(count, shares)
        yield at_ms, [new - old for new, old in zip(now, before, strict=True)]
        before = now


def _record(sharers: Sharers) -> Record:
    return {key: {one.directory: number_of(one.limit) for one in among} for key, among in sharers.items()}


def _read_record(state: Path) -> Record | None:
    with contextlib.suppress(FileNotFoundError, msgspec.MsgspecError):  # then it is as if it were another one
        return msgspec.json.decode((state / RECORD).read_bytes(), type=Record)
    return None


def _write(path: Path, value: object) -> None:
    """All of it, on disk, or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    with new.open("wb") as file:
        file.write(msgspec.json.encode(value))
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
    _sync(path.parent)


def _sync(directory: Path) -> None:
    """Its names are on disk."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
