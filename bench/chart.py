"""Draws the stored results as bars in an SVG, without any drawing library."""

from __future__ import annotations

from html import escape

from bench.libraries import OURS
from bench.report import Result, duration, label, median

WIDTH, NAMES, VALUES = 760, 190, 80
BAR, STEP, HEADING, GAP = 16, 22, 26, 14
STYLE = """
text { font: 13px system-ui, sans-serif; fill: #24292f }
.heading { font-weight: 600 }
.ours { fill: #d9480f } .rival { fill: #8c959f }
@media (prefers-color-scheme: dark) { text { fill: #e6edf3 } .rival { fill: #6e7681 } }
"""


def draw(results: list[Result]) -> str:
    """One group of bars for each case; each group has its own scale, its slowest being full."""
    shapes: list[str] = []
    top = GAP
    for result in results:
        medians = {library: median(result, library) for library in result["runs"]}
        if not medians:
            continue
        shapes.append(_text(0, top + 13, result["title"], "heading"))
        top += HEADING
        for library, seconds in medians.items():
            share = seconds / max(medians.values())
            shapes += _bar(top, label(result, library), share, seconds, library == OURS)
            top += STEP
        top += GAP
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{top}" '
        f'viewBox="0 0 {WIDTH} {top}" role="img">\n'
        "<title>Median time of each library, shorter is better</title>\n"
        f"<style>{STYLE}</style>\n" + "\n".join(shapes) + "\n</svg>\n"
    )


def _bar(top: int, name: str, share: float, seconds: float, ours: bool) -> list[str]:
    length = max(1.0, share * (WIDTH - NAMES - VALUES))
    kind = "ours" if ours else "rival"
    return [
        _text(NAMES - 8, top + 13, name, anchor="end"),
        f'<rect class="{kind}" x="{NAMES}" y="{top}" width="{length:.1f}" height="{BAR}" rx="2"/>',
        _text(NAMES + length + 6, top + 13, duration(seconds)),
    ]


def _text(x: float, y: float, content: str, kind: str = "", anchor: str = "start") -> str:
    name = f' class="{kind}"' if kind else ""
    return f'<text{name} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(content)}</text>'
