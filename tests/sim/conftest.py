"""Which stories are told."""

from __future__ import annotations

import pytest

from tests.sim.test_sim import AT_ONCE


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "seeds" not in metafunc.fixturenames:
        return
    one, many = metafunc.config.getoption("seed"), metafunc.config.getoption("seeds")
    first, end = (0, many) if one is None else (one, one + 1)
    runs = [range(n, min(n + AT_ONCE, end)) for n in range(first, end, AT_ONCE)]
    metafunc.parametrize("seeds", runs, ids=lambda seeds: f"{seeds.start}-{seeds.stop - 1}")
