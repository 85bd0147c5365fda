"""wecom.message: bytes out, bytes in."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.config import ChannelConfig
from engine.drivers import Action, Call, CallResult, Field, Reply, Template
from engine.drivers.wecom_message import TYPES, Driver
from engine.errors import PlatformRefused, PlatformUnavailable, Reject

ACCOUNT = {"corpid": "ww&0", "corpsecret": "s3cret+/", "agentid": 1000002}
TEXT = {"type": "text", "text": '早安 "x"\n'}


def make(account: dict[str, Any] | None = None, **keys: Any) -> Driver:
    accounts = {"corp-a": {**ACCOUNT, **(account or {})}}
    return Driver("c", ChannelConfig(driver="wecom.message", base_url="http://h/", accounts=accounts, **keys))


DRIVER = make()


def call(ids: list[str], content: dict[str, Any] = TEXT, driver: Driver = DRIVER) -> Call:
    return Call("b1", "corp-a", driver.prepare(content, None, {}).body, ids, ())


def answered(ids: list[str], body: Any, status: int = 200, driver: Driver = DRIVER) -> CallResult:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return driver.result(call(ids), Reply(status, {}, raw))


def test_request_names_everybody_once() -> None:
    request = DRIVER.request(call(["Zhang", "li_4", 'q"uote']), "a b&c=/")
    assert request.method == "POST"
    assert request.headers["Content-Type"] == "application/json"
    url = urlsplit(request.url)
    assert (url.netloc, url.path) == ("h", "/cgi-bin/message/send")
    assert parse_qs(url.query) == {"access_token": ["a b&c=/"]}
    assert json.loads(request.body) == {
        "touser": 'Zhang|li_4|q"uote',
        "agentid": 1000002,
        "msgtype": "text",
        "text": {"content": '早安 "x"\n'},
    }


def test_duplicate_check_of_the_account() -> None:
    driver = make({"enable_duplicate_check": True, "duplicate_check_interval": 600})
    wire = json.loads(driver.request(call(["a"], driver=driver), "t").body)
    assert (wire["enable_duplicate_check"], wire["duplicate_check_interval"]) == (1, 600)


@pytest.mark.parametrize(
    "content",
    [
        {"type": "markdown", "markdown": "**x**", "enable_id_trans": 1},
        {"type": "image", "image": {"media_id": "m"}},
        {"type": "textcard", "textcard": {"title": "t", "description": "d" * 512, "url": "https://h"}, "safe": 2},
        {"type": "news", "news": {"articles": [{"title": "t", "url": "https://h"}]}},
        {"type": "news", "news": {"articles": [{"title": "t", "appid": "a", "pagepath": "p"}] * 8}},
        {"type": "mpnews", "mpnews": {"articles": [{"title": "t", "thumb_media_id": "m", "content": "<p>"}]}},
        {"type": "miniprogram_notice", "miniprogram_notice": {"appid": "a", "title": "t"}},
        {"type": "template_card", "template_card": {"card_type": "text_notice", "main_title": {"title": "x"}}},
    ],
)
def test_contents_it_takes(content: dict[str, Any]) -> None:
    wire = json.loads(DRIVER.request(call(["a"], content), "t").body)
    kind = content["type"]
    assert wire["msgtype"] == kind
    assert wire[kind] == ({"content": "**x**"} if kind == "markdown" else content[kind])
    assert {k: wire[k] for k in ("safe", "enable_id_trans") if k in wire} == {
        k: v for k, v in content.items() if k in ("safe", "enable_id_trans")
    }


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({}, "content_invalid"),
        ({"type": "sms"}, "content_invalid"),
        ({"type": ["text"]}, "content_invalid"),
        ({"type": "text"}, "content_invalid"),
        ({"type": "text", "text": ""}, "content_invalid"),
        ({"type": "text", "text": 7}, "content_invalid"),
        ({"type": "text", "text": "x", "touser": "@all"}, "content_invalid"),
        ({"type": "text", "text": "x", "toparty": "1"}, "content_invalid"),
        ({"type": "text", "text": "x", "safe": 3}, "content_invalid"),
        ({"type": "text", "text": "\ud800"}, "content_invalid"),
        ({"type": "text", "text": "早" * 683}, "content_too_large"),
        ({"type": "markdown", "markdown": "x" * 2049}, "content_too_large"),
        ({"type": "image", "image": "m"}, "content_invalid"),
        ({"type": "textcard", "textcard": {"title": "t", "url": "u"}}, "content_invalid"),
        ({"type": "textcard", "textcard": {"title": "t" * 129, "description": "d", "url": "u"}}, "content_too_large"),
        ({"type": "news", "news": {"articles": []}}, "content_invalid"),
        ({"type": "news", "news": {"articles": [{"title": "t", "url": "u"}] * 9}}, "content_invalid"),
        ({"type": "news", "news": {"articles": [{"title": "t"}]}}, "content_invalid"),
        ({"type": "news", "news": {"articles": ["t"]}}, "content_invalid"),
        ({"type": "template_card", "template_card": {"card_type": "x"}}, "content_invalid"),
        ({"ref": "t"}, "content_invalid"),
    ],
)
def test_contents_it_refuses(content: dict[str, Any], reason: str) -> None:
    with pytest.raises(Reject) as raised:
        DRIVER.prepare(content, None, {})
    assert raised.value.reason == reason


def test_text_up_to_the_last_byte() -> None:
    DRIVER.prepare({"type": "text", "text": "早" * 682 + "xx"}, None, {})


def test_registered_content_is_filled_and_checked() -> None:
    fields = {"name": Field(required=True, max_chars=5), "url": Field()}
    card = {"title": "Hi {name}", "description": "d", "url": "https://h/{url}"}
    template = Template("t", "c", {"type": "textcard", "textcard": card}, fields)
    body = DRIVER.prepare({"ref": "t", "data": {}}, template, {"name": "Li"}).body
    wire = json.loads(DRIVER.request(Call("b", "corp-a", body, ["a"], ()), "t").body)
    assert wire["textcard"] == {"title": "Hi Li", "description": "d", "url": "https://h/"}
    for data, reason in (({}, "field_missing"), ({"name": "Lidia S"}, "field_too_long")):
        with pytest.raises(Reject) as raised:
            DRIVER.prepare({"ref": "t"}, template, data)
        assert raised.value.reason == reason
    with pytest.raises(Reject, match="unknown key 'safe'"):
        DRIVER.prepare({"ref": "t", "safe": 1}, template, {"name": "Li"})


def test_equal_keys_mean_equal_wire() -> None:
    keys = {DRIVER.prepare({"type": "text", "text": text}, None, {}).key for text in ("a", "b", "a")}
    assert len(keys) == 2


@pytest.mark.parametrize(
    "id",
    [
        "",
        "@all",
        "@ALL",
        "@aLl",
        "a|b",
        "|",
        " @all",
        "@all ",
        "a b",
        "a\n",
        "a\x00",
        "\u200b@all",
        "\ud800",
        "a\u2028b",
    ],
)
def test_ids_that_would_reach_others(id: str) -> None:
    with pytest.raises(Reject) as raised:
        DRIVER.check_recipient(id, None, DRIVER.prepare(TEXT, None, {}))
    assert raised.value.reason == "recipient_forbidden"


def test_ids_it_takes() -> None:
    prepared = DRIVER.prepare(TEXT, None, {})
    for id in ("zhangsan", "a@b.example", "@allison", "李四", 'q"'):
        DRIVER.check_recipient(id, None, prepared)
    with pytest.raises(Reject) as raised:
        DRIVER.check_recipient("a", {"x": "y"}, prepared)
    assert raised.value.reason == "data_invalid"


def test_partly_refused() -> None:
    body = {"errcode": 0, "errmsg": "ok", "invaliduser": "zhang|nobody", "unlicenseduser": "li", "msgid": "m1"}
    got = answered(["Zhang", "wang", "LI", "ZHANG"], body)
    assert got.whole.action is Action.ACCEPTED
    assert got.platform_id == "m1"
    assert {i: v.code for i, v in got.exceptions.items()} == {0: "invaliduser", 2: "unlicenseduser", 3: "invaliduser"}
    assert {v.action for v in got.exceptions.values()} == {Action.FAILED}


@pytest.mark.parametrize("extra", [{}, {"invaliduser": ""}, {"invaliduser": None}, {"invaliduser": "|"}])
def test_all_accepted(extra: dict[str, Any]) -> None:
    got = answered(["a", "b"], {"errcode": 0, **extra})
    assert got.whole.action is Action.ACCEPTED
    assert not got.exceptions


@pytest.mark.parametrize(
    ("errcode", "action"),
    [(-1, Action.RETRY), (45033, Action.RETRY), (45009, Action.PARK), (40014, Action.REFRESH), (42001, Action.REFRESH)]
    + [(code, Action.FAILED) for code in (81013, 82001, 40003, 40031, 60111, 40096, 84061)]
    + [(code, Action.DEAD) for code in (40001, 40056, 48002, 60020, 301002, 44004, 93000, 40058)]
    + [(999, Action.RETRY), ("45033", Action.RETRY)],
)
def test_error_codes(errcode: int | str, action: Action) -> None:
    got = answered(["a", "b"], {"errcode": errcode, "errmsg": "words of the platform"})
    assert got.whole.action is action
    assert got.whole.code == str(errcode)
    assert not got.exceptions
    quoted = "words of the platform" in got.whole.reason
    assert quoted == (action in (Action.FAILED, Action.DEAD))
    if action is Action.PARK:
        assert (got.whole.after_s or 0) >= 60


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b"<html>",
        b'{"errcode":',
        b'{"errcode":[]}',
        b'{"errmsg":"ok"}',
        b"\xff\xfe",
        b"[" * 200000,
        b'{"x":' * 200000,
        b'{"errcode":0,"invaliduser":["a"]}',
        b'{"errcode":' + b"9" * 6000 + b"}",
    ],
)
def test_unreadable_answers(body: bytes) -> None:
    assert answered(["a"], body).whole.action is Action.RETRY
    assert answered(["a"], body, driver=make(repeats="never")).whole.action is Action.UNKNOWN


def test_http_statuses() -> None:
    never = make(repeats="never")
    for status, allowed, forbidden in (
        (500, Action.RETRY, Action.UNKNOWN),
        (502, Action.RETRY, Action.UNKNOWN),
        (503, Action.RETRY, Action.RETRY),
        (429, Action.RETRY, Action.RETRY),
        (404, Action.RETRY, Action.RETRY),
        (302, Action.RETRY, Action.RETRY),
    ):
        for driver, action in ((DRIVER, allowed), (never, forbidden)):
            verdict = answered(["a"], {"errcode": 0}, status, driver).whole
            assert (verdict.action, verdict.code) == (action, f"http_{status}")


@pytest.mark.parametrize(
    ("header", "after_s"),
    [
        ("7", 7.0),
        (" 7 ", 7.0),
        ("99999999999999999", 3600.0),
        ("-1", None),
        ("Wed, 21 Oct 2026 07:28:00 GMT", None),
        ("²", None),
        ("", None),
        ("1e3", None),
    ],
)
def test_retry_after_in_seconds_only(header: str, after_s: float | None) -> None:
    assert DRIVER.result(call(["a"]), Reply(429, {"Retry-After": header}, b"")).whole.after_s == after_s


@given(st.binary(), st.integers(100, 599), st.lists(st.text(), max_size=3))
def test_never_raises_for_any_bytes(body: bytes, status: int, ids: list[str]) -> None:
    got = DRIVER.result(Call("b", "corp-a", b"", ids, ()), Reply(status, {}, body))
    assert set(got.exceptions) <= set(range(len(ids)))


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(["errcode", "errmsg", "msgid", "invaliduser", "unlicenseduser"]), ANYTHING))
def test_never_raises_for_any_json(body: dict[str, Any]) -> None:
    answered(["a", "B"], body)


@given(st.fixed_dictionaries({"type": st.sampled_from(TYPES)}), st.dictionaries(st.text(), ANYTHING), ANYTHING)
def test_any_content_is_prepared_or_rejected(head: dict[str, Any], rest: dict[str, Any], body: Any) -> None:
    try:
        prepared = DRIVER.prepare({**rest, **head, head["type"]: body}, None, {})
    except Reject:
        return
    json.loads(DRIVER.request(Call("b", "corp-a", prepared.body, ["a"], ()), "t").body)


@given(st.lists(st.text(min_size=1), min_size=1))
def test_ids_let_in_come_out_as_they_were(ids: list[str]) -> None:
    prepared = DRIVER.prepare(TEXT, None, {})
    taken = []
    for id in ids:
        try:
            DRIVER.check_recipient(id, None, prepared)
        except Reject:
            continue
        taken.append(id)
    wire = json.loads(DRIVER.request(Call("b", "corp-a", prepared.body, taken, ()), "t").body)
    assert wire["touser"].split("|") == (taken or [""])


def test_token_request_escapes_its_secret() -> None:
    request = DRIVER.token_request("corp-a")
    assert request is not None
    url = urlsplit(request.url)
    assert (request.method, url.path) == ("GET", "/cgi-bin/gettoken")
    assert parse_qs(url.query) == {"corpid": ["ww&0"], "corpsecret": ["s3cret+/"]}


def token(body: Any, status: int = 200) -> Any:
    return DRIVER.token(Reply(status, {}, body if isinstance(body, bytes) else json.dumps(body).encode()))


def test_token() -> None:
    assert token({"errcode": 0, "access_token": "t", "expires_in": 7200}) == ("t", 7200.0)
    assert token({"access_token": "t", "expires_in": "7200"}) == ("t", 7200.0)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        {},
        {"errcode": 0},
        {"access_token": "t"},
        {"access_token": "", "expires_in": 7200},
        {"access_token": "t", "expires_in": 0},
        {"access_token": "t", "expires_in": -5},
        {"access_token": "t", "expires_in": "nan"},
        {"access_token": "t", "expires_in": 1e300},
        {"errcode": -1},
        {"errcode": 45009},
    ],
)
def test_token_endpoint_out_of_order(body: Any) -> None:
    with pytest.raises(PlatformUnavailable):
        token(body)


def test_token_endpoint_by_status() -> None:
    with pytest.raises(PlatformUnavailable, match="http_502"):
        token({"access_token": "t", "expires_in": 7200}, 502)


@pytest.mark.parametrize("errcode", [40001, 40013, 40091, 41004, 60020])
def test_credentials_refused_without_telling_them(errcode: int) -> None:
    with pytest.raises(PlatformRefused, match=str(errcode)) as raised:
        token({"errcode": errcode, "errmsg": "invalid secret s3cret+/ given"})
    assert "s3cret" not in str(raised.value)
