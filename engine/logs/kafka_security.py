"""TLS and SASL as every aiokafka client takes them."""

from __future__ import annotations

import ssl
from typing import Any

from engine.config import Security
from engine.errors import ConfigError


def client_keys(security: Security) -> dict[str, Any]:
    """Keyword arguments of aiokafka's clients. Reads the files; raises ConfigError for one that cannot be used."""
    keys: dict[str, Any] = {"security_protocol": security.protocol}
    if security.protocol.endswith("SSL"):
        keys["ssl_context"] = _context(security)
    if security.protocol.startswith("SASL_"):
        keys |= {
            "sasl_mechanism": security.mechanism,
            "sasl_plain_username": security.user,  # aiokafka's name for SCRAM's too
            "sasl_plain_password": security.password,
        }
    return keys


def _context(security: Security) -> ssl.SSLContext:
    """Verifies the certificate and the name, as Python's default context does."""
    try:
        context = ssl.create_default_context(cafile=security.ca_file)
    except OSError as error:  # ssl.SSLError too
        raise ConfigError(f"cannot be used: {_why(error)}", ("log", "security", "ca_file")) from error
    if security.cert_file is not None:
        try:
            # A password that is always given: without one OpenSSL would ask on the terminal.
            context.load_cert_chain(security.cert_file, security.key_file, lambda: security.key_password or "")
        except OSError as error:
            raise ConfigError(
                f"cannot be used with its key: {_why(error)}", ("log", "security", "cert_file")
            ) from error
    return context


def _why(error: OSError) -> str:
    if not isinstance(error, ssl.SSLError):
        return str(error.strerror)
    return error.reason.lower().replace("_", " ") if error.reason else "not PEM, or another password"
