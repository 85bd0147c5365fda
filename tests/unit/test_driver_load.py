"""Drivers are found by name, and check their part of the config and the values of registered contents."""

from __future__ import annotations

from typing import Any

import pytest

from engine.config import ChannelConfig
from engine.drivers import Driver, Field, Template, _checks, known, load
from engine.errors import ConfigError, Reject

WECOM = {"corpid": "ww0", "corpsecret": "s3cret-value", "agentid": 1000002}
WECHAT = {"appid": "wx0", "secret": "s3cret-value"}
ACCOUNTS: dict[str, dict[str, Any]] = {"wecom.message": WECOM, "wechat.template": WECHAT, "webhook": {}}
FIRST_NAMES = ["webhook", "wechat.template", "wecom.message"]


def config(driver: str, account: dict[str, Any] | None = None, **keys: Any) -> ChannelConfig:
    accounts = {"a": {**ACCOUNTS[driver], **(account or {})}}
    return ChannelConfig(**{"driver": driver, "base_url": "http://127.0.0.1:1/p", "accounts": accounts, **keys})


@pytest.mark.parametrize("name", FIRST_NAMES)
def test_found_by_name(name: str) -> None:
    driver = load(name)
    assert driver.name == name
    assert name in known()
    made: Driver = driver("c", config(name))
    assert made.cap >= 1


@pytest.mark.parametrize(
    "name", ["", "wecom", "os", "_checks", "wecom_message", "..errors", "wecom.message.x", "webhook "]
)
def test_unknown_name_tells_the_known_ones(name: str) -> None:
    with pytest.raises(ConfigError, match=r"wechat\.template, wecom\.message") as raised:
        load(name, "c")
    assert raised.value.key == ("channels", "c", "driver")


@pytest.mark.parametrize("name", FIRST_NAMES)
@pytest.mark.parametrize(
    "url",
    [
        "",
        "host",
        "ftp://h",
        "http://",
        "http:///p",
        "http://h:99999",
        "http://h:0",
        "http://u:p@h",
        "http://h/#x",
        "http://h/ x",
        "http://h/\n",
        "http://größe.example",
        "http://[::1",
        "//h",
        "javascript:alert(1)",
    ],
)
def test_a_wrong_address_is_refused(name: str, url: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load(name)("c", config(name, base_url=url))
    assert raised.value.key == ("channels", "c", "base_url")


def test_only_a_webhook_address_may_have_a_query() -> None:
    load("webhook")("c", config("webhook", base_url="https://h/x?y=1"))
    with pytest.raises(ConfigError, match="query"):
        load("wecom.message")("c", config("wecom.message", base_url="https://h/x?y=1"))


@pytest.mark.parametrize(
    ("name", "account", "key"),
    [
        ("wecom.message", {"agentid": "7"}, "agentid"),
        ("wecom.message", {"agentid": -1}, "agentid"),
        ("wecom.message", {"agentid": True}, "agentid"),
        ("wecom.message", {"corpid": ""}, "corpid"),
        ("wecom.message", {"corpsecret": "s3cret-value\n"}, "corpsecret"),
        ("wecom.message", {"duplicate_check_interval": 14401}, "duplicate_check_interval"),
        ("wecom.message", {"corpsecrt": "s3cret-value"}, "corpsecrt"),
        ("wechat.template", {"secret": 7}, "secret"),
        ("wechat.template", {"appid": " wx"}, "appid"),
        ("webhook", {"authorization": "Bearer s3cret-value\r\nX: y"}, "authorization"),
        ("webhook", {"token": "s3cret-value"}, "token"),
    ],
)
def test_a_wrong_account_key_is_named_without_its_value(name: str, account: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load(name)("c", config(name, account))
    assert raised.value.key == ("channels", "c", "accounts", "a", key)
    assert "s3cret-value" not in str(raised.value)


def test_a_missing_account_or_key_is_named() -> None:
    with pytest.raises(ConfigError, match="corpid, corpsecret, agentid"):
        load("wecom.message")("c", config("wecom.message", accounts={}))
    with pytest.raises(ConfigError) as raised:
        load("wecom.message")("c", config("wecom.message", accounts={"a": {"corpid": "x", "agentid": 1}}))
    assert raised.value.key[-1] == "corpsecret"
    load("webhook")("c", config("webhook", accounts={}))


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("wecom.message", [None, 1, 1000], [0, -1, 1001]),
        ("wechat.template", [None, 1], [0, 2]),
        ("webhook", [None, 1, 10000], [0, 10001]),
    ],
)
def test_batch_within_the_platforms_cap(name: str, good: list[int | None], bad: list[int]) -> None:
    default = {"wecom.message": 1000, "wechat.template": 1, "webhook": 500}[name]
    for batch in good:
        assert load(name)("c", config(name, batch=batch)).cap == (default if batch is None else batch)
    for batch in bad:
        with pytest.raises(ConfigError) as raised:
            load(name)("c", config(name, batch=batch))
        assert raised.value.key == ("channels", "c", "batch")


def template(content: dict[str, Any] | None = None, **fields: Field) -> Template:
    return Template("t", "c", content or {}, fields)


def test_values_become_texts() -> None:
    one = template(a=Field(), b=Field(max_chars=2))
    assert _checks.values(one, {"a": 1.5, "b": "早安"}) == {"a": "1.5", "b": "早安"}
    assert _checks.values(one, {"a": -7}) == {"a": "-7"}


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ({"a": True}, "field_invalid"),
        ({"a": None}, "field_invalid"),
        ({"a": [1]}, "field_invalid"),
        ({"a": b"x"}, "field_invalid"),
        ({"a": float("nan")}, "field_invalid"),
        ({"a": float("inf")}, "field_invalid"),
        ({"z": "x"}, "field_invalid"),
        ({"b": "abc"}, "field_too_long"),
        ({"b": 123}, "field_too_long"),
    ],
)
def test_values_that_do_not_fit(data: dict[str, Any], reason: str) -> None:
    with pytest.raises(Reject) as raised:
        _checks.values(template(a=Field(), b=Field(max_chars=2)), data)
    assert raised.value.reason == reason


def test_filled_once_in_strings_only() -> None:
    content = {"{a}": "{a}-{b}-{c}-{ a}", "list": ["{a}", {"x": "{a}{a}"}], "n": 5}
    got = _checks.filled(template(content, a=Field(required=True), b=Field()), {"a": "{b}"})
    assert got == {"{a}": "{b}--{c}-{ a}", "list": ["{b}", {"x": "{b}{b}"}], "n": 5}


@pytest.mark.parametrize("data", [{}, {"a": ""}])
def test_a_required_field_needs_a_value(data: dict[str, Any]) -> None:
    with pytest.raises(Reject) as raised:
        _checks.filled(template(a=Field(required=True)), data)
    assert raised.value.reason == "field_missing"
