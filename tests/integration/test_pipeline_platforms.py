"""The pipeline against three simulated platforms with their troubles; their ledger is the judge."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from bench.simulator import Simulator
from bench.simulator_options import Outage, parse
from engine.send import Outcome
from tests.integration.support import channel, configured, now_ms, registered, send, working

SOME = 150
QUICKLY = 'retry = { attempts = 30, first = "5ms", most = "50ms" }\n'
WECOM = QUICKLY + 'batch = 20\n[channels.notice.accounts.a]\ncorpid = "ww0"\ncorpsecret = "s"\nagentid = 1\n'
WECHAT = QUICKLY + '[channels.order.accounts.a]\nappid = "wx0"\nsecret = "s"\n'
TROUBLED = {
    "wecom": {"retry_share": 0.2},
    "wechat": {"retry_share": 0.2},
    "webhook": {"retry_share": 0.2, "retry_after_ms": 5, "batch": 50},
}


async def test_each_recipient_gets_it_once_or_is_known_not_to(tmp_path: Path) -> None:
    async with Simulator(parse(json.dumps(TROUBLED))) as sim:
        config = configured(
            tmp_path,
            channel("notice", f"{sim.url}/wecom", WECOM, "wecom.message"),
            channel("order", f"{sim.url}/wechat", WECHAT, "wechat.template"),
            channel("partner", f"{sim.url}/webhook/gate", QUICKLY + "batch = 50"),
        )
        async with working(config) as worker:
            text = {"type": "text", "text": "早安"}
            await worker.append(registered("paid", {"template_id": "T"}, "order", thing1={"required": True}))
            ids = [f"invalid-{n}" if n % 7 == 0 else f"u{n}" for n in range(SOME)]
            await worker.send("basic", send("n", [f"{id}.n" for id in ids], "notice", content=text, campaign="k"))
            order = {"template": "paid", "data": {"thing1": "tea"}}
            await worker.send("template", *(send(id, f"{id}.o", "order", content=order) for id in ids))
            await worker.send("system", *(send(id, f"{id}.p", "partner") for id in ids))
            sim.disturb([Outage(endpoint="webhook", kind="refuse", duration_s=0.2, retry_after_s=0)])
            told = await worker.judged()
            outcomes = {to: end.outcome for (_, to), (end,) in told.outcomes().items()}
            assert Counter(outcomes.values()) == {
                Outcome.ACCEPTED: 3 * sum(not id.startswith("invalid") for id in ids),
                Outcome.FAILED: 3 * sum(id.startswith("invalid") for id in ids),
            }
            entries = sim.ledger.entries(0, sim.ledger.rows)
            delivered = Counter(entry.recipient for entry in entries if entry.verdict == "delivered")
            assert set(delivered.values()) == {1}
            assert set(delivered) == {to for to, outcome in outcomes.items() if outcome is Outcome.ACCEPTED}
            assert not sim.ledger.violations


async def test_who_is_told_to_come_again_is_not_given_the_old_answer(tmp_path: Path) -> None:
    """Each goes alone, so each call again is of the same recipients; a gateway repeats what it said to a name."""
    async with Simulator(parse(json.dumps({"webhook": {"retry_share": 0.5, "retry_after_ms": 5}}))) as sim:
        config = configured(tmp_path, channel("partner", f"{sim.url}/webhook/gate", QUICKLY))
        async with working(config) as worker:
            await worker.send("system", *(send(f"i{n}", f"u{n}", "partner", content={"n": n}) for n in range(40)))
            await worker.all_ended(40)
            assert worker.ended() == {Outcome.ACCEPTED: 40}
            verdicts = Counter(entry.verdict for entry in sim.ledger.entries(0, sim.ledger.rows))
            assert verdicts["retry"] > 10
            assert not verdicts["duplicate"]


async def test_tokens_that_end_are_renewed(tmp_path: Path) -> None:
    async with Simulator() as sim:
        config = configured(tmp_path, channel("notice", f"{sim.url}/wecom", WECOM, "wecom.message"))
        async with working(config) as worker:
            content = {"type": "text", "text": "x"}
            for number in range(3):
                await worker.send("system", send(f"i{number}", channel="notice", content=content))
                await worker.all_ended(number + 1)
                sim.platforms["wecom"].tokens.expire()
            assert worker.ended() == {Outcome.ACCEPTED: 3}


async def test_no_call_begins_after_a_deadline_that_passed_while_its_token_came(tmp_path: Path) -> None:
    async with Simulator() as sim:
        sim.disturb([Outage(endpoint="wecom", kind="slow", duration_s=1.0)])
        config = configured(tmp_path, channel("notice", f"{sim.url}/wecom", WECOM, "wecom.message"))
        async with working(config) as worker:
            content = {"type": "text", "text": "x"}
            late = send("late", "a", "notice", content=content, deadline=now_ms() + 500)
            await worker.send("basic", late, send("in time", "b", "notice", content=content))
            told = await worker.judged()
            assert told.end("late", "a").outcome is Outcome.EXPIRED
            assert told.end("in time", "b").outcome is Outcome.ACCEPTED
            entries = sim.ledger.entries(0, sim.ledger.rows)
            assert [(entry.recipient, entry.verdict) for entry in entries] == [("b", "delivered")]
