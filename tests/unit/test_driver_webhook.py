"""webhook: our contract, bytes out and bytes in."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.config import ChannelConfig
from engine.drivers import Action, Call, CallResult, Field, Reply, Template, Verdict
from engine.drivers.webhook import Driver
from engine.errors import Reject

IDS = ["a", "b", "c"]


def make(accounts: dict[str, dict[str, Any]] | None = None, **keys: Any) -> Driver:
    config = ChannelConfig(driver="webhook", base_url="http://h/send?x=1", accounts=accounts or {}, **keys)
    return Driver("partner", config)


DRIVER = make()


def call(content: dict[str, Any], ids: list[str], data: Sequence[Any] = (), account: str = "") -> Call:
    return Call("b1", account, DRIVER.prepare(content, None, {}).body, ids, data)


def answered(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> CallResult:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return DRIVER.result(call({}, IDS), Reply(status, headers or {}, raw))


def test_request() -> None:
    request = DRIVER.request(call({"any": ["thing", 1]}, ["a", '"|@all']), "")
    assert (request.method, request.url) == ("POST", "http://h/send?x=1")
    assert dict(request.headers) == {"Content-Type": "application/json", "Idempotency-Key": "b1"}
    assert json.loads(request.body) == {
        "v": 1,
        "batch": "b1",
        "channel": "partner",
        "account": "",
        "content": {"any": ["thing", 1]},
        "to": [{"id": "a"}, {"id": '"|@all'}],
    }


@given(st.lists(st.text(min_size=1) | st.sampled_from(['x",', '","', "\\", ',"', '"', "a"]), min_size=1, max_size=6))
def test_each_recipient_stands_alone(ids: list[str]) -> None:
    body = DRIVER.request(call({}, ids), "").body
    assert body is not None
    assert json.loads(body)["to"] == [{"id": id} for id in ids]


def test_data_of_their_own() -> None:
    request = DRIVER.request(call({}, IDS, [{"x": [1, None]}, None, {}]), "")
    assert json.loads(request.body)["to"] == [{"id": "a", "data": {"x": [1, None]}}, {"id": "b"}, {"id": "c"}]


def test_authorization_of_the_account() -> None:
    driver = make({"p": {"authorization": "Bearer x"}, "q": {}})
    assert driver.request(call({}, IDS, account="p"), "").headers["Authorization"] == "Bearer x"
    assert "Authorization" not in driver.request(call({}, IDS, account="q"), "").headers
    assert json.loads(driver.request(call({}, IDS, account="p"), "").body)["account"] == "p"


def test_wants_no_token() -> None:
    assert DRIVER.token_request("") is None


def test_registered_content_is_filled() -> None:
    template = Template("t", "partner", {"text": "Hi {name}"}, {"name": Field(required=True)})
    assert json.loads(DRIVER.prepare({"ref": "t"}, template, {"name": "Li"}).body) == {"text": "Hi Li"}
    with pytest.raises(Reject) as raised:
        DRIVER.prepare({"ref": "t"}, template, {})
    assert raised.value.reason == "field_missing"


def test_each_recipients_result() -> None:
    results = [
        {"id": "a", "code": "ok"},
        {"id": "b", "code": "failed", "reason": "unsubscribed", "more": 1},
        {"id": "c", "code": "retry", "retry_after_ms": 1500},
        {"id": "z", "code": "failed"},
    ]
    got = answered({"results": results})
    assert got.whole.action is Action.ACCEPTED
    assert got.exceptions == {
        1: Verdict(Action.FAILED, "failed", "unsubscribed"),
        2: Verdict(Action.RETRY, "retry", "retry", 1.5, refused=True),
    }


def test_left_out_is_accepted_and_the_last_result_counts() -> None:
    assert not answered({"results": []}).exceptions
    twice = [{"id": "b", "code": "failed"}, {"id": "b", "code": "ok"}]
    assert not answered({"results": twice}).exceptions
    assert set(answered({"results": twice[::-1]}).exceptions) == {1}


@pytest.mark.parametrize(("wait_ms", "after_s"), [(-5, 0.0), (1e300, 3600.0), (0, 0.0), (None, None)])
def test_a_recipients_wait_is_bounded(wait_ms: float | None, after_s: float | None) -> None:
    got = answered({"results": [{"id": "a", "code": "retry", "retry_after_ms": wait_ms}]})
    assert got.exceptions[0].after_s == after_s


def test_an_unknown_code_is_a_retry() -> None:
    verdict = answered({"results": [{"id": "a", "code": "maybe", "reason": "words"}]}).exceptions[0]
    assert verdict == Verdict(Action.RETRY, "retry", "unknown code")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"ok",
        b"{}",
        b"[]",
        b"null",
        {"results": None},
        {"results": {}},
        {"results": ["a"]},
        {"results": [{"id": 1}]},
        {"results": [{"id": "a"}]},
        b'{"results":' + b"[" * 100000,
        b"\xff",
    ],
)
def test_unreadable_answers(body: Any) -> None:
    assert answered(body).whole == Verdict(Action.RETRY, "unreadable", "unreadable answer")


@pytest.mark.parametrize(
    ("status", "action"),
    [
        (200, Action.ACCEPTED),
        (202, Action.ACCEPTED),
        (301, Action.RETRY),
        (429, Action.RETRY),
        (500, Action.RETRY),
        (502, Action.RETRY),
        (503, Action.RETRY),
        (400, Action.DEAD),
        (401, Action.DEAD),
        (404, Action.DEAD),
        (408, Action.DEAD),
        (413, Action.DEAD),
        (499, Action.DEAD),
        (599, Action.RETRY),
    ],
)
def test_http_statuses(status: int, action: Action) -> None:
    verdict = answered({"results": []}, status, {"Retry-After": "3"}).whole
    assert verdict.action is action
    assert verdict.after_s == (3.0 if status in (429, 500, 502, 503, 599) else None)


def test_where_repeats_are_forbidden_an_unclear_answer_is_not_taken_for_a_no() -> None:
    driver = make(repeats="never")
    actions = [driver.result(call({}, IDS), Reply(status, {}, b"")).whole.action for status in (200, 502, 503, 429)]
    assert actions == [Action.UNKNOWN, Action.UNKNOWN, Action.RETRY, Action.RETRY]


def test_content_json_cannot_say() -> None:
    with pytest.raises(Reject) as raised:
        DRIVER.prepare({"x": "\ud800"}, None, {})
    assert raised.value.reason == "content_invalid"
    assert json.loads(DRIVER.prepare({"x": b"\0", "y": float("nan")}, None, {}).body) == {"x": "AA==", "y": None}


def test_recipients_it_refuses() -> None:
    prepared = DRIVER.prepare({}, None, {})
    for id in ("", "a\n", "\ud800"):
        with pytest.raises(Reject) as raised:
            DRIVER.check_recipient(id, None, prepared)
        assert raised.value.reason == "recipient_forbidden"
    with pytest.raises(Reject) as raised:
        DRIVER.check_recipient("a", {"x": "\ud800"}, prepared)
    assert raised.value.reason == "data_invalid"
    DRIVER.check_recipient("@all", {"x": "y"}, prepared)


@given(st.binary(), st.integers(100, 599), st.text())
def test_never_raises_for_any_bytes(body: bytes, status: int, after: str) -> None:
    answered(body, status, {"Retry-After": after})


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
RESULT = st.fixed_dictionaries(
    {"id": st.sampled_from([*IDS, "z"]), "code": st.sampled_from(["ok", "failed", "retry", "x"])}
)


@given(st.lists(RESULT) | ANYTHING)
def test_any_results_say_something_of_ours_only(results: Any) -> None:
    got = answered({"results": results})
    assert set(got.exceptions) <= {0, 1, 2}


@given(st.dictionaries(st.text(), ANYTHING))
def test_any_content_is_prepared_or_rejected(content: dict[str, Any]) -> None:
    try:
        prepared = DRIVER.prepare(content, None, {})
    except Reject:
        return
    json.loads(prepared.body)
