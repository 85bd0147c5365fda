"""What a scrape answers, and that it holds nobody up."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from prometheus_client import CollectorRegistry, Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import choose_encoder

from engine.probes import PART, exposed, listen

OPENMETRICS = "application/openmetrics-text; version=1.0.0"
AWKWARD = "# a label's value\n# of two lines, # EOF\n"


class Families:
    """A large one, one with nothing in it, a small one. A prometheus_client collector."""

    def collect(self) -> Iterator[Metric]:
        large = CounterMetricFamily("large", "Of # several parts", labels=["place"])
        for place in range(2 * PART + 1):
            large.add_metric([f"{AWKWARD}{place}"], place)
        yield large
        yield GaugeMetricFamily("empty", "Without a sample", labels=["place"])
        yield GaugeMetricFamily("small", "One sample", value=7)


@pytest.fixture
def registry() -> CollectorRegistry:
    found = CollectorRegistry()
    found.register(Families())
    return found


@pytest.fixture
async def url(registry: CollectorRegistry) -> AsyncIterator[str]:
    async def metrics(request: web.Request) -> web.Response:
        return await exposed(registry, request)

    runner = await listen("127.0.0.1:0", {"/metrics": metrics})
    host, port = runner.addresses[0]
    yield f"http://{host}:{port}/metrics"
    await runner.cleanup()


async def scrape(url: str, accept: str = "", *names: str) -> str:
    params = [("name[]", name) for name in names]
    async with aiohttp.ClientSession() as session, session.get(url, headers={"Accept": accept}, params=params) as said:
        assert said.status == 200
        return await said.text()


@pytest.mark.parametrize("accept", ["", "text/plain", OPENMETRICS])
async def test_a_scrape_in_parts_says_what_one_in_one_go_says(
    accept: str, url: str, registry: CollectorRegistry
) -> None:
    assert await scrape(url, accept) == choose_encoder(accept)[0](registry).decode()


async def test_the_loop_does_other_things_between_the_parts(registry: CollectorRegistry) -> None:
    writing = asyncio.create_task(exposed(registry, make_mocked_request("GET", "/metrics")))
    turns = 0
    while not writing.done():
        turns += 1
        await asyncio.sleep(0)
    assert turns >= 5  # three parts, and two more families


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["small"], {"small"}),
        (["large_total"], {"large"}),  # as a series is named
        (["large", "small"], {"large", "small"}),  # as its family is
        (["nobody"], set()),
    ],
)
async def test_series_may_be_asked_for_by_name(names: list[str], told: set[str], url: str) -> None:
    text = await scrape(url, OPENMETRICS, *names)
    assert {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")} == told
    assert text.endswith("# EOF\n")
