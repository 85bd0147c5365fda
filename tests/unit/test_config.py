"""The values of a configuration: what they parse from, how they are shown, what stays secret."""

from __future__ import annotations

import pytest

from engine import pipeline
from engine.config import (
    ChannelConfig,
    Config,
    Duration,
    Pacing,
    Rate,
    Size,
    TierConfig,
    default_tiers,
    tier_policy,
)
from engine.config_secrets import masked, masked_url, secret_values
from engine.send import Tier
from ext.schedule import ASAP, CALL_A_SECOND, PACED


@pytest.mark.parametrize(
    ("text", "ns"),
    [("0s", 0), ("7ns", 7), ("3us", 3_000), ("200ms", 200_000_000), ("10m", 600 * 10**9), ("1d", 86_400 * 10**9)],
)
def test_durations_read_and_show_alike(text: str, ns: int) -> None:
    assert Duration.parse(text) == ns
    assert str(Duration(ns)) == text


@pytest.mark.parametrize("text", ["", "10", "m", "1.5s", "-1s", "1 s", "1S", "1GiB", "1s ", "١s", "9" * 30 + "s"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        Duration.parse(text)


def test_a_duration_is_shown_in_the_largest_unit_that_divides_it() -> None:
    assert [str(Duration(ns)) for ns in (90 * 10**9, 3_600 * 10**9, 1_500_000)] == ["90s", "1h", "1500us"]


@pytest.mark.parametrize(("text", "count"), [("0B", 0), ("3B", 3), ("4KiB", 4096), ("1GiB", 1 << 30)])
def test_sizes_read_and_show_alike(text: str, count: int) -> None:
    assert Size.parse(text) == count
    assert str(Size(count)) == text


def test_a_tier_has_its_own_defaults_and_a_topic_of_its_name() -> None:
    config = Config(tiers={"basic": TierConfig(weight=7, topics=("big", "small"))})
    assert tier_policy(config, Tier.BASIC).weight == 7
    assert tier_policy(config, Tier.BASIC).topics == ("big", "small")
    assert tier_policy(config, Tier.SYSTEM).topics == ("surgetank.system",)
    assert tier_policy(config, Tier.SYSTEM).linger == default_tiers()["system"].linger == 0


def test_secrets_are_masked_at_any_depth_and_by_any_case() -> None:
    keys = {"corpid": "ww0", "corpSecret": "s1", "headers": {"X-Api-Key": "s2", "Accept": "json"}, "pin": "s3"}
    assert masked(keys, frozenset({"pin"})) == {
        "corpid": "ww0",
        "corpSecret": "***",
        "headers": {"X-Api-Key": "***", "Accept": "json"},
        "pin": "***",
    }


def test_no_secret_is_in_a_channels_repr() -> None:
    channel = ChannelConfig(
        driver="webhook", base_url="https://me:s0@h/x?access_token=s1&a=b", accounts={"a": {"authorization": "s2"}}
    )
    text = repr(Config(channels={"c": channel}))
    assert "webhook" in text
    assert not any(secret in text for secret in ("s0", "s1", "s2"))


def test_an_address_without_secrets_is_shown_whole() -> None:
    assert masked_url("https://h:81/x?a=b&corp_key=1&c=d#e") == "https://h:81/x?a=b&corp_key=***&c=d#e"
    assert masked_url("https://gateway.example/send") == "https://gateway.example/send"


def test_the_values_to_keep_out_of_the_log() -> None:
    channel = ChannelConfig(
        driver="webhook",
        base_url="https://h",
        accounts={"a": {"authorization": "s1", "n": 3, "h": {"token": "s2"}, "appid": "id"}, "b": {"pin": "s3"}},
        secret_keys=frozenset({"pin"}),
    )
    assert secret_values(Config(channels={"c": channel})) == {"s1", "s2", "s3"}


def test_the_core_paces_as_the_configuration_says(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, object] = {}
    monkeypatch.setattr(pipeline, "Core", lambda *_, **keys: given.update(keys))
    pipeline._core(Config(pacing=Pacing(tau=Duration.parse("2h"), floor=Rate(3, Duration.parse("1m")))))
    assert (given["tau_ns"], given["floor"]) == (7_200 * 10**9, 50_000)
    assert given["pacing"] == [ASAP, PACED, PACED]
    assert given["near_ns"] == [0, 5 * 10**9, 0], "template paces what is due later than usual"
    pipeline._core(Config())
    assert (given["tau_ns"], given["floor"]) == (6 * 3_600 * 10**9, CALL_A_SECOND)
