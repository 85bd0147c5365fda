"""How a platform takes messages: one file for each, no I/O inside.

A driver turns a batch into a request and an answer into verdicts; ``engine.deliver`` does the HTTP. So a driver is
tested with bytes alone, and adding a platform is one file here and one endpoint in the simulator: the driver
``wecom.message`` is the class ``Driver`` of ``engine/drivers/wecom_message.py``, found by its name (``load``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from importlib import import_module
from pkgutil import iter_modules
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple, Protocol

from msgspec import Struct

from engine.config import ChannelConfig, Frequency
from engine.errors import ConfigError


class Request(Struct, frozen=True, gc=False):
    """One HTTP call to make."""

    method: str
    url: str
    body: bytes
    headers: Mapping[str, str]


class Reply(Struct, frozen=True, gc=False):
    """What came back."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Token(NamedTuple):
    """An access token and how long the platform says it lives."""

    value: str
    expires_s: float


class Action(Enum):
    """What an answer means, for a whole call or for one recipient."""

    ACCEPTED = "accepted"  # the platform took it
    RETRY = "retry"  # the same again later, after backoff or ``after_s``
    REFRESH = "refresh"  # whole call only: the token is old; the same again at once, with a new one
    PARK = "park"  # whole call only: nothing to this account for ``after_s``; then the same again
    FAILED = "failed"  # final, for the recipient(s)
    DEAD = "dead"  # final, for the whole batch: the platform refuses what we sent
    UNKNOWN = "unknown"  # whole call only: it may or may not have had its effect; made by the shell, and by a driver
    # instead of RETRY where the answer leaves that open and the channel forbids repeats

    __hash__ = object.__hash__  # in C: Enum's own costs ten times as much, and every call looks some up


class Verdict(NamedTuple):
    """An answer for a call, or for one recipient. ``code`` is the platform's own; ``after_s`` with RETRY and PARK.

    With RETRY, PARK and UNKNOWN ``reason`` is one of a few fixed texts (it becomes a metric's label), never what the
    platform wrote. ``refused``, with RETRY: it surely reached nobody.
    """

    action: Action
    code: str = ""
    reason: str = ""
    after_s: float | None = None
    refused: bool = False


NO_EXCEPTIONS: Mapping[int, Verdict] = MappingProxyType({})


class CallResult(Struct, frozen=True, gc=False):
    """How one call ended: ``whole`` for every recipient but those in ``exceptions`` (index in the batch)."""

    whole: Verdict
    exceptions: Mapping[int, Verdict] = NO_EXCEPTIONS
    platform_id: str = ""
    left: bool = True  # False: nothing of it was written, so no quota of the platform's counts it
    answered: bool = True  # False: it may still arrive


class Template(NamedTuple):
    """A record of the content topic: content registered under an id for one channel."""

    id: str
    channel: str
    content: Mapping[str, Any]
    fields: Mapping[str, Field]


class Field(NamedTuple):
    """One value a registered content wants."""

    required: bool = False
    max_chars: int | None = None


class Prepared(NamedTuple):
    """A send's content, checked once for its channel, in the form the driver puts on the wire.

    ``body`` is opaque to everybody else; equal ``key`` means sends may merge into one call. ``complete``: it needs no
    values of the recipients' own.
    """

    key: bytes
    body: Any
    complete: bool = True


class Call(Struct, frozen=True, gc=False):
    """What a driver builds a request from. ``data[i]`` is recipient i's own values, or None; may be empty: none has."""

    batch: str  # our id of the batch; the same for every attempt of exactly these recipients
    account: str
    body: Any  # Prepared.body
    ids: Sequence[str]
    data: Sequence[Mapping[str, Any] | None]


class Driver(Protocol):
    """One per channel. Pure: no clock, no I/O, no state that changes."""

    name: ClassVar[str]
    cap: int  # recipients a call
    carries_data: ClassVar[bool]  # recipients may have values of their own
    registered_only: ClassVar[bool]  # content must be registered
    caseless: ClassVar[bool]  # ids that differ in the case of ASCII letters alone are one recipient
    remembers_s: ClassVar[int]  # how long a call made again under the same ``batch`` has no second effect; 0: never
    frequency: ClassVar[tuple[Frequency, ...]]  # how often one may get a message, as the platform publishes it

    def __init__(self, channel: str, config: ChannelConfig) -> None:
        """``channel`` is its name in the config. Raises ConfigError with the key's path: a wrong or missing key
        of the channel or of one of its accounts."""

    def prepare(self, content: Mapping[str, Any], template: Template | None, data: Mapping[str, Any]) -> Prepared:
        """Check a send's content (``template`` when it refers to a registered one). Raises Reject."""

    def check_recipient(self, id: str, data: Mapping[str, Any] | None, prepared: Prepared) -> None:
        """Raises Reject for an id the request format would smuggle more into, or values that do not fit.

        Passes every id of ext.intake.PLAIN_ID's characters (ASCII letters, digits, `-`, `.`, `_`) without values, where
        ``prepared`` is complete: nobody asks about those.
        """

    def token_request(self, account: str) -> Request | None:
        """The call that gets an access token for ``account``; None where the platform wants none."""

    def token(self, reply: Reply) -> Token:
        """Raises PlatformUnavailable (try again) or PlatformRefused (wrong credentials)."""

    def request(self, call: Call, token: str) -> Request:
        """The call that delivers. ``token`` is empty where none is wanted."""

    def result(self, call: Call, reply: Reply) -> CallResult:
        """What the answer means. Never raises for any bytes: what cannot be understood is a RETRY (UNKNOWN on a
        channel with ``repeats = "never"``)."""


def known() -> list[str]:
    """The drivers there are: a module ``wecom_message`` beside this file is ``wecom.message``."""
    return sorted(m.name.replace("_", ".", 1) for m in iter_modules(__path__) if not m.name.startswith("_"))


def load(name: str, channel: str | None = None) -> type[Driver]:
    """The driver of that name. Raises ConfigError naming those there are; ``channel`` makes the key's path whole."""
    if name not in known():
        key = ("driver",) if channel is None else ("channels", channel, "driver")
        raise ConfigError(f"no driver is called {name!r}; there are {', '.join(known())}", key)
    driver: type[Driver] = import_module(f"engine.drivers.{name.replace('.', '_', 1)}").Driver
    return driver
