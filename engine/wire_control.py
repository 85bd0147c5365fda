"""The records of the control topic: commands and questions to every worker, and their replies (pure). Documented in
docs/wire-format.md.

In: structs, or the bytes of a record. Out: bytes, or a struct, or Reject("command_invalid").
Invariant: what is written here can be read here; two commands have one key only if the later one replaces the other.
Never: decides whether what a command names exists; a worker knows that.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import quote

import msgspec
from msgspec import UNSET, Meta, UnsetType

from engine.errors import Reject
from engine.send import MAX_RECORD_BYTES, WIRE_VERSION, Id, Ms
from engine.wire import decode_map

Version = Annotated[int, Meta(ge=WIRE_VERSION, le=WIRE_VERSION)]
Count = Annotated[int, Meta(ge=0)]
TierLabel = Literal["system", "template", "basic"]
Weight = Annotated[int, Meta(ge=1, le=1000)]
Number = Annotated[int, Meta(ge=1, le=10**12)]
COMMANDS = ("cancel", "pause", "resume", "why", "limits", "limit", "reweight")
QUESTIONS = ("why", "limits")  # change nothing; their records are taken back by who asked
REPLY_KEY = b"reply/"

# The keys of a Target that go together, and what they name.
KINDS: dict[tuple[str, ...], str] = {
    (): "everything",
    ("tier",): "tier",
    ("channel",): "channel",
    ("channel", "account"): "account",
    ("channel", "tenant"): "share",  # whose limit it is; nothing can be told to it
    ("tenant",): "tenant",
    ("campaign",): "campaign",
    ("tenant", "campaign"): "campaign",
}

_encode = msgspec.msgpack.Encoder().encode
Read = TypeVar("Read")


class Target(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a command is about: a tier; a channel; an account of a channel; a tenant; a campaign, of one tenant or of
    all. Hashable; nothing given: everything."""

    tier: TierLabel | None = None
    channel: Id | None = None
    account: Id | None = None
    tenant: Id | None = None
    campaign: Id | None = None

    @property
    def kind(self) -> str:
        """tier, channel, account, share (a tenant on a channel), tenant, campaign or everything; empty: the keys given
        do not go together."""
        return KINDS.get(tuple(name for name in self.__struct_fields__ if getattr(self, name) is not None), "")

    def __str__(self) -> str:
        """As people say it: "campaign spring of tenant shop-7"."""
        if self.kind == "account":
            return f"account {self.account} of channel {self.channel}"
        if self.kind == "share":
            return f"tenant {self.tenant} on channel {self.channel}"
        if self.kind == "campaign" and self.tenant is not None:
            return f"campaign {self.campaign} of tenant {self.tenant}"
        return f"{self.kind} {getattr(self, self.kind, '')}".rstrip()


def covers_campaign(standing: Container[Target], tenant: str, campaign: str | None) -> bool:
    """Whether a command about the tenant's campaign, or about everybody's of that name, is among these."""
    return campaign is not None and (
        Target(campaign=campaign) in standing or Target(tenant=tenant, campaign=campaign) in standing
    )


class Window(msgspec.Struct, frozen=True, omit_defaults=True):
    """Which of a scope's limits: that of ``unit`` in any window of length ``per``, or with ``zone`` in any day or month
    there, as a configuration has them."""

    unit: Literal["calls", "recipients"]
    per: str
    zone: str | None = None

    def __str__(self) -> str:
        """As people say it: "calls per 1s"."""
        return f"{self.unit} per {self.per}" + (f" in {self.zone}" if self.zone else "")


class Command(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """A command to all workers, obeyed until ``expires``; ``at``, ``expires``: ms since the epoch.

    cancel: what was first seen until ``at`` of ``campaign``, in one ``tenant`` or (None) in all. pause, resume: ``on``.
    why: a question about a campaign (``on``) or the sends of an id (``send``). limits: what each limit has used. limit:
    the limit ``window`` of ``on`` is ``number``, in all workers together; reweight: the weight of ``on`` is ``weight``;
    of both, without the number: what the configuration says.
    """

    v: Version = WIRE_VERSION
    id: Id
    command: str
    tenant: Id | None = None
    campaign: Id | UnsetType = UNSET
    on: Target | UnsetType = UNSET
    send: Id | UnsetType = UNSET
    window: Window | UnsetType = UNSET
    number: Number | UnsetType = UNSET
    weight: Weight | UnsetType = UNSET
    at: Ms
    expires: Ms

    @property
    def undoes(self) -> bool:
        """It takes an earlier command back, and so is obeyed whenever it is read."""
        unset = self.number is UNSET and self.weight is UNSET
        return self.command == "resume" or (self.command in ("limit", "reweight") and unset)


class Hold(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """Why the recipients of one campaign, in one tier and account, have not left a worker yet.

    ``held``: turn (nothing holds them), pause, slot, block, limit, grant, linger, time, frequency, pacing. ``on``:
    whose pause, block, limit, slot or rate it is; ``limit``: which of its limits, or rules of `frequency`. ``rate``: of
    pacing, calls a second. ``until``: ms since the epoch; None: not known. ``sends``: open ones, calls under way
    included; ``ready``: their recipients that are queued and not held by time. ``send``: the one asked for.
    """

    tier: str
    channel: str
    account: str
    tenant: str
    campaign: str | None = None
    send: str | None = None
    sends: Count
    ready: Count
    held: str
    on: Target | None = None
    limit: str | None = None
    rate: float | None = None
    until: int | None = None


class LimitUse(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One limit of a worker, which may have a share of the configured number. ``used``: in the window that ends now, or
    the period; ``in_flight``: by calls under way, which count too. ``full``: `template` and `basic` can use no more
    until ``until``, ms since the epoch; None: that hangs on calls under way. ``changed_until``: until when a command
    makes the number what it is; ``configured``: what it is otherwise, None: there is no such limit then."""

    on: Target
    limit: str
    number: Count
    used: Count
    in_flight: Count
    full: bool = False
    until: int | None = None
    changed_until: int | None = None
    configured: Count | None = None


class Reply(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """One worker's answer: how many recipients the command ended (cancel) or keeps (pause) or lets go (resume) there.
    ``refused``: why the worker cannot obey; empty when it does."""

    v: Version = WIRE_VERSION
    reply_to: Id
    worker: str
    recipients: Count = 0
    refused: str | UnsetType = UNSET
    why: list[Hold] | UnsetType = UNSET
    limits: list[LimitUse] | UnsetType = UNSET
    at: Ms


def encode_command(command: Command) -> tuple[bytes, bytes]:
    """Key and value. The newest command of a key is the one compaction keeps: a resume replaces its pause."""
    if command.command in QUESTIONS:
        return f"ask/{_part(command.id)}".encode(), _encode(command)
    return "/".join([_family(command), *(_part(name) for name in _names(command))]).encode(), _encode(command)


def _family(command: Command) -> str:
    return "pause" if command.command == "resume" else command.command


def _names(command: Command) -> list[str | None]:
    if isinstance(command.on, Target):
        on, window = command.on, command.window
        of = [window.unit, window.per, window.zone] if isinstance(window, Window) else []
        return [on.tier, on.channel, on.account, on.tenant, on.campaign, *of]
    return [command.tenant, command.campaign or None]


def _part(name: str | None) -> str:
    return "" if name is None else quote(name, safe="")


def decode_command(value: bytes) -> Command:
    """Raises Reject("command_invalid")."""
    command = _convert(_map(value), Command)
    if command.command not in COMMANDS:
        raise Reject("command_invalid", f"command {command.command!r}; known: {', '.join(COMMANDS)}")
    if command.command == "cancel" and command.campaign is UNSET:
        raise Reject("command_invalid", "`campaign` is missing")
    if command.command in ("pause", "resume"):
        _check(command.on, ("tier", "channel", "account", "tenant", "campaign"))
    if command.command == "why" and command.send is UNSET:
        _check(command.on, ("campaign",))
    if command.command == "limit":
        _check(command.on, ("everything", "tier", "channel", "account", "tenant"))
        if command.window is UNSET:
            raise Reject("command_invalid", "`window` is missing")
    if command.command == "reweight":
        _check(command.on, ("tier", "tenant", "campaign"))
    return command


def _check(on: Target | UnsetType, kinds: tuple[str, ...]) -> None:
    if on is UNSET or on.kind not in kinds:
        raise Reject("command_invalid", f"`on` must name one of: {', '.join(kinds)} (an account with its channel)")


def encode_reply(reply: Reply) -> tuple[bytes, bytes]:
    """Key and value of a worker's answer."""
    return REPLY_KEY + f"{_part(reply.reply_to)}/{_part(reply.worker)}".encode(), _encode(reply)


def decode_reply(value: bytes) -> Reply:
    """Raises Reject("command_invalid")."""
    return _convert(_map(value), Reply)


def _map(value: bytes) -> dict[str, Any]:
    if len(value) > MAX_RECORD_BYTES:
        raise Reject("command_invalid", f"{len(value):,} bytes")
    return decode_map(value, "command_invalid")


def _convert(value: dict[str, Any], struct: type[Read]) -> Read:
    try:
        return msgspec.convert(value, struct)
    except msgspec.ValidationError as error:
        raise Reject("command_invalid", str(error)) from None
