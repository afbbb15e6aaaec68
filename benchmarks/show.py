"""A run's figures as a Markdown table and as a picture (SVG, written by hand: three bar charts need no library)."""

import statistics
from xml.sax.saxutils import escape

from targets import derive, kept

BAR, GAP, LEFT, WIDTH, FONT = 18, 8, 250, 760, 12
COLOURS = {"ours": "#2f6f9f", "beside": "#b9b9b9"}


def table(report):
    """Return the ratios, and what they are made of, as Markdown."""
    lines = ["| ratio | measured | bound |", "|---|--:|--:|"]
    for name, value, bound, sense in derive(report):
        limit = "" if bound is None else f"{'≤' if sense == 'at most' else '≥'} {bound:g}"
        lines.append(f"| {name} | {value:.3g}{'' if kept(value, bound, sense) else ' (missed)'} | {limit} |")
    lines += ["", "| figure | median | unit |", "|---|--:|---|"]
    lines += [f"| {name} | {value:g} | {unit} |" for name, value, unit in figures(report)]
    return "\n".join(lines)


def figures(report):
    steps = report.get("steps", {})
    for name in ("docker run", "docker run, hardened", "python3 -c pass", "without daemon"):
        if name in steps:
            yield name.replace("without daemon", "first start, with the daemon's"), steps[name]["median"], "ms"
    for size, row in steps.get("by size", {}).items():
        yield f"start, {size}", row["start"]["median"], "ms"
        yield f"a cell as a command, {size}", row["exec"]["median"], "ms"
        yield f"a cell by the Python API, {size}", row["exec in process"]["median"], "ms"
        yield f"container's memory, {size}", row["container_mib"], "MiB"
    for name, row in rates(report):
        yield name, row["mb_per_s"], "MB/s"
        yield f"  beside it: {row['beside']}", row["beside_mb_per_s"], "MB/s"
    for name, row in report.get("far", {}).items():
        yield f"10 GiB in 512 MiB: {name}", row["seconds"], "s"
    if calls := report.get("calls"):
        yield from of_calls(calls)
    for count, row in report.get("sessions", {}).items():
        yield f"{count} sessions at once: all started", row["seconds"], "s"
        yield f"{count} sessions: a container", row["container_mib"], "MiB"
        yield f"{count} sessions: the daemon", row["daemon_mib"], "MiB"
    for peer, by_size in report.get("peers", {}).items():
        for size, row in by_size.items():
            yield f"{peer}: start, {size}", row["start_ms"], "ms"
            yield f"{peer}: a cell, {size}", row["exec_ms"]["median"], "ms"


def rates(report):
    return [(f"{kind}: {name}", row) for kind, rows in report.get("reading", {}).items() for name, row in rows.items()]


def of_calls(calls):
    plain, ours = (statistics.median(side) for side in zip(*calls["pairs"], strict=True))
    yield f"{calls['calls']} calls of {calls['delay_ms']} ms, {calls['at_once']} at once: the SDK", round(plain, 2), "s"
    yield "  the same through the broker", round(ours, 2), "s"
    yield "ledger, 64 at once", round(calls["commits"][0]), "changes/s"
    yield "ledger, one after another", round(calls["commits"][1]), "changes/s"


def charts(report):
    """Yield ``(title, unit, [(label, value, "ours" | "beside")])``."""
    steps = report.get("steps", {})
    sizes = steps.get("by size", {})
    if sizes:
        bars = [(f"start, {size}", row["start"]["median"], "ours") for size, row in sizes.items()]
        yield (
            "From the command to a session",
            "ms",
            [*bars, ("docker run, hardened", steps["docker run, hardened"]["median"], "beside")],
        )
        bars = [(f"a cell as a command, {size}", row["exec"]["median"], "ours") for size, row in sizes.items()]
        yield (
            "A cell that does nothing",
            "ms",
            [*bars, ("python3 -c pass", steps["python3 -c pass"]["median"], "beside")],
        )
    bars = []
    for name, row in rates(report):
        bars += [(name, row["mb_per_s"], "ours"), (row["beside"], row["beside_mb_per_s"], "beside")]
    if bars:
        yield "Reading 1 GiB", "MB/s", bars


def picture(report):
    """Return the charts as one SVG document."""
    parts, y = [], 24
    for title, unit, bars in charts(report):
        most = max(value for _, value, _ in bars) or 1
        parts.append(f'<text x="8" y="{y}" font-weight="bold">{escape(title)} ({unit})</text>')
        y += 12
        for label, value, kind in bars:
            length = (WIDTH - LEFT - 90) * value / most
            parts.append(f'<text x="{LEFT - 8}" y="{y + BAR - 5}" text-anchor="end">{escape(label)}</text>')
            parts.append(f'<rect x="{LEFT}" y="{y}" width="{length:.1f}" height="{BAR}" fill="{COLOURS[kind]}"/>')
            parts.append(f'<text x="{LEFT + length + 6:.1f}" y="{y + BAR - 5}">{value:,.0f}</text>')
            y += BAR + GAP
        y += 26
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{y}" font-family="sans-serif" font-size="{FONT}">'
    return "\n".join([head, f'<rect width="{WIDTH}" height="{y}" fill="white"/>', *parts, "</svg>", ""])
