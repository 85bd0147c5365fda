"""Stage deliver (shell): one platform call for each batch, over HTTP.

In: a Call. Out: a CallResult, always: whatever goes wrong becomes a verdict.
Invariant: a call that may have reached the platform is never reported as one that did not. What failed before anything
was written is a RETRY; what failed after is UNKNOWN, and settle decides whether it may be repeated.
Never: repeats a call by itself (each is charged to the limits), follows a redirect, keeps a cookie, writes a secret to
the log.
"""

from __future__ import annotations

import asyncio
import io
import socket
from collections.abc import Mapping

import aiohttp
import structlog
from aiohttp import hdrs
from aiohttp.abc import ResolveResult
from msgspec.structs import replace
from yarl import URL

from engine.clock import NS_PER_S, Clock
from engine.config import ChannelConfig
from engine.drivers import Action, Call, CallResult, Driver, Reply, Request, Token, Verdict
from engine.errors import PlatformRefused, PlatformUnavailable
from engine.time_limit import TimeLimit
from engine.tokens import REFUSED_NS, Tokens

MAX_BODY_BYTES = 1 << 20  # of an answer; a 10,000-recipient one of the webhook's has about half of that
CONNECT_S = 5.0  # for finding the address, and again for connecting
CONNECT_SHARE = 0.45  # of the whole timeout, so that one that could not connect is never taken for one that hung
TOKEN_REFUSED_S = 10.0  # rest when the platform refuses a token it has just given
# The circuit breaker: after a few calls in a row that did not even reach the platform, or found it out of service, the
# next ones cost nobody an attempt: the account rests, but never so long that an urgent send would wait for it after
# the outage.
OUT_OF_SERVICE = "http_503"
MISSES = 3
REST_S = 1.0

HEADERS = {hdrs.USER_AGENT: "surgetank", hdrs.ACCEPT: "application/json", hdrs.ACCEPT_ENCODING: "identity"}

CONNECT = CallResult(Verdict(Action.RETRY, "connect", "could not connect"), left=False)
TIMEOUT = CallResult(Verdict(Action.UNKNOWN, "timeout", "no answer in time"), answered=False)
RESET = CallResult(Verdict(Action.UNKNOWN, "reset", "connection lost"), answered=False)
GARBAGE = CallResult(Verdict(Action.UNKNOWN, "garbage", "not an HTTP answer"))
OVERSIZE = CallResult(Verdict(Action.UNKNOWN, "oversize", "answer larger than 1 MiB"))
INTERNAL = CallResult(Verdict(Action.UNKNOWN, "internal", "a fault of our own"), answered=False)
NO_TOKEN = CallResult(Verdict(Action.RETRY, "token", "no access token"), left=False)
REFUSED = CallResult(Verdict(Action.PARK, "credentials", "credentials refused", REFUSED_NS / NS_PER_S), left=False)
STILL_REFUSED = CallResult(Verdict(Action.PARK, "token", "a new access token is refused too", TOKEN_REFUSED_S))
TOO_LATE = CallResult(Verdict(Action.RETRY, "deadline", "its deadline passed before the call"), left=False)

REFRESH = Action.REFRESH  # Python 3.11 takes a microsecond to find an enum's member
logger = structlog.get_logger(__name__)


class Deliverer:
    """One per channel. As many calls at once as ``in_flight``: each has a connection of its own, so none waits."""

    def __init__(self, channel: str, config: ChannelConfig, driver: Driver, *, clock: Clock) -> None:
        self.faults = 0  # calls that ended in a fault of our own: a defect, each is in the log
        self._channel = channel
        self._config = config
        self._driver = driver
        self._clock = clock
        self._tokens = Tokens(self._fetch, clock)
        self._wants_token = {name for name in config.accounts if driver.token_request(name) is not None}
        self._stale: dict[str, str] = {}  # the token an account was refused last, until one works
        self._misses = 0  # calls in a row that did not reach the platform
        self._refused: set[str] = set()  # accounts whose credentials are; said once
        self._limit = TimeLimit(config.timeout / NS_PER_S)
        self._session: aiohttp.ClientSession | None = None

    async def start(self) -> None:
        """Make the connection pool; nothing is sent."""
        connect_s = min(CONNECT_S, self._limit.seconds * CONNECT_SHARE)
        # Beside the calls' connections one for each account's token, so that a renewal never takes a call's.
        limit = self._config.in_flight + len(self._wants_token)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=limit, resolver=_Resolver(connect_s)),
            cookie_jar=aiohttp.DummyCookieJar(),
            request_class=_Request,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=connect_s),
            trust_env=False,
        )

    async def close(self) -> None:
        """Calls under way must have ended."""
        await self._tokens.close()
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def call(self, call: Call, before_ns: int) -> CallResult:
        """TOO_LATE if it could begin at ``before_ns`` at the soonest: a token may be long in coming. Raises nothing but
        CancelledError. Cost beside aiohttp's own: about a tenth of it, and the driver's."""
        account, token = call.account, ""
        try:
            if account in self._wants_token:
                token = self._tokens.current(account) or await self._tokens.get(account)
            if self._clock.now_ns() >= before_ns:
                return TOO_LATE
            reply = await self._http(self._driver.request(call, token))
            result = self._driver.result(call, reply) if isinstance(reply, Reply) else reply
        except PlatformUnavailable:
            return self._missed(NO_TOKEN)
        except PlatformRefused:
            return REFUSED
        except Exception:  # the shell's outer edge: a defect must not take the batch with it
            self.faults += 1
            logger.exception("a call failed by a fault of our own", channel=self._channel, batch=call.batch)
            return INTERNAL
        if token:
            result = self._told(account, token, result)
        if result is CONNECT or result.whole.code == OUT_OF_SERVICE:
            return self._missed(result)
        self._misses = 0
        return result

    def _told(self, account: str, token: str, result: CallResult) -> CallResult:
        """``result``, or a rest when it refuses not only this token but the one before it too."""
        if result.whole.action is not REFRESH:
            self._stale.pop(account, None)
            return result
        self._tokens.invalidate(account, token)
        before = self._stale.get(account)
        self._stale[account] = token
        return result if before in (None, token) else STILL_REFUSED

    def _missed(self, result: CallResult) -> CallResult:
        """``result``, or a rest (of what the platform wishes, if that is longer) after a few in a row."""
        self._misses += 1
        if self._misses <= MISSES:
            return result
        rest_s = max(result.whole.after_s or 0.0, REST_S)
        rest = Verdict(Action.PARK, result.whole.code, "the platform cannot be reached", rest_s)
        return replace(result, whole=rest)

    async def _http(self, request: Request) -> Reply | CallResult:
        """The answer, or what its absence means."""
        assert self._session is not None, "start() first"  # noqa: S101
        body = request.body
        try:
            with self._limit.block():
                response = await self._session.request(
                    request.method,
                    URL(request.url, encoded=True),
                    # A large body goes out in pieces: in one it would hold up the loop.
                    data=body if len(body) <= MAX_BODY_BYTES else io.BytesIO(body),
                    headers=request.headers,
                    allow_redirects=False,
                )
                try:
                    content = response.content  # of most answers all is there
                    answer = content.read_nowait() if content.is_eof() else await _read(content)
                    if len(answer) > MAX_BODY_BYTES:
                        response.close()
                        return OVERSIZE
                    return Reply(response.status, response.headers, answer)
                finally:
                    response.release()
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError):
            return CONNECT
        except TimeoutError:
            return TIMEOUT
        except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, ConnectionError):
            return RESET
        except aiohttp.ClientError:
            return GARBAGE

    async def _fetch(self, account: str) -> Token:
        """Ask for a token. Raises PlatformUnavailable or PlatformRefused."""
        request = self._driver.token_request(account)
        assert request is not None  # noqa: S101 # only asked for accounts that want one
        reply = await self._http(request)
        if not isinstance(reply, Reply):
            self._no_token(account, reply.whole.reason)
            raise PlatformUnavailable(reply.whole.reason)
        try:
            token = self._driver.token(reply)
        except PlatformUnavailable as error:
            self._no_token(account, str(error))
            raise
        except PlatformRefused as error:
            if account not in self._refused:
                self._refused.add(account)
                logger.error("the platform refuses our credentials", **self._names(account), answer=str(error))
            raise
        if account in self._refused:
            self._refused.discard(account)
            logger.info("the platform takes our credentials again", **self._names(account))
        return token

    def _no_token(self, account: str, reason: str) -> None:
        logger.warning("no access token", **self._names(account), reason=reason)

    def _names(self, account: str) -> Mapping[str, str]:
        return {"channel": self._channel, "account": account}


class _Request(aiohttp.ClientRequest):
    """Has the headers that all have: the session's own would be copied twice a request."""

    DEFAULT_HEADERS = HEADERS


class _Resolver(aiohttp.ThreadedResolver):
    """aiohttp limits the search for an address only together with the wait for a free connection, which costs each call
    a timer; here every call has a connection."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self._seconds = seconds

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        try:
            async with asyncio.timeout(self._seconds):
                return await super().resolve(host, port, family)
        except TimeoutError as error:
            raise OSError(f"no address of {host} within {self._seconds:g} s") from error


async def _read(content: aiohttp.StreamReader) -> bytes:
    """The whole body, or more than MAX_BODY_BYTES of one that is larger than we read. Decompressed size counts."""
    parts, size = [], 0
    while size <= MAX_BODY_BYTES and not content.at_eof():
        parts.append(await content.readany())
        size += len(parts[-1])
    return b"".join(parts)
