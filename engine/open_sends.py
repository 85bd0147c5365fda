"""The sends this process has taken in and not finished: handles for the core, names for people, and what is shared.

Holds no recipient: their ids stand in the core's arena. One OpenSend per record, one Flow for all sends of the same
(tier, channel, account, tenant, campaign), one Content for all of the same content. Handles are u32s that are used
again once nobody needs them, so tables stay as large as what is open, not as what has passed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from engine.decode import decode
from engine.drivers import Prepared
from engine.overload import level_of
from engine.send import Send, Tier
from ext.sends import Content, Flow, OpenSend, SendTable

__all__ = ["Content", "Flow", "Handles", "Names", "OpenSend", "OpenSends", "names", "recipients"]


def recipients(send: OpenSend, positions: Sequence[int]) -> list[str]:
    """Their ids, read from the record again: only the core keeps ids. Cost: a decode."""
    return names(decode(send.value), positions)


def names(send: Send, positions: Iterable[int]) -> list[str]:
    """The ids of the recipients at these places."""
    return [r if isinstance(r, str) else r.id for r in (send.to[position] for position in positions)]


class Handles:
    """Numbers 0.. given out, and given again once freed."""

    __slots__ = ("_free", "_next")

    def __init__(self) -> None:
        self._free: list[int] = []
        self._next = 0

    def new(self) -> int:
        """A number nobody holds."""
        if self._free:
            return self._free.pop()
        self._next += 1
        return self._next - 1

    def free(self, number: int) -> None:
        """Its holder is gone."""
        self._free.append(number)


class Names:
    """Strings as handles, counted."""

    __slots__ = ("_counts", "_handles", "_table")

    def __init__(self) -> None:
        self._table: dict[str, int] = {}
        self._counts: dict[str, int] = {}
        self._handles = Handles()

    def hold(self, name: str) -> int:
        """The name's handle, held once more."""
        handle = self._table.get(name)
        if handle is None:
            handle = self._table[name] = self._handles.new()
            self._counts[name] = 0
        self._counts[name] += 1
        return handle

    def handle(self, name: str) -> int | None:
        """The name's handle, if anybody holds it."""
        return self._table.get(name)

    def drop(self, name: str) -> None:
        """Held once less."""
        self._counts[name] -= 1
        if not self._counts[name]:
            self._handles.free(self._table.pop(name))
            del self._counts[name]


class OpenSends(SendTable):
    """All of them, and what they share: names as handles, flows, contents."""

    def __init__(self) -> None:
        # Called with a flow that was just made, or forgotten: its handles are good until the call returns.
        self.made: list[Callable[[Flow], None]] = []
        self.gone: list[Callable[[Flow], None]] = []
        self._flows: dict[tuple[int, str, str, str, str | None], Flow] = {}
        self._campaigns: dict[str, dict[Flow, None]] = {}  # in order: what is done to them is done the same way again
        self._tenant_names = Names()
        self._campaign_names = Names()
        self._contents: dict[tuple[str, bytes], Content] = {}  # by (channel, prepared key)
        self._content_handles = Handles()

    def flow(
        self, tier: Tier, channel: str, account: str, account_handle: int, tenant: str, campaign: str | None
    ) -> Flow:
        """The flow of that name; made when it is not there. It lives until its last open send is removed."""
        key = (tier, channel, account, tenant, campaign)
        flow = self._flows.get(key)
        if flow is None:
            flow = self._flows[key] = Flow(tier, channel, account, tenant, campaign)
            flow.account_handle = account_handle
            flow.level = level_of(tier, tenant, campaign) if tier is not Tier.SYSTEM else 0
            flow.tenant_handle = self._tenant_names.hold(tenant)
            flow.campaign_handle = self._campaign_names.hold(_campaign_name(campaign))
            if campaign is not None:
                self._campaigns.setdefault(campaign, {})[flow] = None
            for follow in self.made:
                follow(flow)
        return flow

    def content_by_raw(self, channel: str, raw: bytes) -> Content | None:
        """The content already checked in this encoding, if an open send uses it."""
        return self.by_raw.get(_raw_key(channel, raw))

    def content(self, channel: str, raw: bytes, prepared: Prepared) -> Content:
        """The one for ``prepared``, from now on found by ``raw`` too."""
        key = (channel, prepared.key)
        content = self._contents.get(key)
        if content is None:
            content = self._contents[key] = Content(self._content_handles.new(), key, prepared)
        raw_key = _raw_key(channel, raw)
        self.by_raw[raw_key] = content
        content.raws.append(raw_key)
        return content

    def own_content(self) -> int:
        """A content's handle that no content has; give it back with ``free_content``."""
        return self._content_handles.new()

    def free_content(self, handle: int) -> None:
        """One from ``own_content``."""
        self._content_handles.free(handle)

    def forget_encodings(self, channel: str) -> None:
        """What the channel's encodings stand for has changed (a template was registered anew): check them again."""
        for raw in [raw for raw, content in self.by_raw.items() if content.key[0] == channel]:
            del self.by_raw[raw]

    def of_campaign(self, campaign: str, tenant: str | None) -> list[Flow]:
        """The flows of a campaign (of one tenant, or of all)."""
        flows = self._campaigns.get(campaign, ())
        return [flow for flow in flows if tenant is None or flow.tenant == tenant]

    def keep_tenant(self, name: str) -> int:
        """The tenant's handle, which is its own from now on, flows or not."""
        return self._tenant_names.hold(name)

    def tenant(self, name: str) -> int | None:
        """The tenant's handle, while it has a flow or is kept."""
        return self._tenant_names.handle(name)

    def of_tier(self, tier: Tier) -> list[Flow]:
        """The flows of a tier."""
        return [flow for flow in self._flows.values() if flow.tier is tier]

    def forget_flow(self, flow: Flow) -> None:
        """Its last open send was removed."""
        del self._flows[flow.tier, flow.channel, flow.account, flow.tenant, flow.campaign]
        for names in flow.names:
            del self.by_names[flow.tier][names]
        self._tenant_names.drop(flow.tenant)
        self._campaign_names.drop(_campaign_name(flow.campaign))
        if flow.campaign is not None:
            siblings = self._campaigns[flow.campaign]
            siblings.pop(flow, None)
            if not siblings:
                del self._campaigns[flow.campaign]
        for follow in self.gone:
            follow(flow)

    def forget_content(self, content: Content) -> None:
        """Its last open send was removed."""
        del self._contents[content.key]
        for raw in content.raws:
            if self.by_raw.get(raw) is content:
                del self.by_raw[raw]
        self._content_handles.free(content.handle)


def _raw_key(channel: str, raw: bytes) -> bytes:
    return channel.encode() + b"\0" + raw


def _campaign_name(campaign: str | None) -> str:
    # None and "" are two merge units; no name on the wire is longer than 128 bytes.
    return "\0" * 129 if campaign is None else campaign
