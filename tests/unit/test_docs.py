"""The documents against the code: metrics, log events, links, commands and bench scenarios that they name exist."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import click
import pytest
from prometheus_client.core import Metric

from bench.__main__ import SCENARIOS
from engine.cli import main
from engine.clock import Clock
from engine.config import load
from engine.logs.open import open_log
from engine.merge_metrics import GAUGES
from engine.metrics import Snapshot
from engine.pipeline import Pipeline
from engine.send import Tier
from engine.supervise_watch import Watch
from engine.topics import topic_specs

ROOT = Path(__file__).parents[2]
DOCS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()
CONFIG = """
state = "state"
[log]
path = ":memory:"
partitions = 1
[tiers.basic]
pacing = "asap"
[channels.partner]
driver = "webhook"
base_url = "http://127.0.0.1:9/none"
[http]
metrics = ""
admin = ""
"""
IN_FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def text_of(path: Path) -> str:
    """Without code blocks: links and headings are what is left."""
    return IN_FENCE.sub("", path.read_text())


def section(heading: str) -> str:
    """What stands in operations.md below a heading of the second level."""
    return OPERATIONS.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]


def rows(text: str) -> list[list[str]]:
    """Cells of the tables' rows, heads left out."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line[1:-1].split("|")] for line in lines]
    return [row for number, row in enumerate(cells) if number > 1 and not row[0].startswith("---")]


# --- metrics


@pytest.fixture
async def families(tmp_path: Path) -> list[Metric]:
    """What a started pipeline tells, with one observation of what only shows once something happened."""
    path = tmp_path / "c.toml"
    path.write_text(CONFIG)
    config = load(path)
    log = open_log(config.log, state=config.state, engine=True)
    await log.start()
    await log.create_topics(topic_specs(config))
    pipeline = Pipeline(config, list(Tier), log, Clock())
    await pipeline.start()
    try:
        pipeline.counters.call_took(Tier.BASIC, "partner", 1)
        pipeline.counters.end_to_end[Tier.BASIC, "partner"].observe(1, 1)
        return list(Snapshot(pipeline).collect())
    finally:
        await pipeline.stop()
        await log.close()


def exported(family: Metric) -> str:
    return f"{family.name}_total" if family.type == "counter" else family.name


async def test_every_metric_is_documented_and_every_documented_one_exists(families: list[Metric]) -> None:
    told = {exported(family): family.type for family in families}
    documented = {row[0].strip("`"): row[1] for row in rows(section("Metrics"))}
    assert documented == told


async def test_the_documented_labels_are_those_of_the_samples(families: list[Metric]) -> None:
    documented = {row[0].strip("`"): set(filter(None, row[2].split(", "))) for row in rows(section("Metrics"))}
    checked = set()
    for family in families:
        for sample in family.samples:
            assert set(sample.labels) - {"le"} == documented[exported(family)], sample.name
            checked.add(exported(family))
    # Counters by reason and outcome have no sample before something happened.
    assert len(checked) > len(documented) * 0.7


def test_how_the_gauges_of_several_workers_are_merged_is_documented() -> None:
    words = {"the largest": max, "the smallest": min}
    told = [row for row in rows(section("Several workers")) if len(row) == 2 and not row[0].startswith("`/")]
    documented = {name: words.get(row[1]) for row in told for name in re.findall(r"`(\w+)`", row[0])}
    assert documented == {name: way if way in (max, min) else None for name, way in GAUGES.items()}


async def test_what_makes_no_sense_as_a_sum_over_workers_is_none(families: list[Metric]) -> None:
    """Ages, times, shares and what is always 1."""
    apart = ("_seconds", "_share", "_ratio", "_info", "_state", "_difference_recipients")
    gauges = {family.name for family in families if family.type == "gauge" and family.name.endswith(apart)}
    assert len(gauges) > 3
    assert gauges <= set(GAUGES)


def test_the_supervisors_own_metrics_are_documented() -> None:
    told = {exported(family): family.type for family in Watch([]).collect()}
    documented = {row[0].strip("`"): row[1] for row in rows(section("Several workers")) if len(row) == 4}
    assert documented.pop("metric") == "type"  # the head: this section has several tables
    assert documented == told


def test_every_queue_state_is_documented() -> None:
    source = (ROOT / "engine" / "metrics.py").read_text()
    states = set(re.findall(r'"(\w+)"', re.search(r"for state in \(([^)]*)\)", source)[1]))  # type: ignore[index]
    states |= set(re.findall(r'add_metric\(\[tier\.label, "(\w+)"\]', source))
    row = next(row for row in rows(section("Metrics")) if row[0] == "`surgetank_queue_recipients`")
    assert states == set(re.findall(r"`(\w+)`", row[3])) - {"not_before"}


# --- log events


def events() -> set[str]:
    """First arguments of every logger's calls in the engine's own modules (not those of the two logs)."""
    found = set()
    for path in [*(ROOT / "engine").glob("*.py"), *(ROOT / "engine" / "cli").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and isinstance(node.func.value, ast.Name)
                and node.func.value.id == "logger"
                and node.args
                and isinstance(node.args[0], ast.Constant)
            ):
                found.add(str(node.args[0].value))
    return found


def test_every_documented_log_event_exists() -> None:
    documented = {event for row in rows(section("Log events")) for event in re.findall(r"`([^`]+)`", row[0])}
    assert len(documented) > 10
    assert documented <= events()


# --- links


def slug(heading: str) -> str:
    """The anchor of a heading, as forges make it."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def links() -> Iterator[tuple[Path, str]]:
    for path in DOCS:
        for target in re.findall(r"\]\(([^)\s]+)\)", text_of(path)):
            if not re.match(r"[a-z]+:", target):
                yield path, target


@pytest.mark.parametrize(("path", "target"), list(links()), ids=lambda value: getattr(value, "name", value))
def test_every_relative_link_resolves(path: Path, target: str) -> None:
    name, _, anchor = unquote(target).partition("#")
    file = (path.parent / name).resolve() if name else path
    assert file.is_relative_to(ROOT)
    assert file.exists()
    if anchor:
        headings = re.findall(r"^#+ (.+)$", text_of(file), re.MULTILINE)
        assert anchor in {slug(heading) for heading in headings}


# --- commands


def commands(program: str) -> set[str]:
    """Lines of the documents that begin with ``program``: in code blocks, and between backticks."""
    found = set()
    for path in DOCS:
        text = path.read_text()
        joined = text.replace("\\\n", " ")
        found |= {line.strip() for line in joined.splitlines() if line.strip().startswith(f"{program} ")}
        for span in re.findall(r"`([^`]+)`", IN_FENCE.sub("", text)):
            words = " ".join(span.split())
            if words.startswith(f"{program} "):
                found.add(words)
    return found


def resolve(words: list[str]) -> tuple[click.Command, list[str]]:
    """The command that the words name, and the words after its name."""
    command: click.Command = main
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        assert words[0] in command.commands, f"no command {words[0]!r}; there are {', '.join(command.commands)}"
        command, words = command.commands[words[0]], words[1:]
    return command, words


@pytest.mark.parametrize("line", sorted(commands("surgetank")))
def test_every_command_named_exists_with_its_options(line: str) -> None:
    words = shlex.split(line.split(" | ")[0].split(" > ")[0], comments=True)[1:]
    if words and not (words[0].isascii() and words[0].isalpha()) and not words[0].startswith("-"):
        pytest.skip("a sentence about the project, not a command")
    command, rest = resolve(words)
    options = {name for parameter in command.params for name in parameter.opts} | {"--help", "-h"}
    assert {word.partition("=")[0] for word in rest if re.match(r"--?[a-z]", word)} <= options


def test_the_commands_named_are_found_at_all() -> None:
    named = {
        resolve(shlex.split(line)[1:])[0].name for line in commands("surgetank") if line.split()[1] in main.commands
    }
    assert {"serve", "send", "check", "show", "create", "cancel"} <= named


@pytest.mark.parametrize("line", sorted(commands("python -m bench") | commands(".venv/bin/python -m bench")))
def test_every_bench_scenario_named_exists(line: str) -> None:
    name = line.split("bench ", 1)[1].split()[0]
    assert name in SCENARIOS or name == "SCENARIO"


def test_every_bench_scenario_is_documented() -> None:
    headings = set(re.findall(r"^## (\w+)$", (ROOT / "docs" / "benchmarks.md").read_text(), re.MULTILINE))
    assert set(SCENARIOS) <= headings


def test_every_make_target_named_exists() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {word for path in DOCS for word in re.findall(r"(?:`|^)make ([a-z-]+)", path.read_text(), re.MULTILINE)}
    assert {"demo", "test"} <= named <= targets
