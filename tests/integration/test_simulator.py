"""The simulated platforms over real HTTP: endpoints, errors, quotas at their very borders."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from tests.integration.simulator_client import Client, simulated, until


@pytest_asyncio.fixture
async def client() -> AsyncIterator[Client]:
    async with simulated() as client:
        yield client


# --- WeCom


async def test_wecom_delivers_to_every_user_once_and_names_the_wrong_ones(client: Client) -> None:
    reply = await client.wecom("Ann|Bob|Ann||invalid-X|unlicensed-Y")
    assert reply["errcode"] == 0
    assert reply["msgid"]
    assert reply["invaliduser"] == "invalid-x"
    assert reply["unlicenseduser"] == "unlicensed-y"
    verdicts = [await client.verdicts(id) for id in ("Ann", "Bob", "invalid-X", "unlicensed-Y")]
    assert verdicts == [["delivered"], ["delivered"], ["invalid"], ["invalid"]]


async def test_wecom_all_invalid_is_81013(client: Client) -> None:
    reply = await client.wecom("invalid-a|invalid-b")
    assert reply["errcode"] == 81013
    assert reply["invaliduser"] == "invalid-a|invalid-b"
    assert (await client.lines("/sim/calls?api=message/send"))[0]["code"] == 81013


async def test_wecom_all_is_one_entry_that_says_so(client: Client) -> None:
    assert (await client.wecom("@all"))["errcode"] == 0
    assert await client.verdicts("@all") == ["delivered"]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"touser": ""}, 82001),
        ({"touser": "|".join(f"u{n}" for n in range(1001))}, 40031),
        ({"toparty": "|".join(str(n) for n in range(101))}, 40032),
        ({"agentid": ""}, 40056),
        ({"agentid": "x"}, 40056),
        ({"msgtype": "shout"}, 40008),
        ({"text": {"content": ""}}, 44004),
        ({"text": {}}, 44004),
        ({"text": "hello"}, 47001),
        ({"msgtype": "markdown"}, 44004),
        ({"msgtype": "news", "news": {"articles": [{"title": "t"}] * 9}}, 45008),
        ({"touser": 5}, 47001),
    ],
)
async def test_wecom_refuses_a_wrong_message_without_effect(client: Client, change: dict[str, Any], code: int) -> None:
    reply = await client.wecom(**{"touser": "ann", **change})
    assert reply["errcode"] == code
    assert "delivered" not in (await client.counts())["verdicts"].get("wecom", {})


async def test_wecom_takes_1000_users_and_other_types(client: Client) -> None:
    assert (await client.wecom("|".join(f"u{n}" for n in range(1000))))["errcode"] == 0
    assert (await client.wecom("ann", msgtype="textcard", textcard={"title": "t", "description": "d", "url": "u"}))[
        "errcode"
    ] == 0
    assert (await client.counts())["delivered_recipients"] == 1001


async def test_wecom_long_text_is_cut_in_silence(client: Client) -> None:
    assert (await client.wecom("ann", text={"content": "字" * 683}))["errcode"] == 0
    assert (await client.counts())["truncated"] == 1


async def test_wecom_body_that_is_no_json_is_47001(client: Client) -> None:
    reply = await client.answer("POST", f"/wecom/cgi-bin/message/send?access_token={client.corp}", b"{")
    assert reply["errcode"] == 47001


async def test_wecom_duplicate_check_delivers_once_in_its_interval(client: Client) -> None:
    check = {"enable_duplicate_check": 1, "duplicate_check_interval": 60}
    first = await client.wecom("ann", **check)
    client.clock.to(59.999)
    assert (await client.wecom("ann", **check))["msgid"] == first["msgid"]
    client.clock.to(60)
    assert (await client.wecom("ann", **check))["msgid"] != first["msgid"]
    assert await client.verdicts("ann") == ["delivered", "duplicate", "delivered"]


async def test_wecom_drops_the_31st_message_of_a_minute_in_silence(client: Client) -> None:
    for _ in range(31):
        assert (await client.wecom("ann"))["errcode"] == 0
    client.clock.to(59.999_999_999)
    await client.wecom("ann|bob")
    client.clock.to(60)
    await client.wecom("ann")
    assert await client.verdicts("ann") == ["delivered"] * 30 + ["dropped", "dropped", "delivered"]
    assert await client.verdicts("bob") == ["delivered"]


# --- tokens


async def test_wecom_token_is_the_same_until_it_expires(client: Client) -> None:
    client.clock.to(7199.5)
    again = await client.answer("GET", "/wecom/cgi-bin/gettoken?corpid=corp&corpsecret=s")
    assert (again["access_token"], again["expires_in"]) == (client.corp, 1)
    assert (await client.wecom("ann"))["errcode"] == 0
    client.clock.to(7200)
    assert (await client.wecom("ann"))["errcode"] == 42001
    new = await client.answer("GET", "/wecom/cgi-bin/gettoken?corpid=corp&corpsecret=s")
    assert new["access_token"] != client.corp
    client.corp = new["access_token"]
    assert (await client.wecom("ann"))["errcode"] == 0


async def test_wecom_token_that_was_never_issued_is_40014_and_none_41001(client: Client) -> None:
    client.corp = client.app
    assert (await client.wecom("ann"))["errcode"] == 40014
    client.corp = ""
    assert (await client.wecom("ann"))["errcode"] == 41001


async def test_credentials_are_checked_where_accounts_are_given() -> None:
    options = '{"wecom": {"accounts": {"corp": "s"}}, "wechat": {"accounts": {"app": "s"}}}'
    async with simulated(options) as client:
        wecom = "/wecom/cgi-bin/gettoken?corpid={}&corpsecret={}"
        wechat = "/wechat/cgi-bin/token?grant_type=client_credential&appid={}&secret={}"
        for path, account in ((wecom, "corp"), (wechat, "app")):
            assert (await client.answer("GET", path.format(account, "wrong")))["errcode"] == 40001
            assert (await client.answer("GET", path.format("other", "s")))["errcode"] == 40013
            assert (await client.answer("GET", path.format(account, "")))["errcode"] == 40001


async def test_wechat_token_is_replaced_and_the_old_one_lives_five_minutes_on(client: Client) -> None:
    old = client.app
    reply = await client.answer("GET", "/wechat/cgi-bin/token?grant_type=client_credential&appid=app&secret=s")
    assert (reply["access_token"] != old, reply["expires_in"]) == (True, 7200)
    client.clock.to(299.999)
    assert (await client.wechat("o1"))["errcode"] == 0
    client.clock.to(300)
    assert (await client.wechat("o1"))["errcode"] == 40001
    client.clock.to(7200)
    assert (await client.wechat("o1"))["errcode"] == 42001


async def test_wechat_stable_token_stays_until_its_last_five_minutes_or_a_forced_refresh(client: Client) -> None:
    body = {"grant_type": "client_credential", "appid": "app", "secret": "s"}

    async def stable(**more: Any) -> str:
        reply = await client.answer("POST", "/wechat/cgi-bin/stable_token", body | more)
        token: str = reply["access_token"]
        return token

    first = await stable()
    client.clock.to(6899)
    assert await stable() == first
    client.clock.to(6900)
    second = await stable()
    assert second != first
    client.app = first
    assert (await client.wechat("o1"))["errcode"] == 0  # both are valid
    third = await stable(force_refresh=True)
    client.app = second
    assert (await client.wechat("o1"))["errcode"] == 40001
    client.app = third
    assert (await client.wechat("o1"))["errcode"] == 0


async def test_token_requests_are_checked(client: Client) -> None:
    assert (await client.answer("GET", "/wechat/cgi-bin/token?appid=app&secret=s"))["errcode"] == 40002
    assert (await client.answer("POST", "/wechat/cgi-bin/stable_token", {"appid": "a"}))["errcode"] == 40002
    assert (await client.answer("POST", "/wechat/cgi-bin/stable_token", b"["))["errcode"] == 47001
    assert (await client.answer("POST", "/wecom/cgi-bin/gettoken"))["errcode"] == 43001
    assert (await client.answer("GET", "/wechat/cgi-bin/message/template/send"))["errcode"] == 43002


async def test_expire_ends_every_token_of_one_platform(client: Client) -> None:
    await client.answer("POST", "/sim/expire?endpoint=wecom")
    assert (await client.wecom("ann"))["errcode"] == 42001
    assert (await client.wechat("o1"))["errcode"] == 0


# --- WeChat


async def test_wechat_delivers(client: Client) -> None:
    reply = await client.wechat("o1", url="https://example.com", miniprogram={"appid": "m", "pagepath": "p"})
    assert (reply["errcode"], isinstance(reply["msgid"], int)) == (0, True)
    entry = (await client.answer("GET", "/sim/ledger?recipient=o1"))[0]
    call = (await client.lines("/sim/calls?api=message/template/send"))[0]
    assert (entry["verdict"], entry["call"]) == ("delivered", call["call"])
    assert (call["account"], call["reference"], call["recipients"]) == ("app", str(reply["msgid"]), 1)


@pytest.mark.parametrize(
    ("id", "code"),
    [("", 40003), ("invalid-o", 40003), ("unfollowed-o", 43004), ("blacklisted-o", 43019), ("declined-o", 43101)],
)
async def test_wechat_refuses_a_recipient(client: Client, id: str, code: int) -> None:
    assert (await client.wechat(id))["errcode"] == code
    assert "delivered" not in (await client.counts())["verdicts"]["wechat"]


async def test_wechat_refuses_an_unknown_template_and_data_that_is_none() -> None:
    async with simulated('{"wechat": {"templates": ["t1"]}}') as client:
        assert (await client.wechat("o1"))["errcode"] == 0
        assert (await client.wechat("o2", template_id="t2"))["errcode"] == 40037
        assert (await client.wechat("o2", template_id=""))["errcode"] == 40037
        assert (await client.wechat("o2", data={"k": "v"}))["errcode"] == 47001
        assert await client.verdicts("o2") == ["refused"] * 3


async def test_wechat_client_msg_id_sends_once_in_ten_minutes_to_each_openid(client: Client) -> None:
    first = await client.wechat("o1", client_msg_id="m")
    client.clock.to(599.999)
    assert await client.wechat("o1", client_msg_id="m") == first
    await client.wechat("o2", client_msg_id="m")
    client.clock.to(600)
    assert (await client.wechat("o1", client_msg_id="m"))["msgid"] != first["msgid"]
    assert await client.verdicts("o1") == ["delivered", "duplicate", "delivered"]
    assert await client.verdicts("o2") == ["delivered"]


# --- webhook


async def test_webhook_says_only_what_was_not_accepted(client: Client) -> None:
    results = [{"id": "invalid-b", "code": "failed", "reason": "invalid"}]
    assert await client.webhook("b1", "a", "invalid-b", "c") == (200, {"results": results})
    assert await client.webhook("b2", "a") == (200, {"results": []})
    await client.webhook("b3", "a")
    assert await client.verdicts("a") == ["delivered"] * 3
    assert (await client.counts())["repeated_recipients"] == 1


async def test_webhook_same_key_has_the_same_answer_and_no_second_effect(client: Client) -> None:
    first = await client.webhook("b1", "a", "invalid-b")
    assert await client.webhook("b1", "a", "invalid-b") == first
    assert await client.verdicts("a") == ["delivered", "duplicate"]
    status, _ = await client.webhook("b1", "a", "c")
    assert status == 422
    assert await client.verdicts("c") == ["refused"]
    assert (await client.counts())["violations"] == {"webhook": {"key used for another body": 1}}


@pytest.mark.parametrize(
    "change", [{"v": 2}, {"v": None}, {"to": []}, {"to": [{"id": ""}]}, {"to": [{"data": {}}]}, {"extra": 1}]
)
async def test_webhook_refuses_what_breaks_the_contract(client: Client, change: dict[str, Any]) -> None:
    status, reply = await client.webhook("b1", "a", **change)
    assert status == 400
    assert reply["error"]


async def test_webhook_key_must_be_the_batch_and_the_batch_not_too_large() -> None:
    async with simulated('{"webhook": {"batch": 2}}') as client:
        assert (await client.webhook("b1", "a", key="b2"))[0] == 400
        assert (await client.webhook("b1", "a", key=""))[0] == 400
        assert (await client.webhook("b1", "a", "b", "c"))[0] == 413
        assert (await client.webhook("b1", "a", "b"))[0] == 200


async def test_webhook_tells_some_to_come_again_and_takes_them_in_the_end() -> None:
    async with simulated('{"webhook": {"retry_share": 0.5, "retry_after_ms": 70}}') as client:
        left, rounds = [f"r{n}" for n in range(200)], 0
        while left:
            _, reply = await client.webhook(f"b{rounds}", *left)
            assert all((r["code"], r["retry_after_ms"]) == ("retry", 70) for r in reply["results"])
            left, rounds = [r["id"] for r in reply["results"]], rounds + 1
            assert rounds > 1 or 60 < len(left) < 140
        assert rounds > 2
        counts = await client.counts()
        assert (counts["delivered_recipients"], counts["repeated_recipients"]) == (200, 0)


# --- quotas, concurrency, chance


@pytest.mark.parametrize(
    ("endpoint", "per_s", "code"), [("wecom", 60, 45009), ("wechat", 60, 45011), ("wechat", 86_400, 45009)]
)
async def test_quota_is_exact_in_every_window(endpoint: str, per_s: int, code: int) -> None:
    async with simulated(f'{{"{endpoint}": {{"quotas": [{{"calls": 3, "per_s": {per_s}}}]}}}}') as client:
        send = client.wecom if endpoint == "wecom" else client.wechat
        codes = []
        # A nanosecond less than a window after the first is too early; a window after it, exactly one more passes.
        for at in (0, 1, 2, per_s - 1e-9, per_s, per_s, per_s + 1 - 1e-9, per_s + 1):
            client.clock.to(at)
            life = per_s if per_s > 7200 else 0
            if life and at >= per_s - 1:
                await client.log_in()
            codes.append((await send("ann"))["errcode"])
        assert codes == [0, 0, 0, code, 0, code, code, 0]
        assert (await client.counts())["violations"] == {endpoint: {"quota": 3}}
        assert (await client.verdicts("ann")).count("refused") == 3


async def test_quota_of_each_account_and_endpoint_is_its_own() -> None:
    async with simulated('{"wecom": {"quotas": [{"calls": 1, "per_s": 60}]}}') as client:
        assert (await client.wecom("ann"))["errcode"] == 0
        assert (await client.wechat("o1"))["errcode"] == 0
        reply = await client.answer("GET", "/wecom/cgi-bin/gettoken?corpid=other&corpsecret=s")
        client.corp = reply["access_token"]
        assert (await client.wecom("ann"))["errcode"] == 0


async def test_quota_penalty_refuses_everything_for_its_time() -> None:
    async with simulated('{"wecom": {"quotas": [{"calls": 1, "per_s": 1, "penalty_s": 60}]}}') as client:
        codes = []
        for at in (0, 0.5, 60.499, 60.5):
            client.clock.to(at)
            codes.append((await client.wecom("ann"))["errcode"])
        assert codes == [0, 45009, 45009, 0]


async def test_quota_of_recipients_and_of_a_webhook() -> None:
    async with simulated('{"webhook": {"quotas": [{"recipients": 3, "per_s": 10}]}}') as client:
        assert (await client.webhook("b1", "a", "b"))[0] == 200
        client.clock.to(2)
        async with client.session.post(
            client.sim.url + "/webhook/gate",
            data=b'{"v":1,"batch":"b2","channel":"c","account":"a","content":{},"to":[{"id":"a"},{"id":"b"}]}',
            headers={"Idempotency-Key": "b2"},
        ) as response:
            assert (response.status, response.headers["Retry-After"]) == (429, "8")
        assert (await client.webhook("b3", "c"))[0] == 200
        client.clock.to(10)
        assert (await client.webhook("b2", "a", "b"))[0] == 200


async def test_concurrency_over_the_limit_is_45033() -> None:
    options = '{"wecom": {"concurrency": 2, "latency": {"median_s": 600}}}'
    async with simulated('{"wecom": {"concurrency": 2}}') as client:
        assert [(await client.wecom("ann"))["errcode"] for _ in range(3)] == [0, 0, 0]
        await client.answer("POST", "/sim/options", options.encode())
        slow = [asyncio.create_task(client.wecom("bob")) for _ in range(2)]
        await until(lambda: len(client.sim.ledger.of("bob")) == 2)
        await client.answer("POST", "/sim/options", {"wecom": {"latency": {"median_s": 0}}})
        assert (await client.wecom("cat"))["errcode"] == 45033
        for task in slow:
            task.cancel()
        await asyncio.gather(*slow, return_exceptions=True)
        # The clients left: their slots are free again.
        async with asyncio.timeout(20):
            while (await client.wecom("cat"))["errcode"] != 0:
                pass
        counts = await client.counts()
        assert counts["max_concurrency"]["wecom"] == 3
        assert counts["violations"]["wecom"]["concurrency"] >= 1


async def test_shares_are_of_recipients_and_the_same_in_every_run() -> None:
    options = '{"wecom": {"invalid_share": 0.1, "drop_share": 0.2}}'
    ids = "|".join(f"u{n}" for n in range(1000))
    found = []
    for _ in range(2):
        async with simulated(options) as client:
            await client.wecom(ids)
            found.append([(e["recipient"], e["verdict"]) for e in await client.lines("/sim/ledger/export")])
    assert found[0] == found[1]
    verdicts = [verdict for _, verdict in found[0]]
    assert 60 < verdicts.count("invalid") < 140
    assert 120 < verdicts.count("dropped") < 240


async def test_retry_share_of_a_platform_is_its_busy_answer_without_effect() -> None:
    async with simulated('{"wechat": {"retry_share": 0.5}}') as client:
        codes = [(await client.wechat(f"o{n}"))["errcode"] for n in range(100)]
        assert 20 < codes.count(-1) < 80
        assert (await client.counts())["delivered_recipients"] == codes.count(0)
