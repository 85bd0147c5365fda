"""Warmed up, the core asks the system for nothing: neither to push nor to pop, answer, reap, cancel, pause or wait."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.sanitize.test_c_parts import HERE, WITHIN_S, compiled


def run(library: Path, code: str) -> subprocess.CompletedProcess[str]:
    # Hashes are the same in every run, so what stands where is, too.
    environment = {**os.environ, "LD_PRELOAD": str(library), "PYTHONHASHSEED": "0"}
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, env=environment, cwd=HERE.parents[1], capture_output=True, text=True, timeout=WITHIN_S, check=True
    )


def test_a_steady_load_allocates_nothing(tmp_path: Path) -> None:
    library = compiled(HERE / "allocations.c", tmp_path / "allocations.so", ["-O1", "-shared", "-fPIC"])
    done = run(library, "from tests.sanitize.steady_load import main; main()")
    assert not done.stderr.splitlines()
    assert min(map(int, done.stdout.split())) > 1000, "of every tier"


def test_what_allocates_is_told(tmp_path: Path) -> None:
    """The first steps do."""
    library = compiled(HERE / "allocations.c", tmp_path / "allocations.so", ["-O1", "-shared", "-fPIC"])
    done = run(
        library,
        "from tests.sanitize.steady_load import Load, watched\n"
        "load = Load(); watched().count_allocations(1); load.step(1, 8)",
    )
    told = {line.split()[0] for line in done.stderr.splitlines()}
    assert {"calloc", "mmap", "realloc"} <= told
