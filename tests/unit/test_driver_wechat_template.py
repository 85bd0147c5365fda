"""wechat.template: bytes out, bytes in."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.config import ChannelConfig
from engine.drivers import Action, Call, CallResult, Field, Prepared, Reply, Template
from engine.drivers.wechat_template import Driver
from engine.errors import PlatformRefused, Reject

MINI = {"appid": "wx1", "pagepath": "p?x=1"}
TEMPLATE = Template(
    "order",
    "c",
    {"template_id": "TM0", "url": "https://h/all", "miniprogram": MINI},
    {"thing1": Field(required=True, max_chars=4), "amount2": Field(required=True), "note": Field(max_chars=3)},
)
FULL = {"thing1": "茶叶", "amount2": 12.5}


def make(**keys: Any) -> Driver:
    accounts = {"svc": {"appid": "wx0", "secret": "s3cret"}}
    return Driver("c", ChannelConfig(driver="wechat.template", base_url="http://h", accounts=accounts, **keys))


DRIVER = make()


def prepare(data: Mapping[str, Any], template: Template = TEMPLATE, **content: Any) -> Prepared:
    return DRIVER.prepare({"template": "order", "data": data, **content}, template, data)


def sent(prepared: Prepared, own: Mapping[str, Any] | None = None) -> Any:
    data = () if own is None else [own]
    return json.loads(DRIVER.request(Call("b" * 32, "svc", prepared.body, ["openid"], data), "t").body)


def answered(body: Any, status: int = 200, driver: Driver = DRIVER) -> CallResult:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return driver.result(Call("b", "svc", prepare(FULL).body, ["openid"], ()), Reply(status, {}, raw))


def test_request() -> None:
    request = DRIVER.request(Call("b1", "svc", prepare(FULL).body, ["o-1_x"], ()), "a/b")
    url = urlsplit(request.url)
    assert (request.method, url.path) == ("POST", "/cgi-bin/message/template/send")
    assert parse_qs(url.query) == {"access_token": ["a/b"]}
    assert json.loads(request.body) == {
        "touser": "o-1_x",
        "template_id": "TM0",
        "url": "https://h/all",
        "miniprogram": MINI,
        "client_msg_id": "b1",
        "data": {"thing1": {"value": "茶叶"}, "amount2": {"value": "12.5"}},
    }


def test_recipients_own_values_lie_over_the_sends() -> None:
    prepared = prepare(FULL)
    own = {"thing1": "咖啡", "note": 7}
    DRIVER.check_recipient("o", own, prepared)
    assert sent(prepared, own)["data"] == {
        "thing1": {"value": "咖啡"},
        "amount2": {"value": "12.5"},
        "note": {"value": "7"},
    }
    assert sent(prepared)["data"]["thing1"] == {"value": "茶叶"}
    assert sent(prepared, {})["data"]["thing1"] == {"value": "茶叶"}


def test_a_recipient_may_bring_what_its_send_leaves_open() -> None:
    prepared = prepare({"amount2": "1"})
    DRIVER.check_recipient("o", {"thing1": "x"}, prepared)
    assert sent(prepared, {"thing1": "x"})["data"]["thing1"] == {"value": "x"}
    for own in (None, {}, {"note": "x"}, {"thing1": ""}):
        with pytest.raises(Reject, match="thing1") as raised:
            DRIVER.check_recipient("o", own, prepared)
        assert raised.value.reason == "field_missing"
    with pytest.raises(Reject, match="thing1"):
        DRIVER.check_recipient("o", {"thing1": ""}, prepare(FULL))


@pytest.mark.parametrize(
    ("own", "reason"),
    [
        ({"thing1": "12345"}, "field_too_long"),
        ({"thing1": None}, "field_invalid"),
        ({"other": "x"}, "field_invalid"),
        ({"thing1": "\ud800"}, "content_invalid"),
    ],
)
def test_values_that_do_not_fit(own: dict[str, Any], reason: str) -> None:
    with pytest.raises(Reject) as raised:
        DRIVER.check_recipient("o", own, prepare(FULL))
    assert raised.value.reason == reason
    with pytest.raises(Reject) as raised:
        prepare(own)
    assert raised.value.reason == reason


def test_a_send_may_have_a_link_of_its_own() -> None:
    wire = sent(prepare(FULL, url="https://h/1", miniprogram={"appid": "wx2"}))
    assert (wire["url"], wire["miniprogram"]) == ("https://h/1", {"appid": "wx2"})


@pytest.mark.parametrize(
    "content",
    [
        {"url": 7},
        {"miniprogram": "x"},
        {"miniprogram": {}},
        {"miniprogram": {"appid": "a", "x": 1}},
        {"color": "red"},
        {"touser": "someone"},
        {"miniprogram": {"appid": "a", "pagepath": 1}},
    ],
)
def test_contents_it_refuses(content: dict[str, Any]) -> None:
    with pytest.raises(Reject) as raised:
        prepare(FULL, **content)
    assert raised.value.reason == "content_invalid"


@pytest.mark.parametrize("content", [{}, {"template_id": ""}, {"template_id": 7}, {"template_id": "x", "touser": "y"}])
def test_a_wrong_registration_is_refused(content: dict[str, Any]) -> None:
    with pytest.raises(Reject) as raised:
        prepare(FULL, TEMPLATE._replace(content=content))
    assert raised.value.reason == "content_invalid"


def test_only_registered_content() -> None:
    assert DRIVER.registered_only
    with pytest.raises(Reject) as raised:
        DRIVER.prepare({"template_id": "TM0"}, None, {})
    assert raised.value.reason == "content_invalid"


def test_keys_tell_wire_and_fields_apart() -> None:
    other = TEMPLATE._replace(fields={**TEMPLATE.fields, "note": Field(max_chars=9)})
    keys = [prepare(FULL).key, prepare(FULL, url="u").key, prepare({**FULL, "note": "x"}).key, prepare(FULL, other).key]
    assert len(set(keys)) == 4
    assert prepare(dict(FULL)).key == keys[0]


@pytest.mark.parametrize("id", ["", "a b", "a\n", "\u200b", "\ud800"])
def test_ids_it_refuses(id: str) -> None:
    with pytest.raises(Reject) as raised:
        DRIVER.check_recipient(id, None, prepare(FULL))
    assert raised.value.reason == "recipient_forbidden"


@pytest.mark.parametrize(
    ("errcode", "action"),
    [(0, Action.ACCEPTED), (45065, Action.ACCEPTED), (40241, Action.ACCEPTED)]
    + [(-1, Action.RETRY), (43117, Action.RETRY), (45066, Action.RETRY), (7, Action.RETRY)]
    + [(45011, Action.PARK), (45009, Action.PARK), (45028, Action.PARK)]
    + [(code, Action.REFRESH) for code in (40001, 40014, 42001)]
    + [(code, Action.FAILED) for code in (40003, 43004, 43019, 43101, 48002)]
    + [(code, Action.DEAD) for code in (40130, 40031, 40032, 40037, 47001, 47003, 48001, 48004, 50002)],
)
def test_error_codes(errcode: int, action: Action) -> None:
    got = answered({"errcode": errcode, "errmsg": "words rid: 1-2", "msgid": 2918131553548107776})
    assert (got.whole.action, got.whole.code) == (action, str(errcode))
    assert got.platform_id == "2918131553548107776"
    assert ("rid" in got.whole.reason) == (action in (Action.FAILED, Action.DEAD))
    if action is Action.PARK or errcode == 45066:
        assert (got.whole.after_s or 0) >= 60


def test_success_without_errcode() -> None:
    assert answered({"msgid": 7}).whole.action is Action.ACCEPTED


@pytest.mark.parametrize("body", [b"", b"{}", b"null", b"<xml>", b'{"errcode":null}', b"[" * 100_000])
def test_unreadable_answers(body: bytes) -> None:
    assert answered(body).whole.action is Action.RETRY
    assert answered(body, driver=make(repeats="never")).whole.action is Action.UNKNOWN


def test_http_statuses() -> None:
    for status in (500, 502, 503, 429, 404, 301):
        assert answered({"errcode": 0}, status).whole.action is Action.RETRY
    assert answered({"errcode": 0}, 502, make(repeats="never")).whole.action is Action.UNKNOWN


def test_stable_token() -> None:
    request = DRIVER.token_request("svc")
    assert request is not None
    assert (request.method, request.url) == ("POST", "http://h/cgi-bin/stable_token")
    assert json.loads(request.body) == {
        "grant_type": "client_credential",
        "appid": "wx0",
        "secret": "s3cret",
        "force_refresh": False,
    }
    assert DRIVER.token(Reply(200, {}, b'{"access_token":"t","expires_in":7200}')) == ("t", 7200.0)
    with pytest.raises(PlatformRefused, match="40125") as raised:
        DRIVER.token(Reply(200, {}, b'{"errcode":40125,"errmsg":"invalid appsecret s3cret"}'))
    assert "s3cret" not in str(raised.value)


@given(st.binary(), st.integers(100, 599))
def test_never_raises_for_any_bytes(body: bytes, status: int) -> None:
    answered(body, status)


@given(st.dictionaries(st.sampled_from(["thing1", "amount2", "note", "x"]), st.text() | st.integers() | st.floats()))
def test_any_values_are_sent_or_rejected(own: dict[str, Any]) -> None:
    prepared = prepare(FULL)
    try:
        DRIVER.check_recipient("o", own, prepared)
    except Reject:
        return
    data = sent(prepared, own)["data"]
    assert {name: v["value"] for name, v in data.items()} == {"thing1": "茶叶", "amount2": "12.5"} | {
        name: str(value) for name, value in own.items()
    }
