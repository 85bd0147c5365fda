"""May a send be delivered, by which account, to whom, and when?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgpack
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.admit import LATEST_MS, Channel, Hold, address, admit, prepare, times
from engine.config import ChannelConfig, Duration, TierConfig
from engine.decode import decode
from engine.drivers import Field, Prepared, Template, load
from engine.errors import Reject
from engine.send import Send

URL = "http://127.0.0.1:1/"
WEBHOOK = load("webhook")("partner", ChannelConfig("webhook", URL))
WECHAT = load("wechat.template")(
    "order", ChannelConfig("wechat.template", URL, accounts={"a": {"appid": "w", "secret": "s"}})
)
PARTNER = Channel("partner", 0, WEBHOOK, {"default": 0}, True)
ORDER = Channel("order", 1, WECHAT, {"a": 1, "b": 2}, True)
CHANNELS = {"partner": PARTNER, "order": ORDER}
WELCOME = Template("welcome", "partner", {"text": "Hello {name}"}, {"name": Field(required=True)})
SHIPPED = Template("shipped", "order", {"template_id": "T"}, {"thing1": Field(required=True)})
TEMPLATES = {"welcome": WELCOME, "shipped": SHIPPED}
NS_A_MS, HOUR_MS = 1_000_000, 3_600_000
POLICY = TierConfig(due_after=Duration(60_000 * NS_A_MS), max_age=Duration(HOUR_MS * NS_A_MS))


def made(to: Sequence[Any] = ("u",), channel: str = "partner", **keys: Any) -> Send:
    body: dict[str, Any] = {"id": "i", "channel": channel, "to": list(to), "content": {"text": "x"}, **keys}
    return decode(msgpack.packb(body))


def reason(call: Any, *arguments: Any) -> str:
    with pytest.raises(Reject) as caught:
        call(*arguments)
    return caught.value.reason


# --- the address


def test_the_only_account_is_meant_when_none_is_named() -> None:
    assert address(made(), CHANNELS) == (PARTNER, "default")


def test_a_named_account() -> None:
    assert address(made(channel="order", account="b"), CHANNELS) == (ORDER, "b")


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        ({"channel": "nowhere"}, "channel_unknown"),
        ({"channel": "order"}, "account_missing"),
        ({"channel": "order", "account": "c"}, "account_unknown"),
        ({"account": "a"}, "account_unknown"),
    ],
)
def test_an_address_that_is_none(keys: dict[str, Any], why: str) -> None:
    assert reason(address, made(**keys), CHANNELS) == why


# --- the times


@pytest.mark.parametrize(
    ("keys", "first_seen", "expected"),
    [
        ({}, 1000, (0, 61_000, 1000 + HOUR_MS)),
        ({"not_before": 5000}, 1000, (5000, 65_000, 5000 + HOUR_MS)),
        ({"not_before": 500}, 1000, (500, 61_000, 1000 + HOUR_MS)),
        ({"due": 7}, 1000, (0, 7, 1000 + HOUR_MS)),
        ({"deadline": 9}, 1000, (0, 61_000, 9)),
        ({"deadline": 2 * HOUR_MS}, 1000, (0, 61_000, 1000 + HOUR_MS)),
    ],
)
def test_times_count_from_the_start(keys: dict[str, Any], first_seen: int, expected: tuple[int, int, int]) -> None:
    assert msgspec.structs.astuple(times(made(**keys), first_seen, POLICY)) == expected


MS = st.integers(0, 2**53 - 1)


@given(st.none() | MS, st.none() | MS, st.none() | MS, st.integers(0, 10**18))
def test_times_always_fit_the_core(not_before: int | None, due: int | None, deadline: int | None, seen: int) -> None:
    send = msgspec.structs.replace(made(), not_before=not_before, due=due, deadline=deadline)
    when = times(send, seen, POLICY)
    assert all(0 <= ms <= LATEST_MS and ms * NS_A_MS <= 2**62 for ms in msgspec.structs.astuple(when))
    if deadline is not None:
        assert when.deadline <= deadline


# --- the content


def test_content_of_its_own_is_checked_by_the_driver() -> None:
    prepared = prepare(made(content={"a": 1}), PARTNER, TEMPLATES)
    assert isinstance(prepared, Prepared)
    assert prepared.body == b'{"a":1}'
    assert prepared == prepare(made(content={"a": 1}), PARTNER, {}), "equal content, equal key"
    assert prepared != prepare(made(content={"a": 2}), PARTNER, {})


def test_a_registered_content_is_filled() -> None:
    prepared = prepare(made(content={"ref": "welcome", "data": {"name": "Ann"}}), PARTNER, TEMPLATES)
    assert isinstance(prepared, Prepared)
    assert prepared.body == b'{"text":"Hello Ann"}'


def test_where_only_registered_contents_are_taken_the_template_names_it() -> None:
    content = {"template": "shipped", "data": {"thing1": "tea"}}
    assert isinstance(prepare(made(channel="order", content=content), ORDER, TEMPLATES), Prepared)
    assert prepare(made(channel="order", content=content), ORDER, {}) == Hold("shipped")


def test_what_is_not_registered_waits() -> None:
    assert prepare(made(content={"ref": "later"}), PARTNER, TEMPLATES) == Hold("later")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ({"ref": "shipped"}, "content_other_channel"),
        ({"ref": "welcome", "data": [1]}, "data_invalid"),
        ({"ref": "welcome", "data": None}, "data_invalid"),
        ({"ref": "welcome"}, "field_missing"),
        ({"ref": "welcome", "data": {"name": "n", "x": 1}}, "field_invalid"),
        ({"ref": "welcome", "text": "typo"}, "content_invalid"),
        ({"ref": 7}, "content_invalid"),
        ({"ref": ["welcome"]}, "content_invalid"),
        ({"ref": {}, "data": {}}, "content_invalid"),
        ({"ref": ""}, "content_invalid"),
        ({"ref": "王" * 43}, "content_invalid"),
    ],
)
def test_a_content_that_cannot_be_sent(content: Mapping[str, Any], why: str) -> None:
    assert reason(prepare, made(content=content), PARTNER, TEMPLATES) == why


def test_a_template_whose_name_is_none_does_not_wait_for_it() -> None:
    assert reason(prepare, made(channel="order", content={"template": 7}), ORDER, TEMPLATES) == "content_invalid"
    assert prepare(made(channel="order", content={"template": "t" * 128}), ORDER, TEMPLATES) == Hold("t" * 128)


# --- the recipients


ANY = WEBHOOK.prepare({}, None, {})


def test_one_recipient() -> None:
    assert msgspec.structs.astuple(admit(made(["王"]), WEBHOOK, ANY)) == (["王".encode()], [0], {}, [], [])
    refused = admit(made(["\x07"]), WEBHOOK, ANY)
    assert (refused.ids, [(at, reject.reason) for at, reject in refused.refused]) == ([], [(0, "recipient_forbidden")])


def test_recipients_are_told_apart() -> None:
    to = ["a", {"id": "b", "data": {"n": 1}}, "a", "\x07", {"id": "a", "data": {"n": 2}}, {"id": "c"}, "\x07"]
    admitted = admit(made(to), WEBHOOK, ANY)
    assert (admitted.ids, admitted.positions) == ([b"a", b"b", b"c"], [0, 1, 5])
    assert admitted.data == {1: {"n": 1}}
    assert admitted.duplicates == [2, 4, 6]
    assert [(at, reject.reason) for at, reject in admitted.refused] == [(3, "recipient_forbidden")]


def test_a_lone_recipient_with_data_keeps_it() -> None:
    assert admit(made([{"id": "a", "data": {"n": 1}}]), WEBHOOK, ANY).data == {0: {"n": 1}}


def test_data_that_cannot_be_carried_costs_only_its_recipient() -> None:
    to = ["a", {"id": "b", "data": {"n": b"\x00"}}, {"id": "c", "data": {"n": float("nan")}}]
    admitted = admit(made(to), WEBHOOK, ANY)
    assert admitted.ids == [b"a"]
    assert [(at, reject.reason) for at, reject in admitted.refused] == [(1, "data_invalid"), (2, "data_invalid")]


@given(st.lists(st.sampled_from(["a", "b", "王", "\x07", "\x08"]), min_size=1, max_size=12))
def test_every_place_is_in_exactly_one_column(to: list[str]) -> None:
    admitted = admit(made(to), WEBHOOK, ANY)
    places = [*admitted.positions, *admitted.duplicates, *(at for at, _ in admitted.refused)]
    assert sorted(places) == list(range(len(to)))
    assert [to[at].encode() for at in admitted.positions] == admitted.ids
    assert len(set(admitted.ids)) == len(admitted.ids)
