"""Stage admit (pure): may this send be delivered, by which account, to whom, and when?

In: a decoded send, when it was first seen, its tier's policy, the channels, the registered contents.
Out: Admitted (addressed, its content checked, its times known), or Hold (its content is not registered yet), or a
Reject with the named reason.
Invariant: what is admitted names an account of the config, carries content its driver accepted, and every recipient
of it stands in exactly one of ``positions``, ``duplicates`` and ``refused``.
Never: looks anything up by itself; ids seen before are told apart by the shell, which holds that table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from engine.config import TierConfig
from engine.decode import decode_map
from engine.drivers import Driver, Prepared, Template
from engine.errors import Reject
from engine.send import Recipient, Send

NS_PER_MS = 1_000_000


class Channel(NamedTuple):
    """A channel of the config as the stages see it."""

    name: str
    handle: int  # in the core
    driver: Driver
    accounts: Mapping[str, int]  # name -> handle in the core
    repeats: bool  # a call whose effect is unknown may be made again


class Times(NamedTuple):
    """ms since the epoch."""

    not_before: int
    due: int
    deadline: int


class Admitted(NamedTuple):
    """A send that may be scheduled."""

    channel: Channel
    account: str
    tenant: str
    prepared: Prepared
    times: Times
    ids: Sequence[bytes]  # who is to be scheduled: column, like positions and data
    positions: Sequence[int]  # their places in the send's `to`
    data: Sequence[Mapping[str, Any] | None]  # empty: nobody has any
    duplicates: Sequence[int]  # places that name somebody an earlier place names
    refused: Sequence[tuple[int, Reject]]  # places the channel cannot take


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
    """When it may leave, should have left, must have left. Raises Reject."""
    start = max(first_seen_ms, send.not_before or 0)
    due = start + policy.due_after // NS_PER_MS if send.due is None else send.due
    oldest = start + policy.max_age // NS_PER_MS
    deadline = oldest if send.deadline is None else min(send.deadline, oldest)
    return Times(send.not_before or 0, due, deadline)


def prepare(send: Send, channel: Channel, templates: Mapping[str, Template]) -> Prepared | Hold:
    """Check the content with the channel's driver, a registered one with its template. Raises Reject."""
    content = decode_map(send.content)
    name = content.get("ref")
    if name is None and channel.driver.registered_only:
        name = content.get("template")
    if name is None:
        return channel.driver.prepare(content, None, {})
    template = templates.get(name) if isinstance(name, str) else None
    if template is None:
        return Hold(str(name))
    if template.channel != send.channel:
        raise Reject("content_other_channel", f"{name} is registered for {template.channel}")
    data = content.get("data", {})
    if not isinstance(data, dict):
        raise Reject("data_invalid", "`content.data` is not a map")
    return channel.driver.prepare(content, template, data)


def admit(send: Send, channel: Channel, account: str, prepared: Prepared, when: Times) -> Admitted:
    """Tell the recipients apart. Cost: about 1 us a recipient."""
    ids: list[bytes] = []
    positions: list[int] = []
    data: list[Mapping[str, Any] | None] = []
    duplicates: list[int] = []
    refused: list[tuple[int, Reject]] = []
    seen: set[str] = set()
    check = channel.driver.check_recipient
    for position, recipient in enumerate(send.to):
        values = None
        name = recipient.id if isinstance(recipient, Recipient) else recipient
        if name in seen:
            duplicates.append(position)
            continue
        seen.add(name)
        try:
            if isinstance(recipient, Recipient) and recipient.data:
                values = _values(recipient)
            check(name, values, prepared)
        except Reject as reject:
            refused.append((position, reject))
            continue
        ids.append(name.encode())
        positions.append(position)
        data.append(values)
    if not any(data):
        data = []
    return Admitted(channel, account, send.tenant or account, prepared, when, ids, positions, data, duplicates, refused)


def _values(recipient: Recipient) -> Mapping[str, Any]:
    try:
        return decode_map(recipient.data)
    except Reject as reject:
        raise Reject("data_invalid", reject.detail) from reject
