"""The ``/sim`` side of the simulator: look at the ledger, change the options, make trouble."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
from aiohttp import web

from bench.simulator_options import ENDPOINTS, Outage
from bench.simulator_platforms import query_of

if TYPE_CHECKING:
    from bench.simulator import Simulator

Query = Mapping[str, str]

STEP = 2000  # lines made at once: a few milliseconds of the loop that also serves the platforms
HELP = b"""\
GET  /sim/options            POST /sim/options  a JSON merge patch
GET  /sim/ledger?recipient=ID
GET  /sim/ledger/counts
GET  /sim/ledger/export      NDJSON, one line a recipient of a call; ?endpoint=
GET  /sim/calls              NDJSON, one line a call; ?endpoint= ?account= ?api=
POST /sim/outage             an outage or a list of them, from now; DELETE: end all
POST /sim/expire             every token of ?endpoint= ends now
POST /sim/reset              ledger, windows and outages as new; options and tokens stay
"""


async def serve(sim: Simulator, request: web.BaseRequest, path: str, query: str, body: bytes) -> web.StreamResponse:
    """One request to ``path``, below /sim."""
    handler = HANDLERS.get((request.method, path))
    if handler is None:
        return web.Response(status=404, body=HELP)
    asked = query_of(query)
    if isinstance(handler, Lines):
        return await _stream(request, handler.of(sim), {key: asked[key] for key in handler.filters if key in asked})
    try:
        reply = handler(sim, asked, body)
    except (msgspec.DecodeError, ValueError) as error:
        return _json({"error": str(error)}, 400)
    return _json(reply)


def _json(value: Any, status: int = 200) -> web.Response:
    return web.Response(status=status, body=msgspec.json.encode(value), content_type="application/json")


def _get_options(sim: Simulator, query: Query, body: bytes) -> Any:
    return sim.options


def _set_options(sim: Simulator, query: Query, body: bytes) -> Any:
    sim.change(msgspec.json.decode(body))
    return sim.options


def _recipient(sim: Simulator, query: Query, body: bytes) -> Any:
    if "recipient" not in query:
        raise ValueError("which recipient? GET /sim/ledger?recipient=ID")
    return [entry._asdict() for entry in sim.ledger.of(query["recipient"])]


def _counts(sim: Simulator, query: Query, body: bytes) -> Any:
    return sim.ledger.counts()


def _outage(sim: Simulator, query: Query, body: bytes) -> Any:
    outages = msgspec.json.decode(body, type=Outage | list[Outage])
    sim.disturb([outages] if isinstance(outages, Outage) else outages)
    return {"ok": True}


def _end_outages(sim: Simulator, query: Query, body: bytes) -> Any:
    sim.outages.clear()
    return {"ok": True}


def _expire(sim: Simulator, query: Query, body: bytes) -> Any:
    endpoint = query.get("endpoint", "")
    if endpoint not in ENDPOINTS:
        raise ValueError(f"which endpoint? one of {', '.join(ENDPOINTS)}")
    sim.platforms[endpoint].tokens.expire()
    return {"ok": True}


def _reset(sim: Simulator, query: Query, body: bytes) -> Any:
    sim.reset()
    return {"ok": True}


class Lines(NamedTuple):
    """An answer of any length: entries by position, all there were at the start."""

    of: Callable[[Simulator], Iterator[Iterable[Any]]]
    filters: tuple[str, ...]


def _rows(sim: Simulator) -> Iterator[Iterable[Any]]:
    ledger, count = sim.ledger, sim.ledger.rows
    return (ledger.entries(start, min(start + STEP, count)) for start in range(0, count, STEP))


def _calls(sim: Simulator) -> Iterator[Iterable[Any]]:
    ledger, count = sim.ledger, sim.ledger.calls
    return (ledger.call_entries(start, min(start + STEP, count)) for start in range(0, count, STEP))


async def _stream(request: web.BaseRequest, steps: Iterator[Iterable[Any]], only: Query) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
    await response.prepare(request)
    encoder = msgspec.json.Encoder()
    for entries in steps:
        wanted = (e for e in entries if all(getattr(e, key) == value for key, value in only.items()))
        lines = encoder.encode_lines([entry._asdict() for entry in wanted])
        if lines:
            await response.write(lines)
        await asyncio.sleep(0)
    await response.write_eof()
    return response


Handler = Callable[["Simulator", Query, bytes], Any]

HANDLERS: dict[tuple[str, str], Handler | Lines] = {
    ("GET", "/options"): _get_options,
    ("POST", "/options"): _set_options,
    ("GET", "/ledger"): _recipient,
    ("GET", "/ledger/counts"): _counts,
    ("GET", "/ledger/export"): Lines(_rows, ("endpoint",)),
    ("GET", "/calls"): Lines(_calls, ("endpoint", "account", "api")),
    ("POST", "/outage"): _outage,
    ("DELETE", "/outage"): _end_outages,
    ("POST", "/expire"): _expire,
    ("POST", "/reset"): _reset,
}
