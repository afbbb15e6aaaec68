"""When what ran, as a picture.

Each cell is a band, each sub-call a bar in the first free lane below it, so that parallel calls stand one above the other. Time in which
nothing ran is left out. Ten thousand bars are drawn as one path for each outcome, which a browser draws at once.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rlm_sandbox.session.past import PastCell

WIDTH = 1000
"""Units of the picture; it is scaled to the page."""

LANES_MAX = 40
"""Lanes drawn; wider batches share the last one."""

BAND, LANE, GAP = 16, 5, 1
CELL_MIN = 4
"""Units that a cell has at least, so that a short one can be seen."""


def svg(cells: Iterable[PastCell]) -> str:
    """Return the picture; only numbers and names of our own are in it."""
    shown = list(cells)
    spans = [max(1, _length_ms(cell)) for cell in shown]
    if not shown:
        return ""
    total = sum(spans)
    room = WIDTH - CELL_MIN * len(shown)
    scale = max(room, WIDTH // 2) / total
    paths: dict[str, list[str]] = defaultdict(list)
    bands, labels, at, deepest = [], [], 0.0, 0
    for cell, span in zip(shown, spans, strict=True):
        width = CELL_MIN + span * scale
        bands.append(
            f'<rect class="cell {_state(cell)}" x="{at:.1f}" y="0" width="{max(1.0, width - 1):.1f}" height="{BAND}"/>'
        )
        if width > 14:  # noqa: PLR2004 - a number fits
            labels.append(f'<text x="{at + 3:.1f}" y="{BAND - 4}">{cell.number}</text>')
        deepest = max(deepest, _calls(cell, at, scale, paths))
        at += width
    height = BAND + 4 + deepest * (LANE + GAP)
    bars = "".join(f'<path class="{kind}" d="{"".join(parts)}"/>' for kind, parts in sorted(paths.items()))
    return (
        f'<svg viewBox="0 0 {max(WIDTH, round(at))} {height}" role="img" preserveAspectRatio="none" class="timeline">'
        f"{''.join(bands)}{bars}{''.join(labels)}</svg>"
    )


def _calls(cell: PastCell, left: float, scale: float, paths: dict[str, list[str]]) -> int:
    """Add the bars of a cell's calls; return how many lanes they took."""
    free: list[float] = []
    for call in sorted(cell.calls, key=lambda each: each.asked_ms):
        begin = call.asked_ms + (call.attempts[0].sent_ms if call.attempts else 0)
        end = max(begin + 1, call.asked_ms + call.elapsed_ms)
        lane = next((index for index, until in enumerate(free) if until <= begin), len(free))
        if lane == len(free) and lane < LANES_MAX:
            free.append(0)
        lane = min(lane, LANES_MAX - 1)
        free[lane] = max(free[lane], end)
        x, width = left + begin * scale, max(0.8, (end - begin) * scale)
        y = BAND + 4 + lane * (LANE + GAP)
        paths[call.outcome].append(f"M{x:.1f} {y}h{width:.1f}v{LANE}h-{width:.1f}z")
    return len(free)


def _length_ms(cell: PastCell) -> int:
    calls = max((call.asked_ms + call.elapsed_ms for call in cell.calls), default=0)
    return max(calls, cell.result.elapsed_ms if cell.result else 0)


def _state(cell: PastCell) -> str:
    return "good" if cell.status == "ok" else "bad"
