"""[log.security]: what is refused, what is said, and that no password is shown."""

# ruff: noqa: E501 - a case of a table is a line

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from engine.config import Security, load
from engine.config_load import load_with_warnings
from engine.config_secrets import secret_values
from engine.config_show import plain, toml
from engine.errors import ConfigError
from engine.logs.kafka_security import client_keys

CHANNEL = '[tiers.basic]\npacing = "asap"\n[channels.partner]\ndriver = "webhook"\nbase_url = "http://127.0.0.1:1/"\n'
HEAD = '[log]\nkind = "kafka"\n[log.security]\n'
USER = 'user = "u"\npassword = "geheim"\n'


def write(folder: Path, keys: str) -> Path:
    path = folder / "c.toml"
    path.write_text(HEAD + keys + CHANNEL)
    return path


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ('protocol = "TLS"\n', 'c.toml:4: log.security.protocol = "TLS": must be "PLAINTEXT" or "SSL" or "SASL_PLAINTEXT" or "SASL_SSL"'),
        ('protocol = "SASL_SSL"\nuser = "u"\n', 'c.toml:3: log.security.password: missing: protocol "SASL_SSL" needs it'),
        ('protocol = "SASL_SSL"\npassword = "geheim"\n', 'c.toml:3: log.security.user: missing: protocol "SASL_SSL" needs it'),
        ('protocol = "SASL_SSL"\nmechanism = "GSSAPI"\n' + USER, 'c.toml:5: log.security.mechanism = "GSSAPI": must be "PLAIN" or "SCRAM-SHA-256" or "SCRAM-SHA-512"'),
        ('protocol = "SSL"\npassword = "geheim"\n', 'c.toml:5: log.security.password = ***: means nothing with protocol "SSL"'),
        ('password_file = "none"\nprotocol = "SASL_SSL"\nuser = "u"\n', 'c.toml:4: log.security.password_file = "none": cannot be read: No such file or directory'),
        ('protocol = "SASL_SSL"\npassword_file = "none"\n' + USER, "c.toml:5: log.security.password_file = \"none\": give either `password` or `password_file`"),
        ('ca_file = "c.toml"\n', 'c.toml:4: log.security.ca_file = "c.toml": means nothing with protocol "PLAINTEXT"'),
        ('protocol = "SSL"\nca_file = "none"\n', 'c.toml:5: log.security.ca_file = "none": cannot be used: No such file or directory'),
        ('protocol = "SSL"\nca_file = "c.toml"\n', 'c.toml:5: log.security.ca_file = "c.toml": cannot be used: no certificate or crl found'),
        ('protocol = "SSL"\ncert_file = "c.toml"\n', 'c.toml:5: log.security.cert_file = "c.toml": cannot be used with its key: not PEM, or another password'),
        ('protocol = "SSL"\nkey_file = "c.toml"\n', 'c.toml:5: log.security.key_file = "c.toml": means nothing without cert_file'),
        ('protocol = "SSL"\nkey_password = "geheim"\n', "c.toml:5: log.security.key_password = ***: means nothing without cert_file"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_told(tmp_path: Path, keys: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(write(tmp_path, keys))
    assert str(caught.value).replace(f"{tmp_path}/", "").split("\n") == [said]


def test_passwords_come_from_files_and_are_shown_nowhere(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("geheim\n")
    loaded = load_with_warnings(write(tmp_path, 'protocol = "SASL_SSL"\nuser = "u"\npassword_file = "secret"\n'))
    security = loaded.config.log.security
    assert (security.mechanism, security.user, security.password) == ("SCRAM-SHA-512", "u", "geheim")
    assert secret_values(loaded.config) == {"geheim"}
    shown = plain(loaded.config)["log"]["security"]
    assert shown == {"protocol": "SASL_SSL", "mechanism": "SCRAM-SHA-512", "user": "u", "password": "***"}
    assert "geheim" not in toml(plain(loaded.config))
    assert not loaded.warnings


def test_a_password_that_travels_in_the_clear_is_warned_of(tmp_path: Path) -> None:
    loaded = load_with_warnings(write(tmp_path, 'protocol = "SASL_PLAINTEXT"\n' + USER))
    assert [warning.key for warning in loaded.warnings] == ["log.security.protocol"]


def test_an_embedded_log_needs_none_of_it(tmp_path: Path) -> None:
    path = write(tmp_path, 'protocol = "SASL_SSL"\n')
    path.write_text(path.read_text().replace('"kafka"', '"sqlite"'))
    assert load(path).log.security.user is None


def test_what_aiokafka_is_given() -> None:
    assert client_keys(Security()) == {"security_protocol": "PLAINTEXT"}
    keys = client_keys(Security(protocol="SASL_SSL", mechanism="PLAIN", user="u", password="p"))
    context = keys.pop("ssl_context")
    assert keys == {
        "security_protocol": "SASL_SSL",
        "sasl_mechanism": "PLAIN",
        "sasl_plain_username": "u",
        "sasl_plain_password": "p",
    }
    assert context.check_hostname
    assert context.verify_mode is ssl.CERT_REQUIRED
