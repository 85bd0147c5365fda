"""The commands over a real embedded log: what they print, write, and how they exit."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result

from engine import wire_control
from engine.cli import main
from engine.cli.ask import replies
from engine.cli.limits import line as limit_line
from engine.cli.why import line as why_line
from engine.config import load
from engine.logs import Record
from engine.logs.open import open_log
from engine.topics import topic_specs
from engine.wire_control import Hold, LimitUse, Target

CONFIG = """
[log]
partitions = 2
[tiers.basic]
pacing = "asap"
topics = ["surgetank.basic", "surgetank.basic.big"]
[channels.partner]
driver = "webhook"
base_url = "http://127.0.0.1:1/send"
[channels.two]
driver = "webhook"
base_url = "http://127.0.0.1:1/send"
[channels.two.accounts.a]
authorization = "geheim-a"
[channels.two.accounts.b]
"""


WHOSE: dict[str, Any] = {"tier": "basic", "channel": "c", "account": "a", "tenant": "t", "sends": 3}


def line(id: str, **more: Any) -> str:
    send = {"id": id, "channel": "partner", "to": ["u1", "u2"], "content": {"type": "text", "text": "hi"}, **more}
    return json.dumps(send) + "\n"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "surgetank.toml"
    path.write_text(CONFIG)
    return path


def run(*arguments: str | Path, input: str | bytes | None = None) -> Result:
    result = CliRunner().invoke(main, [str(one) for one in arguments], input=input)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


async def _read(path: Path, topic: str) -> list[tuple[bytes | None, Any]]:
    config = load(path)
    log = open_log(config.log, state=config.state, engine=False)
    await log.start()
    try:
        reader = await log.reader([topic])
        found: list[tuple[bytes | None, Any]] = []
        while not await reader.at_end():
            for chunk in await reader.poll(100, 1.0):
                found += [(k, v and msgspec.msgpack.decode(v)) for k, v in zip(chunk.keys, chunk.values, strict=True)]
        await reader.close()
    finally:
        await log.close()
    return found


def records(path: Path, topic: str) -> list[tuple[bytes | None, Any]]:
    return asyncio.run(_read(path, topic))


# --- config


def test_config_check_accepts_and_says_what_it_saw(config: Path) -> None:
    result = run("config", "check", config)
    assert result.exit_code == 0
    assert result.stdout.startswith(f"{config}: ok: sqlite log at ")
    assert result.stderr == ""


def test_config_check_refuses_with_2_and_every_problem(config: Path) -> None:
    config.write_text(CONFIG + "limits = 3\n[http]\nmetric = 1\n")
    result = run("config", "check", config)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert [one.split(": ")[0] for one in result.stderr.splitlines()] == [f"{config}:{n}" for n in (16, 18)]
    document = json.loads(run("config", "check", config, "--json").stdout)
    assert document["ok"] is False
    assert document["problems"][1] == {
        "file": str(config), "line": 18, "key": "http.metric", "value": "1",
        "text": 'unknown key; did you mean "metrics"?',
    }  # fmt: skip


def test_config_check_tells_warnings_apart(config: Path) -> None:
    config.write_text(CONFIG.replace("[log]\n", '[http]\nadmin = "127.0.0.1:1"\n[log]\n'))
    result = run("config", "check", config)
    assert result.exit_code == 0
    assert result.stderr.startswith(f"warning: {config}:3: http.admin")
    document = json.loads(run("config", "check", config, "--json").stdout)
    assert (document["ok"], document["warnings"][0]["line"]) == (True, 3)


def test_config_show_has_every_default_and_no_secret(config: Path, tmp_path: Path) -> None:
    shown = run("config", "show", config)
    assert shown.exit_code == 0
    assert 'due_after = "10m"' in shown.stdout
    assert "geheim" not in shown.stdout
    again = tmp_path / "again.toml"
    again.write_text(shown.stdout)
    assert run("config", "show", again).stdout == shown.stdout
    document = json.loads(run("config", "show", config, "--json").stdout)
    assert document["channels"]["two"]["accounts"]["a"] == {"authorization": "***"}


def test_config_show_says_what_one_worker_runs_with(config: Path) -> None:
    config.write_text(
        CONFIG.replace("[log]", 'limits = [{ calls = 100, per = "1s" }]\n[log]\nkind = "kafka"', 1)
        + '[[workers]]\ntiers = ["system"]\n[[workers]]\ntiers = ["template", "basic"]\nprocesses = 2\n'
    )
    shown = [run("config", "show", config, "--json", "--worker", name) for name in ("system-1", "template-basic-2")]
    assert [json.loads(one.stdout)["limits"][0]["calls"] for one in shown] == [34, 33]
    assert json.loads(shown[1].stdout)["state"].endswith("var/workers/template-basic-2")
    assert "member" not in json.loads(shown[0].stdout)["log"], "no key of the file"
    other = run("config", "show", config, "--worker", "basic-1")
    assert other.exit_code == 2
    assert "valid: system-1, template-basic-1, template-basic-2" in other.stderr


@pytest.mark.parametrize(
    "command", [["config", "show"], ["topics", "check", "-c"], ["send", "basic", "-c"], ["serve", "-c"]]
)
def test_every_command_refuses_a_wrong_file_with_2(command: list[str], config: Path) -> None:
    config.write_text(CONFIG + "limits = 3\n")
    result = run(*command, config)
    assert result.exit_code == 2
    assert "limits = 3: must be a list of tables" in result.stderr


def test_the_file_may_come_from_the_environment(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SURGETANK_CONFIG", str(config))
    assert run("topics", "create").exit_code == 0


def test_usage_errors_exit_with_2(config: Path) -> None:
    for command in (["nope"], ["send", "-c", config, "basc"], ["cancel", "x", "-c", config, "--timeout", "5"],
                    ["serve", "-c", config, "--tiers", "basic,basc"], ["topics", "check"],
                    ["cancel", "x" * 129, "-c", config]):  # fmt: skip
        assert run(*command).exit_code == 2, command


def test_help_and_version() -> None:
    assert run("--version").stdout.startswith("surgetank, version ")
    for command in ([], ["serve"], ["send"], ["cancel"], ["config", "check"], ["topics", "create"]):
        result = run(*command, "--help")
        assert result.exit_code == 0
        assert "surgetank " in result.stdout


# --- topics


DELAYS = ("5s", "1m", "10m", "1h")


def test_topics_are_missing_then_created_then_right(config: Path) -> None:
    before = run("topics", "check", "-c", config, "--json")
    assert before.exit_code == 1
    missing = [one["topic"] for one in json.loads(before.stdout)["differences"]]
    assert missing == [spec.name for spec in topic_specs(load(config))]
    assert set(missing) == {
        f"surgetank.{name}"
        for name in ("system", "template", "basic", "basic.big", "receipts", "dead", "control", "content", "progress")
    } | {f"surgetank.later.{tier}.{delay}" for tier in ("system", "template", "basic") for delay in DELAYS}
    created = run("topics", "create", "-c", config)
    assert created.exit_code == 0
    assert "created surgetank.basic.big" in created.stdout
    after = run("topics", "check", "-c", config)
    assert (after.exit_code, after.stdout) == (0, "ok: 21 topics are as they should be\n")


def test_a_topic_that_differs_is_said_and_left_alone(config: Path) -> None:
    run("topics", "create", "-c", config)
    config.write_text(CONFIG.replace("partitions = 2", "partitions = 3"))
    result = run("topics", "create", "-c", config)
    assert result.exit_code == 1
    assert "surgetank.basic: partitions is 2, should be 3" in result.stdout
    assert "created" not in result.stdout


# --- send


def test_send_appends_msgpack_keyed_by_tenant_or_id(config: Path, tmp_path: Path) -> None:
    (tmp_path / "s.jsonl").write_text(line("1") + line("2", tenant="t") + "\n" + line("3"))
    result = run("send", "-c", config, "basic", tmp_path / "s.jsonl")
    assert result.exit_code == 0
    assert result.stdout == "sent 3 sends to 6 recipients on surgetank.basic\n"
    assert run("topics", "check", "-c", config).exit_code == 0, "a new log has its topics as configured"
    found = records(config, "surgetank.basic")
    assert sorted((key or b"", value["id"]) for key, value in found) == [(b"1", "1"), (b"3", "3"), (b"t", "2")]
    assert found[0][1]["content"] == {"type": "text", "text": "hi"}


def test_send_tells_bad_lines_and_sends_the_others(config: Path, tmp_path: Path) -> None:
    text = line("1") + "nope\n" + line("2", channel="none") + line("3", channel="two") + line("4", account="x")
    (tmp_path / "s.jsonl").write_text(text + line("5", channel="two", account="b") + line("6", tenent="x"))
    result = run("send", "-c", config, "basic", "--json", tmp_path / "s.jsonl")
    assert result.exit_code == 1
    told = [one.removeprefix(f"{tmp_path}/s.jsonl:").split(": ")[:2] for one in result.stderr.splitlines()]
    assert told == [["2", "not_a_map"], ["3", "channel_unknown"], ["4", "account_missing"], ["5", "account_unknown"]]
    totals = json.loads(result.stdout)
    assert (totals["sent"], totals["recipients"], totals["refused"], totals["unknown_keys"]) == (3, 6, 4, 1)
    assert sorted(value["id"] for _, value in records(config, "surgetank.basic")) == ["1", "5", "6"]


def test_send_strict_stops_at_the_first_bad_line(config: Path) -> None:
    result = run("send", "-c", config, "basic", "--strict", input=line("1") + "nope\nnope\n" + line("2"))
    assert result.exit_code == 1
    assert result.stderr.splitlines() == ["<stdin>:2: not_a_map: a line must be a JSON object"]
    assert [value["id"] for _, value in records(config, "surgetank.basic")] == ["1"]


def test_send_dry_run_checks_and_touches_nothing(config: Path, tmp_path: Path) -> None:
    result = run("send", "-c", config, "basic", "--dry-run", "-", input=line("1") + "nope\n")
    assert result.exit_code == 1
    assert result.stdout == "would send 1 sends to 2 recipients on surgetank.basic; 1 lines refused\n"
    assert not (tmp_path / "var").exists()


def test_send_reads_csv_by_name_and_by_option(config: Path, tmp_path: Path) -> None:
    text = "id,channel,to,text\n1,partner,a|b,hi\n2,partner,,hi\n"
    (tmp_path / "s.CSV").write_text(text)
    assert run("send", "-c", config, "basic", tmp_path / "s.CSV").stderr.startswith(f"{tmp_path}/s.CSV:3: to_empty")
    piped = run("send", "-c", config, "basic", "--format", "csv", input=text.replace("1,", "3,"))
    assert piped.stderr.startswith("<stdin>:3: to_empty")
    assert [value["id"] for _, value in records(config, "surgetank.basic")] == ["1", "3"]


def test_send_with_an_unusable_header_exits_with_2(config: Path) -> None:
    result = run("send", "-c", config, "basic", "--format", "csv", input="id,chanel,to\n")
    assert result.exit_code == 2
    assert 'did you mean "channel"?' in result.stderr


def test_an_input_that_breaks_off_is_said_and_what_came_before_is_sent(config: Path, tmp_path: Path) -> None:
    (tmp_path / "good").write_text(line("1"))
    result = run("send", "-c", config, "basic", tmp_path / "good", "/proc/self/mem")
    assert result.exit_code == 1
    assert result.stderr == "surgetank: [Errno 5] Input/output error\n"
    assert [value["id"] for _, value in records(config, "surgetank.basic")] == ["1"]


def test_send_to_another_topic_of_the_tier(config: Path) -> None:
    assert run("send", "-c", config, "basic", "--topic", "surgetank.basic.big", input=line("1")).exit_code == 0
    assert len(records(config, "surgetank.basic.big")) == 1
    wrong = run("send", "-c", config, "basic", "--topic", "surgetank.system", input=line("1"))
    assert wrong.exit_code == 2
    assert "valid are surgetank.basic, surgetank.basic.big" in wrong.stderr


def test_send_more_than_a_batch_and_several_files(config: Path, tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).write_text("".join(line(f"{name}{n}") for n in range(1_500)))
    result = run("send", "-c", config, "basic", "--json", "--rate", "1e6", tmp_path / "a", tmp_path / "b")
    assert json.loads(result.stdout)["sent"] == 3_000
    ids = {value["id"] for _, value in records(config, "surgetank.basic")}
    assert len(ids) == 3_000


def test_content_the_driver_refuses_is_told(config: Path) -> None:
    config.write_text(
        CONFIG + '[channels.wc]\ndriver = "wecom.message"\nbase_url = "http://127.0.0.1:1"\n'
        '[channels.wc.accounts.a]\ncorpid = "x"\ncorpsecret = "y"\nagentid = 1\n'
    )
    text = line("1", channel="wc", content={"type": "nope"}) + line("2", channel="wc", content={"ref": "later"})
    result = run("send", "-c", config, "basic", "--json", input=text)
    assert result.stderr.startswith("<stdin>:1: content_invalid")
    assert json.loads(result.stdout)["sent"] == 1


# --- cancel, pause, resume


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["channel", "partnr"], "no channel 'partnr'; did you mean 'partner'?"),
        (["tier", "urgent"], "no tier 'urgent'; there are system, template, basic"),
        (["account", "partner"], "'partner' names no account: write CHANNEL/ACCOUNT"),
        (["account", "partner/b"], "no account 'b'; there are "),
        (["tenant", "t", "--tenant", "u"], "means nothing for a tenant"),
        (["tenant", "t" * 129], "a name must have 1..128 bytes"),
        (["tenant", "t", "--for", "soon"], "'soon' is not a duration such as"),
        (["tenant", "t", "--for", "400d"], "must be 1ms..365d"),
        (["everything", "x"], "'everything' is not one of 'campaign', 'tenant', 'account', 'channel', 'tier'"),
    ],
)
def test_pause_says_what_would_be_valid(config: Path, words: list[str], why: str) -> None:
    result = run("pause", *words, "-c", config)
    assert result.exit_code == 2
    assert why in " ".join(result.stderr.replace("│", " ").split())
    assert not records(config, "surgetank.control")


def test_pause_and_resume_without_an_answer_leave_the_command_standing(config: Path) -> None:
    run("topics", "create", "-c", config)
    for command, on in (("pause", "campaign"), ("resume", "campaign")):
        result = run(command, on, "spring sale", "-c", config, "--tenant", "t/1", "--timeout", "50ms")
        assert result.exit_code == 1
        assert "no worker answered within 50ms. The command stands" in result.stdout
    (pause, value), (resume, undone) = records(config, "surgetank.control")
    assert pause == resume == b"pause////t%2F1/spring%20sale"
    assert value["on"] == undone["on"] == {"tenant": "t/1", "campaign": "spring sale"}
    assert (value["command"], value["expires"] - value["at"]) == ("pause", 24 * 3_600_000)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ([], "name a CAMPAIGN, or a send with --send ID"),
        (["c", "--send", "s"], "name a CAMPAIGN, or a send with --send ID"),
        (["--send", "s", "--tenant", "t"], "means nothing with --send"),
        (["--send", ""], "a name must have 1..128 bytes"),
    ],
)
def test_why_says_what_would_be_valid(config: Path, words: list[str], why: str) -> None:
    result = run("why", *words, "-c", config)
    assert result.exit_code == 2
    assert why in result.stderr


def test_a_question_nobody_answers_is_taken_back(config: Path) -> None:
    run("topics", "create", "-c", config)
    result = run("why", "c", "-c", config, "--timeout", "50ms")
    assert (result.exit_code, result.stdout) == (1, "no worker answered within 50ms\n")
    (asked, value), (undone, nothing) = records(config, "surgetank.control")
    assert asked == undone == f"ask/{value['id']}".encode()
    assert (value["command"], value["on"], nothing) == ("why", {"campaign": "c"}, None)


@pytest.mark.parametrize(
    ("hold", "said"),
    [
        (
            Hold(**WHOSE, ready=12_000, held="limit", on=Target(channel="c"), limit="1 calls per 1h", until=0),
            "12,000 recipients ready: the limit is used up (1 calls per 1h, channel c) until 1970-01-01T00:00:00Z",
        ),
        (Hold(**WHOSE, ready=1, held="turn", until=5), "1 recipients ready: may go now; others go first"),
        (
            Hold(**WHOSE, ready=0, held="time", until=2**60),
            "0 recipients ready: not before its time, or waits for a retry until for ever",
        ),
        (
            Hold(**WHOSE, ready=7, held="pacing", on=Target(channel="c"), rate=0.25, until=60_000),
            "7 recipients ready: paced: has time, and leaves at the lowest rate that is in time (0.25 calls/s now, "
            "channel c) until about 1970-01-01T00:01:00Z",
        ),
    ],
)
def test_why_in_words(hold: Hold, said: str) -> None:
    assert why_line(hold) == f"basic, c/a, tenant t: 3 sends, {said}"


@pytest.mark.parametrize(
    ("full", "said"),
    [
        ({}, ""),
        ({"full": True, "until": 1_000}, "; full until 1970-01-01T00:00:01Z"),
        ({"full": True}, "; full until a call ends"),
        ({"changed_until": 1_000, "configured": 5}, "; by command until 1970-01-01T00:00:01Z, then 5"),
        ({"changed_until": 1_000}, "; by command until 1970-01-01T00:00:01Z, then none"),
    ],
)
def test_a_limit_in_words(full: Mapping[str, Any], said: str) -> None:
    use = LimitUse(on=Target(tenant="t"), limit="9 calls per 1h", number=9, used=8, in_flight=1, **full)
    assert limit_line(use) == f"tenant t: 9 calls per 1h: 8 used, 1 in flight, of 9{said}"


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["channel", "two", "--per", "1s"], "give either --calls N or --recipients N"),
        (["channel", "two", "--calls", "5", "--per", "soon"], "per 'soon' is not a duration such as"),
        (["channel", "two", "--calls", "5", "--per", "9999999d"], "per 9999999d must be 1ms..365d"),
        (["channel", "two", "--calls", "5", "--per", "1h", "--zone", "Moon"], "with `zone` it must be"),
        (["channel", "twi", "--calls", "5", "--per", "1s"], "no channel 'twi'; did you mean 'two'?"),
        (["channel", "--calls", "5", "--per", "1s"], "missing: which channel"),
        (["everything", "two", "--calls", "5", "--per", "1s"], "means nothing for everything"),
        (["campaign", "c", "--calls", "5", "--per", "1s"], "'everything', 'tier', 'channel', 'account', 'tenant'"),
        (["channel", "two", "--calls", "5", "--per", "1s", "--for", "0s"], "must be 1ms..365d"),
    ],
)
def test_limits_set_says_what_would_be_valid(config: Path, words: list[str], why: str) -> None:
    result = run("limits", "set", *words, "-c", config)
    assert result.exit_code == 2
    assert why in result.stderr


def test_limits_alone_needs_a_configuration() -> None:
    result = run("limits")
    assert (result.exit_code, "Missing option '-c'" in result.stderr) == (2, True)


def test_a_change_without_an_answer_stands_and_a_reset_replaces_it(config: Path) -> None:
    run("topics", "create", "-c", config)
    words = ("channel", "two", "--per", "60s", "-c", config, "--timeout", "50ms")
    result = run("limits", "set", *words, "--calls", "5", "--for", "2h")
    assert result.exit_code == 1
    assert "The command stands: for 2h every worker that runs keeps to 5 calls per 1m" in result.stdout
    assert run("limits", "reset", *words, "--calls").exit_code == 1
    assert run("reweight", "campaign", "k", "7", "-c", config, "--timeout", "50ms").exit_code == 1
    (set_key, set_), (reset_key, reset), (weight_key, weight) = records(config, "surgetank.control")
    assert set_key == reset_key == b"limit//two////calls/1m/"
    assert (set_["number"], set_["window"], set_["on"]) == (5, {"unit": "calls", "per": "1m"}, {"channel": "two"})
    assert (set_["expires"] - set_["at"], "number" in reset) == (2 * 3_600_000, False)
    assert (weight_key, weight["command"], weight["weight"]) == (b"reweight/////k", "reweight", 7)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["tenant", "t"], "give either a WEIGHT or --reset"),
        (["tenant", "t", "5", "--reset"], "give either a WEIGHT or --reset"),
        (["tenant", "t", "0"], "1<=x<=1000"),
        (["tier", "system", "5"], "system has no weight"),
        (["channel", "two", "5"], "'tenant', 'campaign', 'tier'"),
    ],
)
def test_reweight_says_what_would_be_valid(config: Path, words: list[str], why: str) -> None:
    result = run("reweight", *words, "-c", config)
    assert result.exit_code == 2
    assert why in result.stderr


def test_cancel_without_an_answer_leaves_the_command_standing(config: Path) -> None:
    run("topics", "create", "-c", config)
    result = run("cancel", "spring sale", "-c", config, "--tenant", "t/1", "--timeout", "50ms")
    assert result.exit_code == 1
    assert "no worker answered within 50ms. The command stands" in result.stdout
    ((key, value),) = records(config, "surgetank.control")
    assert key == b"cancel/t%2F1/spring%20sale"
    assert (value["v"], value["command"], value["tenant"], value["campaign"]) == (1, "cancel", "t/1", "spring sale")
    assert value["expires"] - value["at"] == 24 * 3_600_000


async def test_cancel_sums_the_answers_to_its_own_command(config: Path) -> None:
    loaded = load(config)
    log = open_log(loaded.log, state=loaded.state, engine=False)
    await log.start()
    await log.create_topics(topic_specs(loaded))
    commands = await log.reader(["surgetank.control"], from_end=True)
    command = wire_control.Command(id="mine", command="cancel", campaign="c", at=1, expires=2)
    asked = asyncio.create_task(replies(loaded, command, 30.0))
    while not await commands.poll(10, 1.0):
        assert not asked.done()
    answers = [("other", "w9", 100), ("mine", "w1", 3), ("mine", "w2", 4)]
    made = [wire_control.Reply(reply_to=id, worker=worker, recipients=count, at=5) for id, worker, count in answers]
    pairs = [wire_control.encode_reply(reply) for reply in made]
    await log.append([Record("surgetank.control", value, key) for key, value in pairs])
    assert {worker: reply.recipients for worker, reply in (await asked).items()} == {"w1": 3, "w2": 4}
    await commands.close()
    await log.close()
