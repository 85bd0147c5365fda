"""The page of ``smooth``: one file, no scripts, nothing from the network. Two plots a case: the whole day, and the
minutes around its peak second by second, where `asap` runs out of the picture; R* is a line in both."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

WIDTH, HEIGHT, LEFT, BOTTOM = 880, 220, 52, 22
COLUMNS = WIDTH - LEFT
BEFORE_S, AFTER_S = 60, 780  # of the peak, the second plot shows
COLORS = {"asap": "#c9a227", "even": "#8e7cc3", "oa": "#3aa17e", "paced": "#2458c6"}  # drawn in this order
CAPTIONS = {"paced": "paced (the engine)", "oa": "plain OA", "even": "even", "asap": "as soon as possible"}
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 900px; margin: 2rem auto; padding: 0 1rem; color: #222 }
h2 { margin: 2.2rem 0 .3rem } table { border-collapse: collapse; margin: .5rem 0 }
td, th { padding: .15rem .9rem .15rem 0; text-align: right; font-variant-numeric: tabular-nums }
td:first-child, th:first-child { text-align: left } th { font-weight: 600; border-bottom: 1px solid #bbb }
svg { display: block; margin: .6rem 0; width: 100%; height: auto } text { font: 11px system-ui, sans-serif; fill: #555 }
i { display: inline-block; width: .8em; height: .8em; margin-right: .4em; border-radius: 2px } .note { color: #555 }
"""


def page(result: dict[str, Any], bins: dict[str, dict[str, list[int]]]) -> str:
    """HTML. ``bins``: by case and mode, calls by second."""
    cases = result["cases"] | ({"real": result["real"]} if result.get("real") else {})
    body = "".join(_section(name, case, bins.get(name, {})) for name, case in cases.items())
    intro = (
        f"Calls a second under a ceiling of {result['ceiling_over_rstar']} R*, due {result['due_s']} s after arrival; "
        f"tau {result['tau_s']} s. R* is the least peak any schedule can have that is never late, known from hindsight."
    )
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>surgetank: smooth</title>'
        f"<style>{STYLE}</style><h1>How smoothly it sends</h1><p>{escape(intro)}</p>"
        f'<p class="note">{escape(result["machine"])}</p>{body}</html>\n'
    )


def _section(name: str, case: dict[str, Any], bins: dict[str, list[int]]) -> str:
    modes = {"paced": case, **case["modes"]}
    rows = "".join(_row(mode, of) for mode, of in modes.items())
    head = "".join(f"<th>{title}</th>" for title in ("", "peak / R*", "p95", "F %", "PAR", "CV", "late"))
    plots = _plots(bins, case["rstar_per_s"]) if bins else ""
    seeds = f"{case['seeds']} seed{'s' if case['seeds'] > 1 else ''}, R* {case['rstar_per_s']:.4g} calls/s"
    title = f'<h2>{escape(name)}</h2><div class="note">{seeds}; the plots show the first</div>'
    return f"{title}<table><tr>{head}</tr>{rows}</table>{plots}"


def _row(mode: str, of: dict[str, Any]) -> str:
    share = of["fluctuation_pct"]
    cells = (
        f"{of['peak_over_rstar']:.3f}", f"{of['peak_over_rstar_p95']:.3f}", "–" if share is None else f"{share:.1f}",
        f"{of['par']:.2f}", f"{of['cv']:.2f}", str(of["late_avoidable"]),
    )  # fmt: skip
    name = f'<i style="background:{COLORS[mode]}"></i>{CAPTIONS[mode]}'
    return f"<tr><td>{name}</td>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _plots(bins: dict[str, list[int]], rstar: float) -> str:
    reference = bins["paced"]
    peak = max(range(len(reference)), key=reference.__getitem__)
    zoom = (max(0, peak - BEFORE_S - AFTER_S // 2), min(len(reference), peak + AFTER_S // 2 + BEFORE_S))
    top = max(max(series) for series in bins.values())
    smooth = max(max(series) for mode, series in bins.items() if mode != "asap")
    whole = plot(bins, 0, max(map(len, bins.values())), rstar, top)
    return whole + plot(bins, *zoom, rstar, max(smooth, int(rstar)) * 5 // 4 + 1)


def plot(bins: dict[str, list[int]], first: int, end: int, rstar: float, top: int) -> str:
    """Seconds first..end (not included) as SVG, the most of each column's seconds; more than ``top`` is cut off."""
    lines = "".join(
        _line(_columns(bins[mode][first:end]), min(end, len(bins[mode])) - first, end - first, top, color)
        for mode, color in COLORS.items()
        if mode in bins
    )
    y = _y(rstar, top)
    mark = f'<path d="M{LEFT} {y:.1f}H{WIDTH}" stroke="#b00" stroke-dasharray="4 3" fill="none"/>'
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{_axes(first, end, top)}{lines}{mark}'
        f'<text x="{WIDTH}" y="{y - 4:.1f}" text-anchor="end">R*</text></svg>'
    )


def _columns(seconds: Sequence[int]) -> list[int]:
    """At most one value a pixel."""
    n = len(seconds)
    if n <= COLUMNS:
        return list(seconds)
    return [max(seconds[i * n // COLUMNS : (i + 1) * n // COLUMNS]) for i in range(COLUMNS)]


def _y(value: float, top: float) -> float:
    return HEIGHT - BOTTOM - value / top * (HEIGHT - BOTTOM - 14)


def _line(values: list[int], seconds: int, span: int, top: int, color: str) -> str:
    width = COLUMNS * seconds / span / max(1, len(values))
    values = [min(value, top) for value in values]
    points = "".join(
        f"L{LEFT + i * width:.1f} {_y(v, top):.1f}H{LEFT + (i + 1) * width:.1f}" for i, v in enumerate(values)
    )
    return f'<path d="M{points[1:]}" stroke="{color}" stroke-width="1.2" fill="none"/>'


def _axes(first: int, end: int, top: int) -> str:
    lines = f'<path d="M{LEFT} 14V{HEIGHT - BOTTOM}H{WIDTH}" stroke="#999" fill="none"/>'
    labels = f'<text x="{LEFT - 6}" y="20" text-anchor="end">{top}/s</text>'
    for part in range(7):
        second = first + (end - first) * part // 6
        hours, minutes, seconds = second // 3600, second // 60 % 60, second % 60
        clock = f"{hours}:{minutes:02d}" + ("" if end - first > 7200 else f":{seconds:02d}")
        anchor = "end" if part == 6 else "middle"
        labels += f'<text x="{LEFT + COLUMNS * part / 6:.0f}" y="{HEIGHT - 6}" text-anchor="{anchor}">{clock}</text>'
    return lines + labels
