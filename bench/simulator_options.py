"""How the simulated platforms behave: frozen structs, read from JSON and changed live by a merge.

Everything off by default but what a platform does silently: a simulator without options takes what a healthy platform
would. ``published`` are the numbers the platforms publish.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

ENDPOINTS = ("wecom", "wechat", "webhook")

# Prefix of a recipient id -> what the platform says of it.
WECOM_REFUSED = {"invalid-": "invaliduser", "unlicensed-": "unlicenseduser"}
WECHAT_REFUSED = {"invalid-": "40003", "unfollowed-": "43004", "blacklisted-": "43019", "declined-": "43101"}
WEBHOOK_REFUSED = {"invalid-": "invalid"}

EndpointName = Literal["wecom", "wechat", "webhook"]
Kind = Literal["refuse", "error", "hang", "reset", "reset_after", "slow", "garbage"]


class _Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Unknown keys are errors: a misspelt option would silently test nothing."""


class Latency(_Options, frozen=True, kw_only=True):
    """How long a call takes to answer, in seconds; its effect is at arrival, so a client that gives up was served.

    ``fixed``: ``median_s`` always. ``lognormal``: that median, ``sigma`` of the logarithm, kept in [min_s, max_s].
    """

    kind: Literal["fixed", "lognormal"] = "fixed"
    median_s: float = 0.0
    sigma: float = 0.5
    min_s: float = 0.0
    max_s: float = 60.0

    def __post_init__(self) -> None:
        if not 0 <= self.min_s <= self.max_s or self.median_s < 0 or self.sigma < 0:
            raise ValueError("latency wants 0 <= min_s <= max_s, median_s >= 0 and sigma >= 0")


class Quota(_Options, frozen=True, kw_only=True):
    """At most ``calls`` calls or ``recipients`` recipients per account and API in any window [t, t + per_s).

    A call over it has no effect, is not counted in the window, and starts ``penalty_s`` seconds in which every call
    of the account to the API is refused.
    """

    per_s: float
    calls: int | None = None
    recipients: int | None = None
    penalty_s: float = 0.0

    def __post_init__(self) -> None:
        if self.per_s <= 0 or (self.calls is None) == (self.recipients is None):
            raise ValueError("a quota wants per_s > 0 and either calls or recipients")


class MemberLimit(_Options, frozen=True, kw_only=True):
    """At most ``messages`` to one recipient in any window [t, t + per_s); more are taken and silently dropped."""

    messages: int
    per_s: float


class Endpoint(_Options, frozen=True, kw_only=True):
    """What every platform can do. Shares are of recipients, 0 to 1, chosen by a hash of the id: same in every run."""

    latency: Latency = Latency()
    quotas: tuple[Quota, ...] = ()
    concurrency: int = 0  # calls at once per account and API; 0: any number
    accounts: dict[str, str] = {}  # id -> secret; empty: every account with any secret
    token_life_s: float = 7200.0
    member_limits: tuple[MemberLimit, ...] = ()
    refused: dict[str, str] = {}  # prefix of the recipient id -> the platform's own code for it
    invalid_share: float = 0.0  # recipients the platform does not know
    drop_share: float = 0.0  # recipients whose messages are taken and never delivered
    retry_share: float = 0.0  # webhook: recipients, others: calls, told once to come again later


class WeCom(Endpoint, frozen=True, kw_only=True):
    """Member limits as published: path/90454. ``refused``: to which list of the answer an id goes."""

    member_limits: tuple[MemberLimit, ...] = (
        MemberLimit(messages=30, per_s=60),
        MemberLimit(messages=1000, per_s=3600),
    )
    refused: dict[str, str] = msgspec.field(default_factory=WECOM_REFUSED.copy)


class WeChat(Endpoint, frozen=True, kw_only=True):
    """``templates``: the known ids; None: every one."""

    refused: dict[str, str] = msgspec.field(default_factory=WECHAT_REFUSED.copy)
    templates: tuple[str, ...] | None = None


class Webhook(Endpoint, frozen=True, kw_only=True):
    """``batch``: recipients a call, 0: any number. ``refused``: the reason given."""

    refused: dict[str, str] = msgspec.field(default_factory=WEBHOOK_REFUSED.copy)
    batch: int = 0
    retry_after_ms: int = 1000  # what a recipient told to come again is told


class Outage(_Options, frozen=True, kw_only=True):
    """What ``endpoint`` does, tokens included, from ``start_s`` for ``duration_s`` seconds.

    No effect: ``refuse`` 503; ``error`` the platform's busy answer; ``hang`` no answer until the end, then a reset;
    ``reset``; ``garbage`` 200 with bytes that are no answer. With its effect: ``reset_after`` a reset for an answer;
    ``slow`` the answer a byte at a time until the end of the outage.
    """

    endpoint: EndpointName
    kind: Kind
    duration_s: float
    start_s: float = 0.0
    retry_after_s: int | None = None  # refuse: the Retry-After header


class Options(_Options, frozen=True, kw_only=True):
    """The whole document."""

    seed: int = 1  # of latencies and shares
    wecom: WeCom = WeCom()
    wechat: WeChat = WeChat()
    webhook: Webhook = Webhook()
    outages: tuple[Outage, ...] = ()  # from the start of the simulator, or from the POST that sets them


def parse(document: bytes | str) -> Options:
    """Raises msgspec.ValidationError or msgspec.DecodeError with what is wrong and where."""
    return msgspec.json.decode(document, type=Options)


def merge(options: Options, patch: Any) -> Options:
    """``patch`` over ``options``, as RFC 7396 says, but an object of prefixes or accounts is replaced whole.

    Raises msgspec.ValidationError; ``options`` stay as they are.
    """
    return msgspec.convert(_merged(msgspec.to_builtins(options), patch), type=Options)


def _merged(old: Any, patch: Any) -> Any:
    if not isinstance(old, dict) or not isinstance(patch, dict):
        return patch
    whole = ("refused", "accounts")
    return old | {key: new if key in whole else _merged(old.get(key), new) for key, new in patch.items()}


def published() -> Options:
    """The published call quotas. WeCom: path/90454 (2023-08-28), penalties 60 s and 60 min. WeChat: template 100,000 a
    day, the default of accounts under 100,000 followers."""
    minute = Quota(calls=10_000, per_s=60, penalty_s=60)
    hour = Quota(calls=150_000, per_s=3600, penalty_s=3600)
    return Options(wecom=WeCom(quotas=(minute, hour)), wechat=WeChat(quotas=(Quota(calls=100_000, per_s=86_400),)))
