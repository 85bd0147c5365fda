"""The house rules that a machine can hold: the path's table, what pure modules may import, which way imports point."""

from __future__ import annotations

import ast
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

import engine
import engine.pipeline

ROOT = Path(engine.__file__).parent
STAGES = re.findall(r"^    (\w+) +(pure|shell) +([\w.]+)", engine.__doc__ or "", re.MULTILINE)
PURE = {
    "errors", "send", "config", "periods", "wire", "decode", "admit", "overload", "settle", "open_sends", "cancelled",
    "arrival", "held", "shares", "suspects", "wire_control", "wire_attempt", "paused", "retry_budget", "begun",
    "weights",
}  # fmt: skip
FORBIDDEN = {"asyncio", "aiokafka", "aiohttp", "time", "random", "prometheus_client", "sqlite3", "socket", "threading"}
# Each layer may import itself and the ones before it.
LAYERS = [
    {
        "errors",
        "send",
        "config",
        "shares",
        "suspects",
        "periods",
        "clock",
        "backoff",
        "wire",
        "merge",
        "retry_budget",
        "time_limit",
        "turns",
    },
    {"decode", "drivers", "logs", "counters", "state", "fence"},
    {"progress", "commit", "overload", "open_sends", "topics", "tokens"},
    {"admit", "arrival", "held", "cancelled", "paused", "weights", "settle"},
    {"mover", "later", "begun"},
    {"attempts", "told", "deliver", "limits", "deal", "frequency", "gates", "record", "content", "probes", "oplog"},
    {"put_off", "dispatch", "control"},
    {"assignment"},
    {"consume", "orders", "why"},
    {"metrics", "pipeline", "audit", "worker", "supervise", "waiting"},
    {"cli"},
]


def imports(path: Path) -> set[str]:
    """Modules imported at run time (an `if TYPE_CHECKING` block is for the reader)."""
    found: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        for child in [node] if not isinstance(node, ast.If) else []:
            if isinstance(child, ast.Import):
                found |= {alias.name for alias in child.names}
            elif isinstance(child, ast.ImportFrom) and child.module:
                found |= {child.module} | {f"{child.module}.{alias.name}" for alias in child.names}
    return found


def module_files() -> list[Path]:
    return sorted(ROOT.rglob("*.py"))


def test_the_table_names_every_stage_of_the_path_in_the_order_pipeline_wires_them() -> None:
    wired = re.search(r"Wires the stages: (.+)\.", engine.pipeline.__doc__ or "")
    assert wired is not None
    assert wired[1].split(" -> ") == [name for name, _, _ in STAGES]


@pytest.mark.parametrize(("name", "kind", "module"), STAGES)
def test_every_stage_is_where_the_table_says(name: str, kind: str, module: str) -> None:
    spec = find_spec(module)
    assert spec is not None
    if module.startswith("engine."):
        source = Path(spec.origin or "").read_text()
        assert re.match(rf'"""Stages? [\w, ]*\b{name}\b', source), f"{module} does not open with its stage"
        assert f"({kind})" in source.split('"""')[1]


@pytest.mark.parametrize("name", sorted(PURE))
def test_pure_modules_touch_no_clock_and_no_io(name: str) -> None:
    touched = {module.split(".")[0] for module in imports(ROOT / f"{name}.py")} & FORBIDDEN
    assert not touched


@pytest.mark.parametrize("path", sorted((ROOT / "drivers").glob("*.py")), ids=lambda path: path.stem)
def test_drivers_are_pure(path: Path) -> None:
    assert not {module.split(".")[0] for module in imports(path)} & FORBIDDEN


def test_stages_do_not_import_each_other() -> None:
    pure = {module for _, kind, module in STAGES if kind == "pure" and module.startswith("engine.")}
    for module in pure:
        others = imports(ROOT / f"{module.split('.')[1]}.py") & (pure - {module})
        assert not others, f"{module} imports {others}"


def test_imports_point_one_way() -> None:
    layer = {name: number for number, names in enumerate(LAYERS) for name in names}
    for path in module_files():
        name = path.relative_to(ROOT).parts[0].removesuffix(".py")
        if name == "__init__":
            continue
        assert name.split("_")[0] in layer or name in layer, f"{name} has no layer"
        own = layer.get(name, layer.get(name.split("_")[0], 0))
        for module in imports(path):
            parts = module.split(".")
            if parts[0] == "engine" and len(parts) > 1 and parts[1] in layer:
                assert layer[parts[1]] <= own, f"{path.relative_to(ROOT)} imports {module}, which comes later"


def test_modules_stay_small_enough_to_read() -> None:
    for path in [*module_files(), *ROOT.parent.joinpath("bench").glob("*.py")]:
        lines = path.read_text().count("\n")
        assert lines <= 500, f"{path.name} has {lines} lines"
