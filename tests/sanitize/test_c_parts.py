"""The C parts of ext/, each under a driver that does random operations and holds them to a plain model: with
AddressSanitizer and UndefinedBehaviorSanitizer, and once more under valgrind.

A failure names seed and step; ``FUZZ_SEED=N`` before pytest runs that seed again.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
EXT = HERE.parents[1] / "ext"
COMPILE = ["-std=gnu11", "-g", "-O1", "-Wall", "-Wextra", f"-I{EXT}", f"-I{HERE}"]
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]
VALGRIND = ["--quiet", "--error-exitcode=9", "--leak-check=full", "--errors-for-leak-kinds=all"]
STEPS = {  # a few seconds each
    "slab": 8_000,
    "fifo": 60_000,
    "wheel": 200_000,
    "table": 60_000,
    "limit": 40_000,
    "pace": 200_000,
    "marks": 200_000,
    "counts": 400_000,
    "records": 200_000,
    "recent": 400_000,
}
HELD = {  # which driver holds which header
    "slab": ["slab", "foresee"],
    "fifo": ["fifo"],
    "wheel": ["wheel", "ring"],
    "table": ["table"],
    "limit": ["limit"],
    "pace": ["pace", "capacity"],
    "marks": ["marks", "bits"],
    "counts": ["frequency", "histogram", "siphash"],
    "records": ["records"],
    "recent": ["recent"],
}
WITHIN_S = 600  # a hang, on the slowest machine


def missing(reason: str) -> None:
    """Skips, but fails where CI is set."""
    if os.environ.get("CI"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def built(part: str, folder: Path, options: list[str]) -> Path:
    """The driver, compiled."""
    return compiled(HERE / f"fuzz_{part}.c", folder / part, [*COMPILE, *options])


def compiled(source: Path, program: Path, options: list[str]) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        missing("no C compiler")
    command = [str(compiler), *options, str(source), "-o", str(program)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=WITHIN_S)
    if "cannot find -lasan" in done.stderr or "cannot find -lubsan" in done.stderr:
        missing("the compiler has no sanitizers")
    assert done.returncode == 0, done.stderr
    return program


def run(command: list[str], steps: int) -> None:
    seed = os.environ.get("FUZZ_SEED") or str(random.SystemRandom().randrange(10**9))
    done = subprocess.run([*command, seed, str(steps)], capture_output=True, text=True, timeout=WITHIN_S)
    assert done.returncode == 0, f"FUZZ_SEED={seed}, {steps} steps:\n{done.stderr}"


@pytest.mark.parametrize("part", STEPS)
def test_holds_under_address_and_undefined_behaviour_sanitizers(part: str, tmp_path: Path) -> None:
    program = built(part, tmp_path, SANITIZE)
    for _ in range(3):
        run([str(program)], STEPS[part])


@pytest.mark.parametrize("part", STEPS)
def test_holds_under_valgrind(part: str, tmp_path: Path) -> None:
    valgrind = shutil.which("valgrind")
    if valgrind is None:
        missing("no valgrind")
    run([str(valgrind), *VALGRIND, str(built(part, tmp_path, []))], STEPS[part] // 10)


def test_a_driver_says_what_is_wrong(tmp_path: Path) -> None:
    """The harness can fail: a ring that forgets a neighbour is caught, with seed and step."""
    for name in ("wheel.h", "ring.h"):
        (tmp_path / name).write_text((EXT / name).read_text())
    ring = (EXT / "ring.h").read_text()
    (tmp_path / "ring.h").write_text(ring.replace("    link->prev->next = link->next;\n", "", 1))
    assert (tmp_path / "ring.h").read_text() != ring
    program = built("wheel", tmp_path, [f"-iquote{tmp_path}", *SANITIZE])
    with pytest.raises(AssertionError, match=r"FUZZ_SEED=\d+"):
        run([str(program)], STEPS["wheel"])


def test_every_header_has_a_driver() -> None:
    assert sorted(header for headers in HELD.values() for header in headers) == sorted(
        path.stem for path in EXT.glob("*.h")
    )
    assert HELD.keys() == STEPS.keys() == {path.stem.removeprefix("fuzz_") for path in HERE.glob("fuzz_*.c")}
