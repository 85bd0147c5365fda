"""What is open: handles are given out once, names and contents live as long as somebody needs them."""

from __future__ import annotations

import msgpack
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from engine.commit import Ledger
from engine.drivers import Prepared
from engine.logs import Partition
from engine.open_sends import Handles, Names, OpenSend, OpenSends, recipients
from engine.send import Origin, Tier
from engine.wire import NO_META

LEDGER = Ledger(Partition("t", 0), 0, 1)


def opened(
    opens: OpenSends, tier: Tier = Tier.BASIC, tenant: str = "t", campaign: str | None = None, raw: bytes = b"r",
    key: bytes = b"k", to: tuple[object, ...] = ("a",),
) -> int:  # fmt: skip
    flow = opens.flow(tier, "c", "acc", 3, tenant, campaign)
    content = opens.content_by_raw("c", raw) or opens.content("c", raw, Prepared(key, key))
    value = msgpack.packb({"id": "i", "channel": "c", "to": to, "content": {}})
    send = OpenSend(
        id="i", origin=Origin("t", 0, 0), flow=flow, content=content, ledger=LEDGER, offset=0, key=b"d" * 16,
        total=len(to), left=len(to), first_seen_ms=0, pushed_ns=0, due_ns=0, deadline_ns=0, linger_ns=0, meta=NO_META,
        record_key=None, value=value, headers=(), data={},
    )  # fmt: skip
    return opens.add(send)


def test_handles_are_used_again() -> None:
    handles = Handles()
    assert [handles.new() for _ in range(3)] == [0, 1, 2]
    handles.free(1)
    assert [handles.new(), handles.new()] == [1, 3]


def test_a_name_keeps_its_handle_while_it_is_held() -> None:
    names = Names()
    a, b = names.hold("a"), names.hold("b")
    assert a != b
    assert names.hold("a") == a
    names.drop("a")
    assert names.hold("a") == a
    names.drop("a")
    names.drop("a")
    assert names.hold("c") == a


def test_recipients_are_read_from_the_record() -> None:
    opens = OpenSends()
    handle = opened(opens, to=("a", {"id": "王"}, "c"))
    assert recipients(opens[handle], [1, 2]) == ["王", "c"]


def test_a_campaign_of_no_name_is_not_the_one_without() -> None:
    opens = OpenSends()
    flows = [opens[opened(opens, campaign=name)].flow for name in (None, "", "k")]
    assert len({flow.campaign_handle for flow in flows}) == 3
    assert opens.of_campaign("", None) == [flows[1]]


def test_a_campaign_of_one_tenant() -> None:
    opens = OpenSends()
    for tenant in "tu":
        for tier in Tier:
            opened(opens, tier, tenant, "k")
    assert len(opens.of_campaign("k", None)) == 6
    assert {flow.tenant for flow in opens.of_campaign("k", "u")} == {"u"}
    assert opens.of_campaign("none", None) == []


def test_one_content_in_two_encodings() -> None:
    opens = OpenSends()
    json, packed = opened(opens, raw=b"json"), opened(opens, raw=b"packed")
    content = opens[json].content
    assert opens[packed].content is content
    opens.remove(json)
    assert opens.content_by_raw("c", b"json") is content
    opens.remove(packed)
    assert opens.content_by_raw("c", b"json") is None


def test_forgotten_encodings_are_checked_again_and_do_not_forget_their_successors() -> None:
    opens = OpenSends()
    old = opened(opens, raw=b"ref", key=b"old")
    opens.forget_encodings("other")
    assert opens.content_by_raw("c", b"ref") is not None
    opens.forget_encodings("c")
    assert opens.content_by_raw("c", b"ref") is None
    new = opened(opens, raw=b"ref", key=b"new")
    assert opens[new].content.handle != opens[old].content.handle
    opens.remove(old)
    assert opens.content_by_raw("c", b"ref") is opens[new].content


class Opens(RuleBasedStateMachine):
    """Whatever comes and goes: the sums are right, handles of the open are distinct, nothing outlives its use."""

    handles: Bundle[int] = Bundle("handles")

    def __init__(self) -> None:
        super().__init__()
        self.opens = OpenSends()

    @rule(
        target=handles, tier=st.sampled_from(Tier), tenant=st.sampled_from("tu"),
        campaign=st.sampled_from([None, "", "k"]), raw=st.sampled_from([b"1", b"2"]), key=st.sampled_from([b"1", b"2"]),
    )  # fmt: skip
    def add(self, tier: Tier, tenant: str, campaign: str | None, raw: bytes, key: bytes) -> int:
        return opened(self.opens, tier, tenant, campaign, raw, key)

    @rule(handle=consumes(handles))
    def remove(self, handle: int) -> None:
        self.opens.remove(handle)

    @rule()
    def register(self) -> None:
        self.opens.forget_encodings("c")

    @invariant()
    def sums(self) -> None:
        opens, sends = self.opens, [self.opens[handle] for handle in self.opens]
        for tier in Tier:
            mine = [send for send in sends if send.flow.tier is tier]
            assert opens.count[tier] == len(mine)
            assert opens.sizes[tier] == sum(len(send.value) for send in mine)
        flows = {id(send.flow): send.flow for send in sends}
        assert {id(flow) for flow in opens._flows.values()} == set(flows)
        tenants = {flow.tenant: flow.tenant_handle for flow in flows.values()}
        assert len(set(tenants.values())) == len(tenants) == len(opens._tenant_names._table)
        contents = {id(send.content): send.content for send in sends}
        assert {id(content) for content in opens._contents.values()} == set(contents)
        assert len({content.handle for content in contents.values()}) == len(contents)
        assert all(id(content) in contents for content in opens.by_raw.values())


TestOpens = Opens.TestCase
TestOpens.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
