"""Access tokens: one request for all who wait, renewed ahead, invalidated by value."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from engine.clock import NS_PER_S, Clock
from engine.drivers import Token
from engine.errors import EngineError, PlatformRefused, PlatformUnavailable
from engine.tokens import REFUSED_NS, UNAVAILABLE_NS, Tokens


class Platform(Clock):
    """Hands out t1, t2, ... when ``gate`` is open, or raises ``error``; its clock stands still."""

    def __init__(self) -> None:
        self.now = 10**15
        self.asked: list[str] = []
        self.life_s = 7200.0
        self.error: EngineError | None = None
        self.gate = asyncio.Event()
        self.gate.set()

    def now_ns(self) -> int:
        return self.now

    def later(self, seconds: float) -> None:
        self.now += int(seconds * NS_PER_S)

    async def fetch(self, account: str) -> Token:
        self.asked.append(account)
        number = len(self.asked)
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        return Token(f"t{number}", self.life_s)


@pytest.fixture
def platform() -> Platform:
    return Platform()


@pytest.fixture
async def tokens(platform: Platform) -> AsyncIterator[Tokens]:
    made = Tokens(platform.fetch, platform)
    yield made
    await made.close()


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not true():  # noqa: ASYNC110
            await asyncio.sleep(0)


async def test_one_request_however_many_wait(tokens: Tokens, platform: Platform) -> None:
    assert tokens.current("a") == ""
    assert await asyncio.gather(*(tokens.get("a") for _ in range(100))) == ["t1"] * 100
    assert tokens.current("a") == "t1"
    assert platform.asked == ["a"]


async def test_accounts_are_apart(tokens: Tokens) -> None:
    assert [*await asyncio.gather(tokens.get("a"), tokens.get("b"))] == ["t1", "t2"]


async def test_a_cancelled_waiter_leaves_the_others_their_token(tokens: Tokens, platform: Platform) -> None:
    platform.gate.clear()
    first, second = asyncio.create_task(tokens.get("a")), asyncio.create_task(tokens.get("a"))
    await until(lambda: bool(platform.asked))
    first.cancel()
    await asyncio.wait([first])
    platform.gate.set()
    assert await second == "t1"
    assert platform.asked == ["a"]


@pytest.mark.parametrize(("life_s", "renewed_s"), [(7200.0, 6900.0), (60.0, 54.0), (1.0, 0.9), (3000.0, 2700.0)])
async def test_renewed_before_its_end_while_the_old_one_serves(
    tokens: Tokens, platform: Platform, life_s: float, renewed_s: float
) -> None:
    platform.life_s = life_s
    await tokens.get("a")
    platform.later(renewed_s - 0.001)
    assert tokens.current("a") == "t1"
    await asyncio.sleep(0)
    assert len(platform.asked) == 1
    platform.gate.clear()
    platform.later(0.001)
    assert {tokens.current("a") for _ in range(3)} == {"t1"}
    assert await tokens.get("a") == "t1"
    await until(lambda: len(platform.asked) == 2)
    platform.gate.set()
    await until(lambda: tokens.current("a") == "t2")
    assert len(platform.asked) == 2


async def test_its_life_begins_when_it_was_asked_for(tokens: Tokens, platform: Platform) -> None:
    platform.gate.clear()
    waiting = asyncio.create_task(tokens.get("a"))
    await until(lambda: bool(platform.asked))
    platform.later(100)
    platform.gate.set()
    assert await waiting == "t1"
    platform.later(7100)
    assert tokens.current("a") == ""


async def test_never_used_after_its_end(tokens: Tokens, platform: Platform) -> None:
    await tokens.get("a")
    platform.later(7200)
    assert tokens.current("a") == ""
    assert await tokens.get("a") == "t2"


async def test_invalidated_by_value(tokens: Tokens, platform: Platform) -> None:
    await tokens.get("a")
    tokens.invalidate("a", "t1")
    tokens.invalidate("nobody", "t1")
    assert await tokens.get("a") == "t2"
    tokens.invalidate("a", "t1")  # a slow call that was refused with the old one
    assert await tokens.get("a") == "t2"
    assert len(platform.asked) == 2


@pytest.mark.parametrize(
    ("error", "hold_ns"),
    [(PlatformUnavailable("down"), UNAVAILABLE_NS), (PlatformRefused("40013"), REFUSED_NS)],
)
async def test_a_failure_is_not_asked_for_again_at_once(
    tokens: Tokens, platform: Platform, error: EngineError, hold_ns: int
) -> None:
    platform.error = error
    failed = await asyncio.gather(*(tokens.get("a") for _ in range(3)), return_exceptions=True)
    platform.now += hold_ns - 1
    failed += await asyncio.gather(*(tokens.get("a") for _ in range(3)), return_exceptions=True)
    assert [type(e) for e in failed] == [type(error)] * 6
    assert [str(e) for e in failed] == [str(error)] * 6
    assert len(platform.asked) == 1
    platform.error = None
    platform.now += 1
    assert await tokens.get("a") == "t2"


async def test_a_renewal_that_fails_leaves_the_old_one(tokens: Tokens, platform: Platform) -> None:
    await tokens.get("a")
    platform.error = PlatformUnavailable("down")
    platform.later(7000)
    assert tokens.current("a") == "t1"
    await until(lambda: len(platform.asked) == 2)
    assert [await tokens.get("a") for _ in range(5)] == ["t1"] * 5
    assert len(platform.asked) == 2
    platform.error = None
    platform.later(1)
    await until(lambda: tokens.current("a") == "t3")


async def test_a_defect_reaches_who_asked(tokens: Tokens, platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(account: str) -> Token:
        raise ZeroDivisionError

    monkeypatch.setattr(tokens, "_fetch", broken)
    with pytest.raises(ZeroDivisionError):
        await tokens.get("a")
    monkeypatch.undo()
    assert await tokens.get("a") == "t1"


async def test_closing_stops_what_is_under_way(platform: Platform) -> None:
    tokens = Tokens(platform.fetch, platform)
    platform.gate.clear()
    waiting = asyncio.create_task(tokens.get("a"))
    await until(lambda: bool(platform.asked))
    await tokens.close()
    await asyncio.wait([waiting])
    assert waiting.cancelled()
