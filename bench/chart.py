"""Draws the stored results as bars in an SVG, without any drawing library."""

from __future__ import annotations

from html import escape

from bench.figures import Result, duration, label, median
from bench.libraries import ALL_OURS, LIBRARIES

WIDTH, NAMES, VALUES = 760, 236, 80
BAR, STEP, HEADING, GAP = 16, 22, 26, 14
STYLE = """
text { font: 13px system-ui, sans-serif; fill: #24292f }
.heading { font-weight: 600 }
.ours { fill: #d9480f } .rival { fill: #8c959f } .bare { fill: #d0d7de }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .rival { fill: #6e7681 } .bare { fill: #444c56 }
}
"""


def draw(results: list[Result]) -> str:
    """One group of bars for each case; each group has its own scale, its slowest being full."""
    shapes: list[str] = []
    top = GAP
    for result in results:
        found = {library: median(result, library) for library in result["runs"]}
        medians = {library: seconds for library, seconds in found.items() if seconds is not None}
        if not medians:
            continue
        shapes.append(_text(0, top + 13, result["title"], "heading"))
        top += HEADING
        for library, seconds in medians.items():
            share = seconds / max(medians.values())
            shapes += _bar(top, label(result, library), share, seconds, _kind(library))
            top += STEP
        top += GAP
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{top}" '
        f'viewBox="0 0 {WIDTH} {top}" role="img">\n'
        "<title>Median time of each library, shorter is better</title>\n"
        f"<style>{STYLE}</style>\n" + "\n".join(shapes) + "\n</svg>\n"
    )


def _kind(library: str) -> str:
    """The class of a bar: ours, another library, or bare system calls."""
    if library in ALL_OURS:
        return "ours"
    row = LIBRARIES.get(library)
    return "bare" if row is not None and row.program is not None else "rival"


def _bar(top: int, name: str, share: float, seconds: float, kind: str) -> list[str]:
    length = max(1.0, share * (WIDTH - NAMES - VALUES))
    return [
        _text(NAMES - 8, top + 13, name, anchor="end"),
        f'<rect class="{kind}" x="{NAMES}" y="{top}" width="{length:.1f}" height="{BAR}" rx="2"/>',
        _text(NAMES + length + 6, top + 13, duration(seconds)),
    ]


def _text(x: float, y: float, content: str, kind: str = "", anchor: str = "start") -> str:
    name = f' class="{kind}"' if kind else ""
    return f'<text{name} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(content)}</text>'
