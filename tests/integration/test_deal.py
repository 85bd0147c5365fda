"""What was used of limits, dealt to other processes than before: together they never have more left than the limit."""

from __future__ import annotations

import os
from itertools import accumulate
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.config import Config, Limit, Span, load
from engine.deal import PENDING, RECORD, Sharers, deal, deal_if_due, is_due, kept_by_one, shared_by_workers
from engine.errors import LogUnusable
from engine.limits import Limits
from engine.pipeline import _channels
from engine.send import Tier
from engine.shares import dealt, held_limits, key_of
from engine.state.lock import lock
from engine.state.uses import Row, Use, Uses
from ext.schedule import CHANNEL, Core
from tests.integration.support import Ahead, now_ms

HOUR_MS = 3_600_000
KEY = key_of(["channel", "partner"], Limit(per=Span.parse("1h"), calls=1))


@given(
    uses=st.lists(st.integers(0, 30), max_size=40),
    shares=st.lists(st.integers(1, 20), min_size=1, max_size=6),
    window=st.tuples(st.integers(0, 40), st.integers(0, 40)),
)
def test_of_any_window_all_together_have_left_what_the_limit_has(
    uses: list[int], shares: list[int], window: tuple[int, int]
) -> None:
    totals = [0, *accumulate(uses)]
    first, last = (min(at, len(uses)) for at in sorted(window))
    used = totals[last] - totals[first]
    mine = [end - start for start, end in zip(dealt(totals[first], shares), dealt(totals[last], shares), strict=True)]
    assert sum(mine) == used
    assert min(mine, default=0) >= 0
    left = sum(max(0, share - one) for share, one in zip(shares, mine, strict=True))
    assert left == max(0, sum(shares) - used)


def configured(folder: Path, number: int, processes: int) -> Config:
    path = folder / "c.toml"
    path.write_text(
        f'state = "{folder}"\n[log]\nkind = "kafka"\n[channels.partner]\ndriver = "webhook"\n'
        f'base_url = "http://127.0.0.1:9/x"\nlimits = [{{ calls = {number}, per = "1h" }}]\n'
        f"[[workers]]\nprocesses = {processes}\n"
    )
    return load(path)


def use(folder: Path, directory: str, *uses: Use, open_: int = 0) -> None:
    """What a process wrote that kept the limit there."""
    file = Uses(folder / directory / "limits.db")
    file.write([Row(file.number(KEY), HOUR_MS, one, open_) for one in (*uses, Use(0, 0))])
    file.close()


def left(folder: Path, sharers: Sharers) -> list[int]:
    """How many calls each process would still let leave now."""
    found = []
    for directory, limit in sharers[KEY]:
        core, clock = Core(), Ahead()
        limits = Limits(core, Uses(folder / directory / "limits.db"), clock)
        channel = core.add_channel(1, 0, 1)
        limits.add(CHANNEL, channel, ["channel", "partner"], limit)
        assert limit.calls is not None
        found.append(max(0, limit.calls - core.use(0, clock.now_ns())[1]))
        limits.close()
    return found


def test_what_one_process_used_is_dealt_to_several_and_back(tmp_path: Path) -> None:
    before, now = configured(tmp_path, 10, 1), now_ms()
    use(tmp_path, ".", Use(now - 5_000, 3), Use(now - 1_000, 2), open_=1)
    shared = shared_by_workers(configured(tmp_path, 10, 3))
    assert is_due(tmp_path, shared)
    deal(tmp_path, shared)
    assert not is_due(tmp_path, shared)
    assert sum(left(tmp_path, shared)) == 4
    use(tmp_path, "workers/all-2", Use(now, 1))
    alone = kept_by_one(before, list(Tier))
    assert is_due(tmp_path, alone, alone=True)
    deal(tmp_path, alone)
    assert not is_due(tmp_path, alone, alone=True)
    assert left(tmp_path, alone) == [3]


def test_nothing_is_dealt_where_nothing_is_limited(tmp_path: Path) -> None:
    assert is_due(tmp_path, {}), "nobody knows what was before"
    use(tmp_path, "workers/all-1", Use(now_ms(), 1))
    deal(tmp_path, {})
    Uses(tmp_path / "workers" / "all-1" / "limits.db").close()
    assert not is_due(tmp_path, {})


def test_another_number_is_dealt_too(tmp_path: Path) -> None:
    """Each kept to its share of 20; of 10, one has used 8, and the other one must not use 5 more."""
    shared = shared_by_workers(configured(tmp_path, 20, 2))
    deal(tmp_path, shared)
    use(tmp_path, "workers/all-1", Use(now_ms(), 8))
    fewer = shared_by_workers(configured(tmp_path, 10, 2))
    assert is_due(tmp_path, fewer)
    deal(tmp_path, fewer)
    assert sum(left(tmp_path, fewer)) == 2


@pytest.mark.parametrize("written", [0, 1, 2, 3])
def test_a_crash_while_dealing_forgets_nothing(tmp_path: Path, written: int, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(Exception):
        pass

    done = 0

    def write(self: Uses, rows: list[Row]) -> None:
        nonlocal done
        if done == written:
            raise Killed
        done += 1
        real(self, rows)

    real = Uses.write
    use(tmp_path, ".", Use(now_ms(), 7))
    shared = shared_by_workers(configured(tmp_path, 9, 3))
    monkeypatch.setattr(Uses, "write", write)
    if written < 3:
        with pytest.raises(Killed):
            deal(tmp_path, shared)
    else:
        deal(tmp_path, shared)
        (tmp_path / PENDING).write_bytes(msgspec.json.encode({KEY: {"uses": [(now_ms(), 7)], "open": 0}}))
        (tmp_path / RECORD).unlink()
    monkeypatch.setattr(Uses, "write", real)
    assert is_due(tmp_path, shared)
    deal(tmp_path, shared)
    assert sum(left(tmp_path, shared)) == 2
    assert not is_due(tmp_path, shared)


def test_the_keys_are_those_the_pipeline_uses(tmp_path: Path) -> None:
    """Else a process would not find what it was dealt."""
    config = configured(tmp_path, 10, 2)
    rule, replace = config.channels["partner"].limits[0], msgspec.structs.replace
    monthly = Limit(per=Span.parse("1mo"), recipients=10, zone="Asia/Shanghai")
    partner = replace(config.channels["partner"], limits=(rule, monthly), account_limits={"default": (rule,)})
    basic = replace(config.tiers["basic"], limits=(rule,))
    tiers = config.tiers | {"basic": basic}
    config = replace(config, limits=(rule,), tiers=tiers, channels={"partner": partner})
    dealt_ = {held.key for held in held_limits(config, list(Tier))}
    file, core = Uses(tmp_path / "limits.db"), Core()
    _channels(config, core, Limits(core, file, Ahead()))
    assert set(file.everything()) == dealt_ == set(shared_by_workers(config))
    assert len(dealt_) == 5
    file.close()


async def test_nothing_is_dealt_while_a_process_still_uses_its_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.deal.AGAIN_S", 0.01)
    deal(tmp_path, shared_by_workers(configured(tmp_path, 10, 2)))
    held = lock(tmp_path / "workers" / "all-2")
    with pytest.raises(LogUnusable, match="another engine uses"):
        await deal_if_due(tmp_path, shared_by_workers(configured(tmp_path, 10, 3)))
    os.close(held)
    await deal_if_due(tmp_path, shared_by_workers(configured(tmp_path, 10, 3)))
