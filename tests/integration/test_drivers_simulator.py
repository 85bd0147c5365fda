"""The three drivers against the platform simulator, over real HTTP: what they report is what its ledger holds."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from structlog.testing import capture_logs

from bench.simulator import Simulator
from bench.simulator_options import Outage, parse
from engine.clock import Clock
from engine.config import ChannelConfig, Duration
from engine.deliver import Deliverer
from engine.drivers import Action, Call, CallResult, Driver, Field, Prepared, Template, Verdict, load
from ext.schedule import NEVER

ACCOUNTS: dict[str, dict[str, Any]] = {
    "wecom.message": {"corpid": "ww0", "corpsecret": "right", "agentid": 7},
    "wechat.template": {"appid": "wx0", "secret": "right"},
    "webhook": {},
}
BASES = {"wecom.message": "wecom", "wechat.template": "wechat", "webhook": "webhook/gate"}
TEMPLATE = Template("order", "c", {"template_id": "TM0"}, {"thing1": Field(required=True), "note": Field()})
CONTENTS: dict[str, dict[str, Any]] = {
    "wecom.message": {"type": "text", "text": "早安"},
    "wechat.template": {"template": "order", "data": {"thing1": "茶"}},
    "webhook": {"any": "thing"},
}
IDS = {"wecom.message": ["Zhang", "li"], "wechat.template": ["o1"], "webhook": ["a", "b"]}


class Channel:
    """A driver, its deliverer, and the simulator it talks to."""

    def __init__(self, name: str, sim: Simulator, driver: Driver, deliverer: Deliverer) -> None:
        self.name = name
        self.sim = sim
        self.driver = driver
        self.deliverer = deliverer

    def prepare(self, content: Mapping[str, Any] | None = None) -> Prepared:
        content = content or CONTENTS[self.name]
        template = TEMPLATE if self.name == "wechat.template" else None
        return self.driver.prepare(content, template, content.get("data", {}) if template else {})

    async def send(
        self,
        ids: Sequence[str] | None = None,
        batch: str = "b1",
        content: Mapping[str, Any] | None = None,
        data: Sequence[Mapping[str, Any] | None] = (),
    ) -> CallResult:
        names = IDS[self.name] if ids is None else ids
        return await self.deliverer.call(Call(batch, "a", self.prepare(content).body, names, data), NEVER)

    def got(self) -> Counter[str]:
        """The ledger's verdicts."""
        return Counter(entry.verdict for entry in self.sim.ledger.entries(0, self.sim.ledger.rows))

    def begin(self, kind: Any, **more: Any) -> None:
        """An outage, from now on."""
        endpoint: Any = BASES[self.name].split("/")[0]
        self.sim.disturb([Outage(endpoint=endpoint, kind=kind, duration_s=600, **more)])


@asynccontextmanager
async def channel(
    name: str,
    options: Mapping[str, Any] | None = None,
    account: Mapping[str, Any] | None = None,
    timeout_s: float = 20.0,
    **keys: Any,
) -> AsyncIterator[Channel]:
    async with Simulator(parse(json.dumps({BASES[name].split("/")[0]: options or {}}))) as sim:
        config = ChannelConfig(
            name,
            f"{sim.url}/{BASES[name]}",
            timeout=Duration(int(timeout_s * 1e9)),
            accounts={"a": {**ACCOUNTS[name], **(account or {})}},
            **keys,
        )
        driver: Driver = load(name)("c", config)
        deliverer = Deliverer("c", config, driver, clock=Clock())
        await deliverer.start()
        try:
            yield Channel(name, sim, driver, deliverer)
        finally:
            await deliverer.close()
        assert deliverer.faults == 0


NAMES = sorted(BASES)


def said(result: CallResult) -> tuple[Action, str]:
    return result.whole.action, result.whole.code


# --- all three


@pytest.mark.parametrize("name", NAMES)
async def test_accepted_is_delivered_once(name: str) -> None:
    async with channel(name) as c:
        result = await c.send()
        assert result.whole.action is Action.ACCEPTED
        assert not result.exceptions
        assert c.got() == {"delivered": len(IDS[name])}
        assert not c.sim.ledger.violations


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("kind", "action", "delivered"),
    [
        ("refuse", Action.RETRY, False),
        ("error", Action.RETRY, False),
        ("garbage", Action.RETRY, False),
        ("reset", Action.UNKNOWN, False),
        ("reset_after", Action.UNKNOWN, True),
        ("hang", Action.UNKNOWN, False),
        ("slow", Action.UNKNOWN, True),
    ],
)
async def test_outages(name: str, kind: str, action: Action, delivered: bool) -> None:
    async with channel(name, timeout_s=0.4 if kind in ("hang", "slow") else 20.0) as c:
        await c.send(batch="b0")  # the token is at hand
        c.sim.reset()
        c.begin(kind)
        result = await c.send()
        assert result.whole.action is action
        assert c.got() == ({"delivered": len(IDS[name])} if delivered else {})


@pytest.mark.parametrize("name", NAMES)
async def test_out_of_service_says_for_how_long(name: str) -> None:
    async with channel(name) as c:
        await c.send(batch="b0")
        c.begin("refuse", retry_after_s=17)
        assert (await c.send()).whole == Verdict(Action.RETRY, "http_503", "busy", 17.0, refused=True)


@pytest.mark.parametrize("name", ["wecom.message", "wechat.template"])
async def test_a_token_that_ended_early_is_told_and_replaced(name: str) -> None:
    async with channel(name) as c:
        for round_ in range(3):
            assert (await c.send(batch=f"b{round_}")).whole.action is Action.ACCEPTED
            c.sim.platforms[BASES[name]].tokens.expire()
            assert said(await c.send(batch=f"b{round_}x")) == (Action.REFRESH, "42001")
        assert c.got()["delivered"] == 3 * len(IDS[name])


@pytest.mark.parametrize("name", ["wecom.message", "wechat.template"])
async def test_wrong_credentials_rest_the_account(name: str) -> None:
    id = ACCOUNTS[name].get("corpid") or ACCOUNTS[name]["appid"]
    options = {"accounts": {id: "another"}}
    with capture_logs() as logs:
        async with channel(name, options) as c:
            assert said(await c.send()) == (Action.PARK, "credentials")
            assert "delivered" not in c.got()
    assert [line["log_level"] for line in logs] == ["error"]
    assert "right" not in repr(logs)


# --- wecom.message


async def test_wecom_tells_the_refused_from_a_thousand() -> None:
    ids = [f"User{i}" for i in range(996)] + ["Invalid-1", "invalid-2", "unlicensed-3", "Z"]
    refused_ids = {"Invalid-": "invaliduser", "invalid-": "invaliduser", "unlicensed-": "unlicenseduser"}
    async with channel("wecom.message", {"refused": refused_ids}) as c:
        result = await c.send(ids)
        assert said(result) == (Action.ACCEPTED, "0")
        assert result.platform_id
        refused = {ids[i]: (v.action, v.code) for i, v in result.exceptions.items()}
        assert refused == {
            "Invalid-1": (Action.FAILED, "invaliduser"),
            "invalid-2": (Action.FAILED, "invaliduser"),
            "unlicensed-3": (Action.FAILED, "unlicenseduser"),
        }
        assert c.got() == {"delivered": 997, "invalid": 3}


async def test_wecom_none_valid() -> None:
    async with channel("wecom.message") as c:
        assert said(await c.send(["invalid-1", "unlicensed-2"])) == (Action.FAILED, "81013")


@pytest.mark.parametrize(
    "content",
    [
        {"type": "markdown", "markdown": "**x**"},
        {"type": "image", "image": {"media_id": "m"}},
        {"type": "textcard", "textcard": {"title": "t", "description": "d", "url": "https://h"}},
        {"type": "news", "news": {"articles": [{"title": "t", "url": "https://h"}]}},
        {"type": "mpnews", "mpnews": {"articles": [{"title": "t", "thumb_media_id": "m", "content": "x"}]}},
        {"type": "miniprogram_notice", "miniprogram_notice": {"appid": "a", "title": "t"}},
        {"type": "template_card", "template_card": {"card_type": "text_notice"}},
    ],
    ids=lambda content: content["type"],
)
async def test_wecom_takes_every_type_we_prepare(content: dict[str, Any]) -> None:
    async with channel("wecom.message") as c:
        assert said(await c.send(content=content)) == (Action.ACCEPTED, "0")


async def test_wecom_over_its_quota_rests() -> None:
    async with channel("wecom.message", {"quotas": [{"calls": 1, "per_s": 60}]}) as c:
        await c.send()
        verdict = (await c.send()).whole
        assert (verdict.action, verdict.code, verdict.after_s) == (Action.PARK, "45009", 60.0)


async def test_wecom_recognises_a_repeat_where_the_account_wants_it() -> None:
    async with channel("wecom.message", account={"enable_duplicate_check": True}) as c:
        first, second = await c.send(), await c.send()
        assert first.platform_id == second.platform_id
        assert c.got() == {"delivered": 2, "duplicate": 2}


# --- wechat.template


async def test_wechat_recognises_a_repeated_batch() -> None:
    async with channel("wechat.template") as c:
        results = [await c.send(batch=batch) for batch in ("b" * 32, "b" * 32, "c" * 32)]
        assert {result.whole.action for result in results} == {Action.ACCEPTED}
        assert results[0].platform_id == results[1].platform_id != results[2].platform_id
        assert c.got() == {"delivered": 2, "duplicate": 1}


async def test_wechat_recipients_of_their_own_values() -> None:
    async with channel("wechat.template") as c:
        for batch, own in (("b1", None), ("b2", {"thing1": "咖啡"}), ("b3", {"note": 7})):
            assert (await c.send(batch=batch, data=[own])).whole.action is Action.ACCEPTED
        contents = {entry.content for entry in c.sim.ledger.call_entries(0, c.sim.ledger.calls) if entry.content}
        assert len(contents) == 3


async def test_wechat_refused_recipients() -> None:
    codes = {"x-": "40003", "y-": "43004", "z-": "43019", "w-": "43101"}
    async with channel("wechat.template", {"refused": codes}) as c:
        for prefix, code in codes.items():
            assert said(await c.send([f"{prefix}1"], batch=f"b{code}")) == (Action.FAILED, code)


async def test_wechat_unknown_template_is_dead() -> None:
    async with channel("wechat.template", {"templates": ["TM9"]}) as c:
        assert said(await c.send()) == (Action.DEAD, "40037")


@pytest.mark.parametrize(("per_s", "code", "after_s"), [(60, "45011", 60.0), (86_400, "45009", 600.0)])
async def test_wechat_over_its_quota_rests(per_s: int, code: str, after_s: float) -> None:
    async with channel("wechat.template", {"quotas": [{"calls": 1, "per_s": per_s}]}) as c:
        await c.send(batch="b0")
        verdict = (await c.send()).whole
        assert (verdict.action, verdict.code, verdict.after_s) == (Action.PARK, code, after_s)


# --- webhook


async def test_webhook_each_recipients_fate() -> None:
    ids = [f"u{i}" for i in range(300)]
    async with channel("webhook", {"retry_share": 0.3, "retry_after_ms": 1500}) as c:
        result = await c.send(ids, data=[{"n": i} for i in range(300)])
        assert result.whole.action is Action.ACCEPTED
        assert set(result.exceptions.values()) == {Verdict(Action.RETRY, "retry", "retry", 1.5, refused=True)}
        assert c.got() == {"delivered": 300 - len(result.exceptions), "retry": len(result.exceptions)}
    async with channel("webhook") as c:
        result = await c.send(["a", "invalid-1"])
        assert result.exceptions == {1: Verdict(Action.FAILED, "failed", "invalid")}
        assert c.got() == {"delivered": 1, "invalid": 1}


async def test_webhook_a_repeat_has_no_second_effect() -> None:
    async with channel("webhook") as c:
        c.begin("reset_after")
        assert (await c.send()).whole.action is Action.UNKNOWN
        c.sim.outages.clear()
        assert (await c.send()).whole.action is Action.ACCEPTED
        assert c.got() == {"delivered": 2, "duplicate": 2}
        assert not c.sim.ledger.violations


async def test_webhook_too_many_at_once_is_dead_and_over_quota_waits() -> None:
    async with channel("webhook", {"batch": 1, "quotas": [{"calls": 1, "per_s": 60}]}) as c:
        assert said(await c.send()) == (Action.DEAD, "http_413")
        assert (await c.send(["a"])).whole.action is Action.ACCEPTED
        verdict = (await c.send(["b"], batch="b2")).whole
        assert (verdict.action, verdict.code) == (Action.RETRY, "http_429")
        assert 0 < (verdict.after_s or 0) <= 60
