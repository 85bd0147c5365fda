"""Stage admit (pure): may this send be delivered, by which account, to whom, and when?

In: a decoded send, when it was first seen, its tier's policy, the channels, the registered contents.
Out: its channel and account, its checked content (or Hold: that is not registered yet), its times, its recipients
told apart; or a Reject with the named reason.
Invariant: what is admitted names an account of the config, carries content its driver accepted, and every recipient
of it stands in exactly one of ``positions``, ``duplicates`` and ``refused``.
Never: looks anything up by itself; ids seen before are told apart by the shell, which holds that table.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import msgspec

from engine.config import TierConfig
from engine.drivers import Driver, Prepared, Template
from engine.errors import Reject
from engine.send import MAX_ID_BYTES, Recipient, Send
from engine.wire import decode_map

NS_PER_MS = 1_000_000
LATEST_MS = 2**62 // NS_PER_MS  # in the year 2116: later times would not fit the core's 64 bits


class Channel(NamedTuple):
    """A channel of the config as the stages see it."""

    name: str
    handle: int  # in the core
    driver: Driver
    accounts: Mapping[str, int]  # name -> handle in the core
    repeats: bool  # a call whose effect is unknown may be made again


class Times(msgspec.Struct, frozen=True, gc=False):
    """ms since the epoch."""

    not_before: int
    due: int
    deadline: int


class Admitted(msgspec.Struct, frozen=True, gc=False):
    """Who of a send may be scheduled. Each place of its `to` stands in one of positions, duplicates, refused."""

    ids: list[bytes]  # column, like positions
    positions: list[int]
    data: dict[int, Mapping[str, Any]]  # values of recipients' own, by position
    duplicates: list[int]  # places that name somebody an earlier place names
    refused: list[tuple[int, Reject]]  # places the channel cannot take

    def refusals(self) -> dict[str, tuple[str, list[int]]]:
        """The places of each reason, with the first one's detail: the dead topic gets the record once a reason."""
        found: dict[str, tuple[str, list[int]]] = {}
        for position, reject in self.refused:
            found.setdefault(reject.reason, (reject.detail, []))[1].append(position)
        return found


class Hold(NamedTuple):
    """The send refers to a content that is not registered (yet)."""

    content: str


def address(send: Send, channels: Mapping[str, Channel]) -> tuple[Channel, str]:
    """The channel and account the send names. Raises Reject."""
    channel = channels.get(send.channel)
    if channel is None:
        raise Reject("channel_unknown", send.channel)
    account = send.account
    if account is None:
        if len(channel.accounts) != 1:
            raise Reject("account_missing", f"{send.channel} has {', '.join(channel.accounts)}")
        (account,) = channel.accounts
    elif account not in channel.accounts:
        raise Reject("account_unknown", f"{send.channel} has no {account}")
    return channel, account


def times(send: Send, first_seen_ms: int, policy: TierConfig) -> Times:
    """When it may leave, should have left, must have left; nothing later than LATEST_MS."""
    start = max(first_seen_ms, send.not_before or 0)
    due = start + policy.due_after // NS_PER_MS if send.due is None else send.due
    oldest = start + policy.max_age // NS_PER_MS
    deadline = oldest if send.deadline is None else min(send.deadline, oldest)
    return Times(min(send.not_before or 0, LATEST_MS), min(due, LATEST_MS), min(deadline, LATEST_MS))


def prepare(send: Send, channel: Channel, templates: Mapping[str, Template]) -> Prepared | Hold:
    """Check the content with the channel's driver, a registered one with its template. Raises Reject."""
    content = decode_map(send.content)
    by = "ref"
    if content.get(by) is None and channel.driver.registered_only:
        by = "template"
    name = content.get(by)
    if name is None:
        return channel.driver.prepare(content, None, {})
    if not isinstance(name, str) or not 0 < len(name.encode()) <= MAX_ID_BYTES:
        raise Reject("content_invalid", f"`content.{by}` is not a string of 1..{MAX_ID_BYTES} bytes")
    template = templates.get(name)
    if template is None:
        return Hold(name)
    if template.channel != send.channel:
        raise Reject("content_other_channel", f"{name} is registered for {template.channel}")
    data = content.get("data", {})
    if not isinstance(data, dict):
        raise Reject("data_invalid", "`content.data` is not a map")
    return channel.driver.prepare(content, template, data)


def admit(send: Send, driver: Driver, prepared: Prepared, still: Collection[int] | None = None) -> Admitted:
    """Tell the recipients apart; ``still``: only those at these places. Cost: about 0.5 us a recipient."""
    check = driver.check_recipient
    if still is None and len(send.to) == 1 and isinstance(only := send.to[0], str):  # most sends
        try:
            check(only, None, prepared)
        except Reject as reject:
            return Admitted([], [], {}, [], [(0, reject)])
        return Admitted([only.encode()], [0], {}, [], [])
    admitted = Admitted([], [], {}, [], [])
    seen: set[str] = set()
    for position, recipient in enumerate(send.to):
        if still is not None and position not in still:
            continue
        name = recipient if isinstance(recipient, str) else recipient.id
        if name in seen:
            admitted.duplicates.append(position)
            continue
        seen.add(name)
        try:
            values = None if isinstance(recipient, str) else _values(recipient)
            check(name, values, prepared)
        except Reject as reject:
            admitted.refused.append((position, reject))
            continue
        admitted.ids.append(name.encode())
        admitted.positions.append(position)
        if values:
            admitted.data[position] = values
    return admitted


def _values(recipient: Recipient) -> dict[str, Any] | None:
    return decode_map(recipient.data, "data_invalid") if recipient.data else None
