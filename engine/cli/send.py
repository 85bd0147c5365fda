"""``surgetank send``: JSONL or CSV into the log."""

from __future__ import annotations

import asyncio
import io
import os
import queue
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import click
import msgspec
import uvloop
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from engine import drivers
from engine.admit import Channel, address, prepare
from engine.cli.common import config_option, json_option, opened_log, tell
from engine.cli.input import COLUMNS, Format, Line, read_lines
from engine.config import Config, load, tier_policy
from engine.decode import unknown_keys
from engine.errors import LogUnavailable, Reject
from engine.logs import Log, Record
from engine.send import REASONS, Send, Tier

BATCH = 1_000
BATCH_BYTES = 2 << 20
LINGER_S = 0.2  # a trickle on standard input is sent this often
READ_AHEAD = 64  # lines; each may have 2 MiB
RETRIES_S = (0.5, 1.0, 2.0, 4.0)
TURNS_PER_S = 10  # with --rate

CELLS = "; ".join(f"{name}: {meaning}" for name, meaning in COLUMNS.items())
EPILOG = f"CSV columns: {CELLS}; data.NAME: a template value of the row's recipients. Empty cells are left out."
Lines = queue.Queue[Line | Exception | None]  # an error ends it, and so does None


class Totals(msgspec.Struct):
    """What became of the input; ``--json`` prints it."""

    tier: str
    topic: str
    sent: int = 0
    recipients: int = 0
    bytes: int = 0
    refused: int = 0
    unknown_keys: int = 0
    dry_run: bool = False
    seconds: float = 0.0


@click.command(epilog=EPILOG)
@config_option
@click.argument("tier", type=click.Choice([tier.label for tier in Tier]))
@click.argument("inputs", nargs=-1, metavar="[INPUT]...", type=click.Path(exists=True, dir_okay=False, allow_dash=True))
@click.option("--format", "form", type=click.Choice(["auto", "jsonl", "csv"]), default="auto", show_default=True,
              help="auto: by the file's name; standard input is jsonl.")  # fmt: skip
@click.option("--topic", help="One of the tier's topics. Default: its first.")
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), help="At most so many sends a second.")
@click.option("--strict", is_flag=True, help="Stop at the first refused line; those before it are sent.")
@click.option("--dry-run", is_flag=True, help="Check every line, send nothing.")
@json_option
@click.pass_context
def send(
    ctx: click.Context, config_path: str, tier: str, inputs: tuple[str, ...], form: str, topic: str | None,
    rate: float | None, strict: bool, dry_run: bool, as_json: bool,
) -> None:  # fmt: skip
    """Put sends into the log, for TIER. INPUT: files, or - for standard input (the default).

    Every line is checked as the engine will check it; a refused one is told as FILE:LINE: reason: detail and not sent.
    Exit code 1 when any was refused. Sending a file again is safe within the dedupe window: ids seen are not delivered
    twice.

    \b
    Examples:
      surgetank send -c surgetank.toml basic sends.jsonl
      surgetank send -c surgetank.toml system --dry-run alerts.csv
      generate | surgetank send -c surgetank.toml template --rate 5000 --json
    """
    config = load(config_path)
    topics = tier_policy(config, Tier[tier.upper()]).topics
    if topic is not None and topic not in topics:
        raise click.UsageError(f"{topic!r} is not a topic of {tier}; valid are {', '.join(topics)}")
    totals = Totals(tier, topic or topics[0], dry_run=dry_run)
    with _progress(inputs) as progress:
        uvloop.run(_Sending(config, totals, progress, strict).run(_read_ahead(inputs or ("-",), form), rate))
    tell(totals, _text(totals), as_json)
    ctx.exit(1 if totals.refused else 0)


class _Sending:
    """One run of the command."""

    def __init__(self, config: Config, totals: Totals, progress: Progress, strict: bool) -> None:
        self._config = config
        self._totals = totals
        self._progress = progress
        self._strict = strict
        self._stopped = False
        self._channels = {name: _channel(config, name) for name in config.channels}

    async def run(self, lines: Lines, rate: float | None) -> None:
        """Check and append until the input ends. Raises LogUnavailable when the log stays away."""
        started = time.monotonic()
        if self._totals.dry_run:
            await self._all(None, lines, rate)
        else:
            async with opened_log(self._config, uses=[self._totals.topic]) as log:
                await self._all(log, lines, rate)
        self._totals.seconds = round(time.monotonic() - started, 3)

    async def _all(self, log: Log | None, lines: Lines, rate: float | None) -> None:
        started = time.monotonic()
        most = BATCH if rate is None else min(BATCH, max(1, int(rate / TURNS_PER_S)))
        while not self._stopped:
            batch, ended = await asyncio.to_thread(_take, lines, most)
            good = self._checked(batch)
            if good and log is not None:
                await _append(log, [self._record(line, send) for line, send in good])
            self._count(batch, good)
            if isinstance(ended, Exception):
                raise ended
            if ended:
                return
            if rate is not None:
                await asyncio.sleep(max(0.0, started + self._totals.sent / rate - time.monotonic()))

    def _checked(self, batch: Sequence[Line]) -> list[tuple[Line, Send]]:
        """What may be sent; the others are told."""
        good: list[tuple[Line, Send]] = []
        for line in batch:
            try:
                if isinstance(line.send, Reject):
                    raise line.send
                channel, _ = address(line.send, self._channels)
                prepare(line.send, channel, {})  # content registered elsewhere is for the engine to check
                good.append((line, line.send))
            except Reject as reject:
                self._totals.refused += 1
                click.echo(f"{line.file}:{line.number}: {_words(reject)}", err=True)
                if self._strict:
                    self._stopped = True
                    break
        return good

    def _record(self, line: Line, send: Send) -> Record:
        return Record(self._totals.topic, line.value, (send.tenant or send.id).encode())

    def _count(self, batch: Sequence[Line], good: Sequence[tuple[Line, Send]]) -> None:
        totals = self._totals
        totals.sent += len(good)
        for line, send in good:
            totals.recipients += len(send.to)
            totals.bytes += len(line.value)
            totals.unknown_keys += unknown_keys(line.value)
        if batch:
            for task in self._progress.tasks:
                self._progress.update(task.id, completed=batch[-1].end, sent=totals.sent, refused=totals.refused)


def _channel(config: Config, name: str) -> Channel:
    channel = config.channels[name]
    driver = drivers.load(channel.driver, name)(name, channel)
    return Channel(name, 0, driver, dict.fromkeys(channel.accounts, 0), repeats=True)


async def _append(log: Log, records: Sequence[Record]) -> None:
    """Append, again where the log was away for a moment: what was written twice has one id, and is delivered once."""
    for wait_s in RETRIES_S:
        try:
            return await log.append(records)
        except LogUnavailable as error:
            click.echo(f"surgetank: {error}; again in {wait_s:g} s", err=True)
            await asyncio.sleep(wait_s)
    return await log.append(records)


def _read_ahead(inputs: Sequence[str], form: str) -> Lines:
    """Read on a thread of its own: a pipe that has nothing to say must not hold up what is already read."""
    lines: Lines = queue.Queue(READ_AHEAD)

    def read() -> None:
        try:
            for line in _lines(inputs, form):
                lines.put(line)
        except Exception as error:  # noqa: BLE001 - raised again on the command's own thread, which waits for an end
            lines.put(error)
        else:
            lines.put(None)

    threading.Thread(target=read, name="input", daemon=True).start()
    return lines


def _lines(inputs: Sequence[str], form: str) -> Iterator[Line]:
    """Every line of every input; ``end`` counts through all of them."""
    before = 0
    for name in inputs:
        kind: Format = "csv" if form == "csv" or (form == "auto" and name.lower().endswith(".csv")) else "jsonl"
        with _open(name) as stream:
            for line in read_lines("<stdin>" if name == "-" else name, stream, kind):
                yield line._replace(end=before + line.end)
        before += _size(name)


def _open(name: str) -> BinaryIO:
    """The input; standard input under a file object of its own: the interpreter aborts when it ends, by Ctrl-C for
    one, while a thread still reads from its own ``sys.stdin``."""
    if name != "-":
        return Path(name).open("rb")
    try:
        return os.fdopen(os.dup(sys.stdin.fileno()), "rb")
    except io.UnsupportedOperation:  # somebody in this process put an object there that is no file
        return sys.stdin.buffer


def _take(lines: Lines, most: int) -> tuple[list[Line], bool | Exception]:
    """The next lines, whatever is there after LINGER_S; and True, or what went wrong, when there will be no more."""
    batch: list[Line] = []
    size, until = 0, time.monotonic() + LINGER_S
    while len(batch) < most and size < BATCH_BYTES:
        try:
            line = lines.get(timeout=max(0.0, until - time.monotonic()))
        except queue.Empty:
            break
        if line is None:
            return batch, True
        if isinstance(line, Exception):
            return batch, line
        batch.append(line)
        size += len(line.value)
    return batch, False


def _size(name: str) -> int:
    return 0 if name == "-" else Path(name).stat().st_size


def _progress(inputs: Sequence[str]) -> Progress:
    """A bar on a terminal, nothing elsewhere."""
    console = Console(stderr=True)
    total = sum(map(_size, inputs)) or None
    columns = [SpinnerColumn(), BarColumn(), TextColumn("{task.fields[sent]:,} sent, {task.fields[refused]:,} refused")]
    progress = Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal)
    progress.add_task("", total=total, sent=0, refused=0)
    return progress


def _words(reject: Reject) -> str:
    """The reason, what it means where the detail does not say it."""
    return f"{reject.reason}: {reject.detail or REASONS[reject.reason]}"


def _text(totals: Totals) -> str:
    verb = "would send" if totals.dry_run else "sent"
    text = f"{verb} {totals.sent:,} sends to {totals.recipients:,} recipients on {totals.topic}"
    if totals.refused:
        text += f"; {totals.refused:,} lines refused"
    if totals.unknown_keys:
        text += f"; {totals.unknown_keys:,} keys mean nothing in this version and will be ignored"
    return text
