"""A file becomes a Config, or every problem in it is told with file, line, key, value and what would be valid."""

# ruff: noqa: E501 - a case of a table is a line

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.config import NS, Config, Limit, Span, account_limits, load
from engine.config_load import Loaded, load_with_warnings
from engine.config_show import plain, toml
from engine.errors import ConfigError

ASCENDING = 'c.toml:5: later.delays: must be at least one delay, ascending, such as ["5s", "1m", "10m", "1h"]'
CHANNEL = '[channels.partner]\ndriver = "webhook"\nbase_url = "http://127.0.0.1:8080/send"\n'
QUIET = '[tiers.basic]\npacing = "asap"\n'


def write(folder: Path, text: str) -> Path:
    path = folder / "c.toml"
    path.write_text(text)
    return path


def problems(folder: Path, text: str) -> list[str]:
    """What is said, without the folder."""
    with pytest.raises(ConfigError) as caught:
        load(write(folder, text))
    return str(caught.value).replace(f"{folder}/", "").split("\n")


def loaded(folder: Path, text: str) -> Loaded:
    return load_with_warnings(write(folder, text))


def test_the_smallest_file_has_every_default(tmp_path: Path) -> None:
    config = load(write(tmp_path, CHANNEL))
    assert config.channels["partner"].accounts == {"default": {}}
    assert [config.tiers[name].due_after // NS["s"] for name in ("system", "template", "basic")] == [0, 5, 600]
    assert config.tiers["system"].topics == ("surgetank.system",)
    assert config.channels["partner"].retry.attempts == 16


def test_what_the_file_says_is_what_comes_out(tmp_path: Path) -> None:
    text = (
        'state = "s"\nlimits = [{ calls = 5, per = "1s" }]\n[log]\nkind = "kafka"\nprefix = "p"\n'
        '[tiers.basic]\nweight = 3\nbudget = { bytes = "1GiB" }\n' + CHANNEL + 'batch = 7\nretry = { first = "1s" }\n'
        '[channels.partner.accounts.a]\nauthorization = "x"\nlimits = [{ recipients = 9, per = "1m" }]\n'
    )
    config = load(write(tmp_path, text))
    assert config.limits == (Limit(per=Span(10**9), calls=5),)
    assert config.tiers["basic"].weight == 3
    assert config.tiers["basic"].budget.bytes == 1 << 30
    assert config.tiers["basic"].topics == ("p.basic",)
    assert config.tiers["basic"].due_after == 600 * 10**9
    assert config.channels["partner"].batch == 7
    assert config.channels["partner"].retry.first == 10**9
    assert config.channels["partner"].retry.attempts == 16
    assert config.channels["partner"].accounts == {"a": {"authorization": "x"}}
    assert account_limits(config, "partner", "a") == (Limit(per=Span(60 * 10**9), recipients=9),)
    assert account_limits(config, "partner", "other") == ()


def test_relative_paths_start_at_the_files_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, 'state = "s"\n' + CHANNEL)
    monkeypatch.chdir("/")
    assert load(path).state == str(tmp_path / "s")
    assert load(path).log.path == str(tmp_path / "s" / "log.db")
    write(tmp_path, 'state = "s"\n[log]\npath = "l/x.db"\n' + CHANNEL)
    assert load(path).log.path == str(tmp_path / "l" / "x.db")
    write(tmp_path, 'state = "/abs"\n' + CHANNEL)
    monkeypatch.chdir(tmp_path)
    assert load("c.toml").state == "/abs"
    assert load("c.toml").log.path == "/abs/log.db"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (CHANNEL + "batch = -3", "c.toml:4: channels.partner.batch = -3: must be 1..10000"),
        (CHANNEL + "batch = true", "c.toml:4: channels.partner.batch = true: must be 1..10000"),
        (CHANNEL + "in_flight = 1001", "c.toml:4: channels.partner.in_flight = 1001: must be 1..1000"),
        (CHANNEL + "bach = 3", 'c.toml:4: channels.partner.bach = 3: unknown key; did you mean "batch"?'),
        (CHANNEL + "timeout = 5", 'c.toml:4: channels.partner.timeout = 5: must be a duration such as "10m", 1ms..1h'),
        (CHANNEL + 'timeout = "2h"', 'c.toml:4: channels.partner.timeout = "2h": must be a duration such as "10m", 1ms..1h'),
        (CHANNEL + "limits = 3", "c.toml:4: channels.partner.limits = 3: must be a list of tables"),
        (CHANNEL + "limits = [3]", "c.toml:4: channels.partner.limits[0] = 3: must be a table"),
        (CHANNEL + 'limits = [{ calls = 1 }]', 'c.toml:4: channels.partner.limits[0].per: missing: must be a duration such as "10m", 1ms..365d'),
        (CHANNEL + 'limits = [{ per = "1s" }]', "c.toml:4: channels.partner.limits[0]: must have exactly one of `calls` and `recipients`"),
        (CHANNEL + 'limits = [{ per = "1s", calls = 1, recipients = 1 }]', "c.toml:4: channels.partner.limits[0]: must have exactly one of `calls` and `recipients`"),
        (CHANNEL + 'limits = [{ per = "0s", calls = 1 }]', 'c.toml:4: channels.partner.limits[0].per = "0s": must be a duration such as "10m", 1ms..365d'),
        (CHANNEL + 'limits = [{ per = "1h", calls = 1, zone = "UTC" }]', 'c.toml:4: channels.partner.limits[0].per = "1h": with `zone` it must be "1d" or "1mo"'),
        (CHANNEL + 'limits = [{ per = "1mo", calls = 1 }]', 'c.toml:4: channels.partner.limits[0].zone: missing: a month is one of a calendar'),
        (CHANNEL + 'limits = [{ per = "1d", calls = 1, zone = "Asia/Shangai" }]', 'c.toml:4: channels.partner.limits[0].zone = "Asia/Shangai": no such time zone; did you mean "Asia/Shanghai"?'),
        (CHANNEL + 'tenant_limits = [{ per = "1d", calls = 1, zone = "UTC" }]', 'c.toml:4: channels.partner.tenant_limits[0].zone = "UTC": means nothing here: these are counted in memory alone'),
        (CHANNEL + 'tenant_limits = [{ per = "2d", calls = 1 }]', 'c.toml:4: channels.partner.tenant_limits[0].per = "2d": must be at most 1d: these are counted in memory alone'),
        (CHANNEL + 'repeats = "no"', 'c.toml:4: channels.partner.repeats = "no": must be "allowed" or "never"'),
        (CHANNEL + 'frequency = [{ messages = 0, per = "1m" }]', "c.toml:4: channels.partner.frequency[0].messages = 0: must be 1..60000"),
        (CHANNEL + 'frequency = [{ messages = 1, per = "1ms" }]', 'c.toml:4: channels.partner.frequency[0].per = "1ms": must be a duration such as "10m", 1s..365d'),
        (CHANNEL + 'frequency = [{ messages = 1, per = "1m" }, { messages = 2, per = "60s" }]', 'c.toml:4: channels.partner.frequency[1].per = "60s": 1m has a rule already: each length may have one'),
        (CHANNEL + "frequency = [" + ", ".join(f'{{ messages = 1, per = "{n}s" }}' for n in range(1, 10)) + "]", "c.toml:4: channels.partner.frequency: must have at most 8 rules"),
        (CHANNEL + 'frequency_memory = "1KiB"', 'c.toml:4: channels.partner.frequency_memory = "1KiB": must be a size such as "1GiB", 1MiB..1024GiB'),
        ('[tiers.basic]\nallowance = { recipients = 1, per = "1m" }\n' + CHANNEL, "c.toml:2: tiers.basic.allowance: only `system` has one"),
        ('[tiers.system]\nallowance = { recipients = 0, per = "1m" }\n' + CHANNEL, "c.toml:2: tiers.system.allowance.recipients = 0: must be 1..1000000000"),
        ('[tiers.system]\nallowance = { recipients = 1, per = "2d" }\n' + CHANNEL, 'c.toml:2: tiers.system.allowance.per = "2d": must be a duration such as "10m", 1s..1d'),
        ('[tiers.system]\nallowance = { per = "1m" }\n' + CHANNEL, "c.toml:2: tiers.system.allowance.recipients: missing: must be 1..1000000000"),
        ('[tiers.system]\nallowance = { recipients = 1, per = "1m", tenants = { a = "x" } }\n' + CHANNEL, 'c.toml:2: tiers.system.allowance.tenants.a = "x": must be 1..1000000000'),
        (CHANNEL + 'overload = { policy = "drop" }', 'c.toml:4: channels.partner.overload.policy = "drop": must be "queue" or "refuse"'),
        (CHANNEL + 'overload = { policy = "refuse", most = "0s" }', 'c.toml:4: channels.partner.overload.most = "0s": must be a duration such as "10m", 1s..1d'),
        (CHANNEL + 'retry = { first = "2h" }', "c.toml:4: channels.partner.retry.most: must be at least retry.first (2h)"),
        (CHANNEL + '[later]\ndelays = ["1m", "5s"]', ASCENDING),
        (CHANNEL + "[later]\ndelays = []", ASCENDING),
        (
            CHANNEL + '[later]\ndelays = ["2d"]',
            'c.toml:5: later.delays[0] = "2d": must be a duration such as "10m", 1ms..1d',
        ),
        (
            CHANNEL + '[later]\nhorizon = "1s"',
            'c.toml:5: later.horizon = "1s": must be at least the shortest of later.delays, 5s',
        ),
        (CHANNEL + "accounts = 1", "c.toml:4: channels.partner.accounts = 1: must be a table"),
        (CHANNEL + "accounts.a = 1", "c.toml:4: channels.partner.accounts.a = 1: must be a table"),
        (CHANNEL + "account_limits = {}", 'c.toml:4: channels.partner.account_limits: unknown key; did you mean "tenant_limits"?'),
        ("channels = 1", "c.toml:1: channels = 1: must be a table of tables"),
        ("state = 'x'", "c.toml:1: channels: missing: at least one [channels.NAME] with `driver` and `base_url`"),
        ('[channels.p]\ndriver = "webhook"', "c.toml:1: channels.p.base_url: missing: must be text"),
        ('[channels.p]\ndriver = "webhook"\nbase_url = "ftp://h"', 'c.toml:3: channels.p.base_url = "ftp://h": must be an address such as "https://gateway.example/send"'),
        ('[channels."p\\t"]\ndriver = "webhook"\nbase_url = "http://h"', 'c.toml:1: channels."p\\t": the name must be 1..128 bytes of printable text'),
        ('[tiers.basic]\nweight = 0\n' + CHANNEL, "c.toml:2: tiers.basic.weight = 0: must be 1..1000"),
        ('[tenants.t]\nweight = 0\n' + CHANNEL, "c.toml:2: tenants.t.weight = 0: must be 1..1000"),
        ('[tenants.t]\nwait = 1\n' + CHANNEL, 'c.toml:2: tenants.t.wait = 1: unknown key; did you mean "weight"?'),
        ('tenants = 1\n' + CHANNEL, "c.toml:1: tenants = 1: must be a table of tables"),
        ('[tenants."t\\t"]\nweight = 1\n' + CHANNEL, 'c.toml:1: tenants."t\\t": the name must be 1..128 bytes of printable text'),
        ('[tenants.t]\nlimits = [{ per = "1s" }]\n' + CHANNEL, "c.toml:2: tenants.t.limits[0]: must have exactly one of `calls` and `recipients`"),
        ('[tiers.basc]\nweight = 1\n' + CHANNEL, 'c.toml:1: tiers.basc: no such tier; did you mean "basic"?'),
        ("tiers = 1\n" + CHANNEL, "c.toml:1: tiers = 1: must be a table"),
        ("tiers.basic = 1\n" + CHANNEL, "c.toml:1: tiers.basic = 1: must be a table"),
        ('[tiers.basic]\nbudget = { sends = 9 }\n' + CHANNEL, "c.toml:2: tiers.basic.budget.sends = 9: must be 10..100000000"),
        ('[tiers.basic]\nbudget.bytes = "3MiB"\n' + CHANNEL, 'c.toml:2: tiers.basic.budget.bytes = "3MiB": must be a size such as "1GiB", 4MiB..1024GiB'),
        ('[tiers.basic]\ntopics = ["a",\n"a b"]\n' + CHANNEL, 'c.toml:3: tiers.basic.topics[1] = "a b": must be a topic name: 1..200 of a-z A-Z 0-9 . _ -'),
        ('[tiers.basic]\ntopics = ["surgetank.system"]\n' + CHANNEL, 'c.toml:2: tiers.basic.topics[0] = "surgetank.system": "surgetank.system" is already used by tier system'),
        ('[tiers.basic]\ntopics = ["surgetank.dead"]\n' + CHANNEL, 'c.toml:2: tiers.basic.topics[0] = "surgetank.dead": "surgetank.dead" is already used by the engine itself'),
        ('[log]\nkind = "kafka"\nbootstrap = "broker"\n' + CHANNEL, 'c.toml:3: log.bootstrap = "broker": must be "host:port", several with commas'),
        ('[log]\nprefix = ""\n' + CHANNEL, 'c.toml:2: log.prefix = "": must be 1..200 of a-z A-Z 0-9 . _ -'),
        ('[http]\nmetrics = "9464"\n' + CHANNEL, 'c.toml:2: http.metrics = "9464": must be "host:port", or "" for off'),
        ('[http]\nadmin = "127.0.0.1:9464"\n' + CHANNEL, 'c.toml:2: http.admin = "127.0.0.1:9464": must differ from http.metrics'),
        ('[[workers]]\n[[workers]]\ntiers = ["basc"]\n' + CHANNEL, 'c.toml:3: workers[1].tiers[0] = "basc": must be "system" or "template" or "basic"'),
        ('[[workers]]\nprocesses = 2\n' + CHANNEL, 'c.toml:1: workers: several processes need log.kind = "kafka"'),
        ('[[workers]]\ntiers = []\n' + CHANNEL, "c.toml:2: workers[0].tiers: must name at least one tier, each once"),
    ],
)  # fmt: skip
def test_a_problem_names_line_key_value_and_what_would_be_valid(tmp_path: Path, text: str, said: str) -> None:
    assert problems(tmp_path, text) == [said]


def test_all_problems_are_told_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = (
        'stat = 1\n[log]\nkind = "kafk"\n[channels.p]\ndriver = "webhok"\nbase_url = "http://h"\n'
        + CHANNEL
        + "batch = 0"
    )
    said = problems(tmp_path, text)
    assert [line.split(":")[1] for line in said] == ["1", "3", "5", "10"]
    assert "webhook" in said[2]


def test_what_the_driver_finds_has_its_line_too(tmp_path: Path) -> None:
    text = '[channels.w]\ndriver = "wecom.message"\nbase_url = "http://h"\n[channels.w.accounts.a]\ncorpid = "x"\nagentid = "y"\ncorpsecret = "geheim"\n'
    (said,) = problems(tmp_path, text)
    assert said.startswith("c.toml:6: channels.w.accounts.a.agentid")
    assert "geheim" not in said


def test_a_driver_that_needs_accounts_says_so(tmp_path: Path) -> None:
    (said,) = problems(tmp_path, '[channels.w]\ndriver = "wecom.message"\nbase_url = "http://h"\n')
    assert said.startswith("c.toml:1: channels.w.accounts")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a = 1\nb = = 2\n", "c.toml:2: not TOML: "),
        ("a = 1\na = 2\n", "c.toml:2: not TOML: "),
        ('[x]\ny = "', "c.toml:2: not TOML: "),
        ("a = " + "[" * 5000, "c.toml:1: "),
    ],
)
def test_what_is_not_toml_is_told_with_its_line(tmp_path: Path, text: str, said: str) -> None:
    (line,) = problems(tmp_path, text)
    assert line.startswith(said)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml:1: cannot be read: No such file"):
        load(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="Is a directory"):
        load(tmp_path)
    path = tmp_path / "c.toml"
    path.write_bytes(b"a = 1\nb = '\xff'\n")
    with pytest.raises(ConfigError, match=r"c\.toml:2: not UTF-8"):
        load(path)
    path.write_bytes(b"# " + b"x" * (4 << 20))
    with pytest.raises(ConfigError, match="larger than 4 MiB"):
        load(path)


def test_windows_line_ends_count_as_lines(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_bytes((CHANNEL + "batch = 0\n").replace("\n", "\r\n").encode())
    with pytest.raises(ConfigError, match=r"c\.toml:4: channels\.partner\.batch"):
        load(path)


# --- secrets


def test_a_secret_is_read_from_its_file_beside_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(" Bearer geheim\n")
    config = load(write(tmp_path, CHANNEL + '[channels.partner.accounts.a]\nauthorization_file = "token"\n'))
    assert config.channels["partner"].accounts == {"a": {"authorization": "Bearer geheim"}}
    assert "geheim" not in toml(plain(config))
    assert plain(config)["channels"]["partner"]["accounts"] == {"a": {"authorization": "***"}}


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ('authorization_file = "none"', 'authorization_file = "none": cannot be read: No such file or directory'),
        ('authorization_file = "empty"', 'authorization_file = "empty": the file must hold 1..65536 bytes of text'),
        ('authorization_file = "large"', 'authorization_file = "large": the file must hold 1..65536 bytes of text'),
        ('authorization_file = "binary"', 'authorization_file = "binary": cannot be read: not UTF-8 text'),
        ("authorization_file = 3", "authorization_file = 3: must be the path of a file"),
        (
            'authorization = "geheim"\nauthorization_file = "empty"',
            "give either `authorization` or `authorization_file`",
        ),
    ],
)
def test_a_secret_file_that_will_not_do(tmp_path: Path, keys: str, said: str) -> None:
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "large").write_text("x" * 70_000)
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    (line,) = problems(tmp_path, CHANNEL + f"[channels.partner.accounts.a]\n{keys}\n")
    assert said in line
    assert "geheim" not in line
    assert line.startswith(f"c.toml:{4 + len(keys.splitlines())}: channels.partner.accounts.a.")


@pytest.mark.parametrize("keys", ['authorization = "geheim "', 'authorisation = "geheim"', 'token = ["geheim"]'])
def test_no_problem_shows_a_secret_even_under_a_misspelt_name(tmp_path: Path, keys: str) -> None:
    (line,) = problems(tmp_path, CHANNEL + f"[channels.partner.accounts.a]\n{keys}\n")
    assert line.startswith("c.toml:5: ")
    assert "geheim" not in line


def test_a_token_in_the_address_is_not_shown(tmp_path: Path) -> None:
    (line,) = problems(tmp_path, '[channels.p]\ndriver = "webhook"\nbase_url = "ftp://h/?access_token=geheim"\n')
    assert "***" in line
    assert "geheim" not in line


# --- warnings


def warnings(folder: Path, text: str) -> list[str]:
    return [str(warning).replace(f"{folder}/", "") for warning in loaded(folder, text).warnings]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (QUIET + CHANNEL + '[http]\nadmin = "127.0.0.1:9465"', "c.toml:7: http.admin"),
        (QUIET + CHANNEL + '[log]\nkind = "kafka"\nmax_bytes = "1GiB"', 'c.toml:8: log.max_bytes = "1GiB": means nothing on Kafka'),
        (QUIET + CHANNEL + '[log]\nkind = "kafka"\n[[workers]]\nprocesses = 2', "c.toml:8: workers: each process remembers the ids"),
        (QUIET + CHANNEL + '[[workers]]\ntiers = ["system"]', "c.toml:6: workers: no group serves template, basic"),
    ],
)  # fmt: skip
def test_what_has_no_effect_yet_is_warned_of(tmp_path: Path, text: str, said: str) -> None:
    (line,) = warnings(tmp_path, text)
    assert line.startswith(said)


def test_a_quiet_file_has_no_warnings(tmp_path: Path) -> None:
    assert warnings(tmp_path, QUIET + CHANNEL) == []
    assert warnings(tmp_path, CHANNEL) == []


def test_system_cannot_be_paced(tmp_path: Path) -> None:
    (line,) = problems(tmp_path, '[tiers.system]\npacing = "paced"\n' + CHANNEL)
    assert line.startswith('c.toml:2: tiers.system.pacing = "paced": must be "asap"')


# --- showing, and whatever may come


def test_what_is_shown_reads_as_the_same_configuration(tmp_path: Path) -> None:
    text = (
        'state = "s\\u007f\\"\\\\\\n"\n[channels."a b.c"]\ndriver = "webhook"\nbase_url = "http://h/x"\n'
        'limits = [{ calls = 1, per = "90s" }]\nfrequency = [{ messages = 1, per = "90s" }]\n[channels."a b.c".accounts."x \\" y"]\nlimits = [{ calls = 2, per = "1s" }]\n'
        '[tiers.system]\nallowance = { recipients = 5, per = "1m", tenants = { "a b" = 3 } }\n[[workers]]\n'
    )  # fmt: skip
    first = load(write(tmp_path, text))
    second = load(write(tmp_path, toml(plain(first))))
    assert second == first


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)
KEYS = (
    "state", "log", "log.kind", "tiers", "tiers.basic", "tiers.basic.budget", "tiers.basic.topics", "pacing", "pacing.floor", "channels",
    "channels.p", "channels.p.driver", "tiers.system.allowance", "channels.p.overload", "channels.p.limits", "channels.p.frequency", "channels.p.accounts", "channels.p.accounts.a",
    "channels.p.accounts.a.limits", "channels.p.retry", "limits", "workers", "http", "max_ids", "dedupe_window",
)  # fmt: skip


@given(key=st.sampled_from(KEYS), value=VALUES)
def test_whatever_stands_at_a_key_the_answer_is_a_config_or_a_named_problem(
    tmp_path_factory: pytest.TempPathFactory, key: str, value: object
) -> None:
    base: dict[str, object] = {"channels": {"p": {"driver": "webhook", "base_url": "http://h", "accounts": {"a": {}}}}}
    inner: dict[str, object] = base
    *parents, last = key.split(".")
    for name in parents:
        inner = inner.setdefault(name, {})  # type: ignore[assignment]
    inner[last] = _without_none(value)
    path = tmp_path_factory.getbasetemp() / f"fuzz-{os.getpid()}.toml"
    path.write_text(toml(base), "utf-8", "replace")
    try:
        config = load(path)
    except ConfigError as error:
        assert re.match(rf"{re.escape(str(path))}:\d+: ", str(error))  # noqa: PT017
    else:
        assert isinstance(config, Config)


def _without_none(value: object) -> object:
    if isinstance(value, dict):
        return {name: _without_none(one) for name, one in value.items() if one is not None}
    if isinstance(value, list):
        return [_without_none(one) for one in value if one is not None]
    return "" if value is None else value
