"""Shares of limits: never more in all than the number, and nobody has less than nothing."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.config import Config, Limit, Span, WorkerGroup, load
from engine.errors import ConfigError
from engine.send import Tier
from engine.shares import number_of, own_share, share, shared_limits, too_small, worker_config, worker_state, workers

HEAD = '[log]\nkind = "kafka"\n'
CHANNEL = '[channels.partner]\ndriver = "webhook"\nbase_url = "http://127.0.0.1:9/x"\n'
GROUPS = '[[workers]]\ntiers = ["system"]\n[[workers]]\ntiers = ["basic", "template"]\nprocesses = 3\n'


def configured(folder: Path, text: str) -> Config:
    path = folder / "c.toml"
    path.write_text(text)
    return load(path)


@given(number=st.integers(1, 10**12), processes=st.integers(1, 256))
def test_shares_are_whole_and_sum_to_the_number(number: int, processes: int) -> None:
    shares = [share(number, processes, index) for index in range(processes)]
    assert sum(shares) == number
    assert min(shares) >= 0
    assert max(shares) - min(shares) <= 1
    assert sorted(shares, reverse=True) == shares, "the first ones have the rest"


numbers = st.integers(1, 10_000)
limits = st.lists(
    st.builds(Limit, per=st.just(Span(60 * 10**9)), calls=numbers)
    | st.builds(Limit, per=st.just(Span(10**9)), recipients=numbers),
    max_size=3,
).map(tuple)
groups = st.lists(
    st.tuples(st.sets(st.sampled_from([tier.label for tier in Tier]), min_size=1).map(frozenset), st.integers(1, 5)),
    min_size=1,
    max_size=4,
    unique_by=lambda group: group[0],
)


@given(groups=groups, of_all=limits, of_tier=limits, of_channel=limits, of_account=limits)
def test_no_limit_is_exceeded_by_all_workers_together(
    tmp_path_factory: pytest.TempPathFactory, groups: list[tuple[frozenset[str], int]], of_all: tuple[Limit, ...],
    of_tier: tuple[Limit, ...], of_channel: tuple[Limit, ...], of_account: tuple[Limit, ...],
) -> None:  # fmt: skip
    named = "".join(f"[[workers]]\ntiers = {sorted(tiers)}\nprocesses = {n}\n" for tiers, n in groups)
    config = configured(tmp_path_factory.mktemp("c"), HEAD + CHANNEL + "accounts = { a = {} }\n" + named)
    replace = msgspec.structs.replace
    channel = replace(config.channels["partner"], limits=of_channel, account_limits={"a": of_account})
    tiers = {name: replace(policy, limits=of_tier) for name, policy in config.tiers.items()}
    config = replace(config, limits=of_all, tiers=tiers, channels={"partner": channel})
    everybody = workers(config)
    shared = {worker.name: worker_config(config, worker) for worker in everybody}
    assert len(shared) == sum(count for _, count in groups)
    for index, limit in enumerate(of_all):
        assert sum(number_of(mine.limits[index]) for mine in shared.values()) == number_of(limit)
    for index, limit in enumerate(of_channel):
        assert sum(number_of(mine.channels["partner"].limits[index]) for mine in shared.values()) == number_of(limit)
    for index, limit in enumerate(of_account):
        mine = [config.channels["partner"].account_limits["a"][index] for config in shared.values()]
        assert sum(map(number_of, mine)) == number_of(limit)
    for tier in Tier:
        serving = [shared[worker.name] for worker in everybody if tier in worker.tiers]
        for index, limit in enumerate(of_tier if serving else ()):
            assert sum(number_of(mine.tiers[tier.label].limits[index]) for mine in serving) == number_of(limit)
    empty = any(
        number_of(limit) == 0
        for worker in everybody
        for limits in (
            shared[worker.name].limits,
            *(shared[worker.name].tiers[tier.label].limits for tier in worker.tiers),
            shared[worker.name].channels["partner"].limits,
            shared[worker.name].channels["partner"].account_limits["a"],
        )
        for limit in limits
    )
    assert empty == any(True for _ in too_small(config)), "refused exactly where somebody would have nothing"


def test_a_limit_keeps_its_unit_window_and_calendar(tmp_path: Path) -> None:
    rule = 'limits = [{ recipients = 10, per = "1d", zone = "Asia/Shanghai" }]\n'
    config = configured(tmp_path, HEAD + CHANNEL + rule + GROUPS)
    (mine,) = worker_config(config, workers(config)[3]).channels["partner"].limits
    assert mine == Limit(per=Span.parse("1d"), recipients=2, zone="Asia/Shanghai")


def test_messages_to_a_recipient_are_shared_too_the_platforms_own_rules_as_well(tmp_path: Path) -> None:
    app = '[channels.c]\ndriver = "wecom.message"\nbase_url = "https://h"\n'
    app += '[channels.c.accounts.a]\ncorpid = "c"\ncorpsecret = "s"\nagentid = 1\n'
    config = configured(tmp_path, HEAD + app + GROUPS)
    mine = [worker_config(config, worker).channels["c"].frequency or () for worker in workers(config)]
    assert [[rule.messages for rule in rules] for rules in mine] == [[8, 250], [8, 250], [7, 250], [7, 250]]


def test_workers_have_names_tiers_and_a_directory_each(tmp_path: Path) -> None:
    config = configured(tmp_path, f"state = '{tmp_path}/s'\n" + HEAD + CHANNEL + GROUPS)
    names = ["system-1", "template-basic-1", "template-basic-2", "template-basic-3"]
    assert [worker.name for worker in workers(config)] == names
    assert [worker.tiers for worker in workers(config)][:2] == [(Tier.SYSTEM,), (Tier.TEMPLATE, Tier.BASIC)]
    assert [worker_config(config, one).state for one in workers(config)] == [
        str(worker_state(config, name)) for name in names
    ]
    whole = configured(tmp_path, HEAD + CHANNEL + "[[workers]]\nprocesses = 2\n")
    assert [worker.name for worker in workers(whole)] == ["all-1", "all-2"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ('[[workers]]\ntiers = ["basic"]\n[[workers]]\ntiers = ["basic"]\n',
         "workers[1].tiers: another group serves the same tiers: set its `processes` instead"),
        ('limits = [{ calls = 3, per = "1s" }]\n' + GROUPS,
         "channels.partner.limits[0]: is shared by 4 processes ([[workers]]), and some of them would have nothing"),
        ('frequency = [{ messages = 3, per = "1m" }]\n' + GROUPS,
         "channels.partner.frequency[0]: is shared by 4 processes"),
        ('[tenants.t]\nlimits = [{ calls = 3, per = "1s" }]\n' + GROUPS,
         "tenants.t.limits[0]: is shared by 4 processes"),
        ('[tiers.basic]\nlimits = [{ calls = 2, per = "1s" }]\n' + GROUPS,
         "tiers.basic.limits[0]: is shared by 3 processes"),
    ],
)  # fmt: skip
def test_what_cannot_be_shared_is_refused(tmp_path: Path, more: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        configured(tmp_path, HEAD + CHANNEL + more)
    assert said in str(caught.value)


def test_a_tenants_limit_is_shared_and_its_weight_is_not(tmp_path: Path) -> None:
    rule = '[tenants.t]\nweight = 5\nlimits = [{ calls = 9, per = "1m" }]\n'
    config = configured(tmp_path, HEAD + CHANNEL + rule + GROUPS)
    mine = [worker_config(config, worker).tenants["t"] for worker in workers(config)]
    assert sorted(number_of(tenant.limits[0]) for tenant in mine) == [2, 2, 2, 3]
    assert {tenant.weight for tenant in mine} == {5}


def test_a_tier_limit_is_shared_by_those_who_serve_the_tier(tmp_path: Path) -> None:
    rule = '[tiers.system]\nlimits = [{ calls = 1, per = "1s" }]\n'
    config = configured(tmp_path, HEAD + CHANNEL + rule + GROUPS)
    assert [(s.path, s.processes) for s in shared_limits(config)] == [(("tiers", "system", "limits", 0), 1)]


def test_a_process_has_its_share_of_a_number_that_is_for_all() -> None:
    """The same as of a limit that is configured."""
    groups = (WorkerGroup(("system",), 1), WorkerGroup(("template", "basic"), 2))
    config = Config(workers=groups)
    mine = [worker_config(config, worker) for worker in workers(config)]
    assert [own_share(one, 8) for one in mine] == [3, 3, 2]
    assert [own_share(one, 8, "basic") for one in mine] == [8, 4, 4]
    assert [own_share(one, 2) for one in mine] == [0, 0, 0], "one would have nothing"
    assert own_share(config, 8) == 8
