"""``surgetank audit``: what stands on the log, joined: missing, repeated, late, unexplained."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import click
import msgspec
import uvloop
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn

from engine.audit import KINDS, Audit, Finding, Sums, Window
from engine.audit_read import Reading
from engine.audit_runs import Runs
from engine.cli.common import config_option, duration, json_option, opened_log, tell
from engine.clock import NS_PER_MS, Clock
from engine.config import Config, Duration, load

LATEST_MS = 1 << 62
SHOWN = 20  # findings of a kind, as text
MOST = 1_000  # of a kind, in the JSON document; all of them: --ids


def moment(text: str) -> int:
    """ms since the epoch of "2026-11-24T08:00+08:00" (without a zone: UTC), or of a duration ago, "2h"."""
    try:
        return Clock().wall_ms() - Duration.parse(text) // NS_PER_MS
    except ValueError:
        pass
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise click.BadParameter(f'{text!r} is neither a time such as "2026-11-24T08:00+08:00" nor "2h" ago') from None
    return round((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() * 1000)


@click.command()
@config_option
@click.option("--from", "since", type=moment, default=None, metavar="TIME",
              help="Judge what was first seen from then on: a time (ISO 8601) or a duration ago, e.g. 2h.")  # fmt: skip
@click.option("--to", "until", type=moment, default=None, metavar="TIME", help="And before then.")
@click.option("--campaign", metavar="C", help="Only sends of this campaign.")
@click.option("--grace", type=duration, default="1s", show_default=True, help="Late is what left so long after due.")
@click.option("--ids", type=click.File("w"), metavar="FILE", help="Write every finding there, one JSON object a line.")
@json_option
@click.pass_context
def audit(
    ctx: click.Context,
    config_path: str,
    since: int | None,
    until: int | None,
    campaign: str | None,
    grace: Duration,
    ids: IO[str] | None,
    as_json: bool,
) -> None:
    """Join inputs, later, dead letters and receipts from the log, and say what does not add up.

    Uses nothing of the engine's counters, and may run beside it. Exit code 1 when something is missing or unexplained;
    repeats and lateness are told. Sorts on disk (TMPDIR), about as much as it reads.

    \b
    Examples:
      surgetank audit -c surgetank.toml --from 2h
      surgetank audit -c surgetank.toml --from 2026-11-24 --to 2026-11-25 --campaign spring --json | jq .missing
    """
    config = load(config_path)
    window = Window(since or 0, until if until is not None else LATEST_MS, campaign)
    findings = _Findings(ids)
    judged = Audit(config.tiers, window, grace // NS_PER_MS, findings.add)
    with tempfile.TemporaryDirectory(prefix="surgetank-audit-") as folder, _progress() as progress:
        reading = uvloop.run(_read(config, Path(folder), progress))
        reading.judge(judged)
    tell(_document(judged, reading, findings), _text(judged, reading, findings), as_json)
    ctx.exit(1 if judged.total.missing or judged.total.unexplained else 0)


class _Findings:
    """The first of each kind, and a file for all."""

    def __init__(self, file: IO[str] | None) -> None:
        self.first: dict[str, list[Finding]] = {kind: [] for kind in KINDS}
        self._file = file

    def add(self, finding: Finding) -> None:
        kept = self.first[finding.kind]
        if len(kept) < MOST:
            kept.append(finding)
        if self._file is not None:
            self._file.write(msgspec.json.encode(finding._asdict()).decode() + "\n")


def _progress() -> Progress:
    columns = (SpinnerColumn(), TextColumn("{task.description}"))
    return Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty())


async def _read(config: Config, folder: Path, progress: Progress) -> Reading:
    task = progress.add_task("reading")

    def say(kind: str, count: int) -> None:
        progress.update(task, description=f"{kind}: {count:,} records read")

    async with opened_log(config) as log:
        reading = Reading(log, config, Runs(folder), say)
        await reading.run()
    progress.update(task, description="judging")
    return reading


def _document(audit: Audit, reading: Reading, findings: _Findings) -> dict[str, Any]:
    places = [
        {"tier": tier, "channel": channel, "campaign": campaign, **_sums(sums)}
        for (tier, channel, campaign), sums in sorted(audit.places.items(), key=lambda item: _order(item[0]))
    ]
    found = {kind: [finding._asdict() for finding in first] for kind, first in findings.first.items()}
    return {"read": dict(reading.read), **_sums(audit.total), "places": places, "findings": found}


def _sums(sums: Sums) -> dict[str, Any]:
    return msgspec.structs.asdict(sums) | {"outcomes": dict(sorted(sums.outcomes.items()))}


def _order(place: Sequence[str | None]) -> tuple[str, ...]:
    return tuple(part or "" for part in place)


def _text(audit: Audit, reading: Reading, findings: _Findings) -> str:
    total = audit.total
    read = ", ".join(f"{count:,} {kind}" for kind, count in reading.read.items())
    lines = [f"read {read or 'nothing'}; {total.recipients:,} recipients judged"]
    lines += [f"  {outcome:<12}{count:>12,}" for outcome, count in sorted(total.outcomes.items())]
    lines += [f"  {name:<12}{getattr(total, name):>12,}" for name in ("waiting", *KINDS)]
    for (tier, channel, campaign), sums in sorted(audit.places.items(), key=lambda item: _order(item[0])):
        told = [f"{getattr(sums, kind):,} {kind}" for kind in KINDS if getattr(sums, kind)]
        if told:
            lines.append(f"{tier or '-'} / {channel or '-'} / {campaign or '-'}: {', '.join(told)}")
    for kind, first in findings.first.items():
        lines += [f"{kind}: {_line(finding)}" for finding in first[:SHOWN]]
        if (more := getattr(total, kind) - SHOWN) > 0:
            lines.append(f"{kind}: {more:,} more (--ids FILE writes all)")
    return "\n".join(lines)


def _line(finding: Finding) -> str:
    who = f"{finding.id or '-'} -> {finding.recipient}" if finding.recipient else finding.id or "-"
    return f"{finding.origin} {who}: {finding.why}"
