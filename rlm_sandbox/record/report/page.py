"""The page from top to bottom: question and answer, numbers, timeline, cells with their calls, and what the run was made of."""

from __future__ import annotations

import base64
import hashlib
import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

from rlm_sandbox.record.report.markup import Markup, block, element, facts, line, table, text
from rlm_sandbox.record.report.timeline import svg
from rlm_sandbox.session import records as r
from rlm_sandbox.session.convert import usd

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rlm_sandbox.record.recording import Recording
    from rlm_sandbox.session.past import Past, PastCell

TEXT_MAX = 20_000
"""Characters of one text on the page; the whole is in the record."""

CALLS_TEXT_MAX = 24_000_000
"""Characters that all calls together may put on the page: what a browser on a phone still opens. It is shared out among them."""

CHUNK = 50
"""Calls that a browser lays out together, when they come into view."""

_STYLE = (Path(__file__).parent / "style.css").read_text(encoding="utf-8")


def page(run: Recording) -> str:
    """Return the whole page."""
    past = run.past
    body = "".join(
        (
            _head(run),
            _numbers(past),
            element("section", element("h2", "Timeline") + svg(past.cells.values()) + _LEGEND, "panel"),
            _models(past),
            _denied(past),
            element("h2", "Cells"),
            "".join(_cells(run)),
            _made_of(run),
        )
    )
    policy = f"default-src 'none'; style-src '{_hash(_STYLE)}'; base-uri 'none'; form-action 'none'"
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="referrer" content="no-referrer">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>rlm-sandbox run</title><style>{_STYLE}</style></head><body><main>{body}</main></body></html>\n"
    )


_LEGEND = (
    '<p class="legend"><span class="key cell good"></span>cell <span class="key answered"></span>answered '
    '<span class="key cached"></span>from the cache <span class="key failed"></span>failed</p>'
)


def _hash(style: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()


def _head(run: Recording) -> Markup:
    past, start = run.past, run.past.latest
    title = start.question if start is not None and start.question else None
    heading = element("h1", text(title, 2000) if title else "A run over " + line(start.input.display if start else "?"))
    when = f"{past.start.at[:19].replace('T', ' ')} UTC" if past.start else ""
    about = element("p", f"{line(start.provider)} {line(start.model)} &middot; {line(when)}" if start else "", "about")
    if past.final is None:
        answer = element("p", "This run gave no final answer.", "missing")
    else:
        found = run.text(past.final.text)
        small = element("p", f"{past.final.bytes:,} bytes, sha256 {past.final.digest}", "small")
        answer = block("Answer", found, TEXT_MAX, "its text is not in this record") + small
    warning = (
        element("p", "This record is redacted: texts are there by their digests only.", "notice")
        if run.redacted
        else ""
    )
    return element("header", heading + about + warning + answer, "panel answer")


def _numbers(past: Past) -> Markup:
    calls = past.calls
    kinds = Counter(call.outcome for call in calls)
    usage = [call.usage for call in calls if call.usage and call.outcome == "answered"]
    tokens_in, tokens_out = sum(each[0] + each[2] + each[3] for each in usage), sum(each[1] for each in usage)
    retried = sum(max(0, len(call.attempts) - 1) for call in calls)
    elapsed = sum(cell.result.elapsed_ms for cell in past.cells.values() if cell.result)
    tiles = [
        ("cells", f"{len(past.cells):,}"),
        ("sub-calls", f"{len(calls):,}"),
        ("tokens in / out", f"{tokens_in:,} / {tokens_out:,}"),
        ("cost", f"${usd(sum(call.cost_micro for call in calls)):.4f}"),
        ("for free, from the cache", f"{kinds['cached']:,}"),
        ("read from the prompt cache", f"{sum(each[2] for each in usage):,}"),
        ("retries", f"{retried:,}"),
        ("failed", f"{kinds['failed']:,}"),
        ("time in cells", f"{elapsed / 1000:,.1f} s"),
    ]
    return element(
        "section", "".join(element("div", element("b", value) + name, "tile") for name, value in tiles), "tiles"
    )


def _models(past: Past) -> Markup:
    groups: dict[str, list[r.Call]] = defaultdict(list)
    for call in past.calls:
        groups[call.model].append(call)
    rows = []
    for model, calls in sorted(groups.items()):
        usage = [call.usage for call in calls if call.usage and call.outcome == "answered"]
        sums = [sum(each[index] for each in usage) for index in range(4)]
        saved = sum(call.outcome == "cached" for call in calls)
        rows.append((model, len(calls), saved, *sums, usd(sum(call.cost_micro for call in calls))))
    if not rows:
        return ""
    heads = ("model", "calls", "cached", "tokens in", "tokens out", "cache reads", "cache writes", "USD")
    return element("section", element("h2", "Models") + table(heads, rows), "panel")


def _denied(past: Past) -> Markup:
    """List what was refused or failed, by its reason."""
    groups: dict[tuple[str, str, str], int] = Counter()
    for call in past.calls:
        if call.error is not None:
            groups[call.error.kind, call.error.code, call.error.message] += 1
    if not groups:
        return ""
    rows = [(kind, code, count, message) for (kind, code, message), count in sorted(groups.items())[:200]]
    heads = ("kind", "code", "times", "what was said")
    return element("section", element("h2", "Denied and failed") + table(heads, rows), "panel")


def _cells(run: Recording) -> Iterator[Markup]:
    calls = len(run.past.calls) or 1
    limit = min(TEXT_MAX, max(200, CALLS_TEXT_MAX // (2 * calls)))
    notes: dict[int, list[str]] = defaultdict(list)
    for record in run.past.others:
        if isinstance(record, r.Interrupt):
            notes[record.cell].append("interrupted from outside")
        elif isinstance(record, r.Kernel) and record.cell:
            notes[record.cell].append(f"its interpreter ended: {record.cause}")
    for cell in run.past.cells.values():
        yield _cell(run, cell, limit, notes[cell.number])


def _cell(run: Recording, cell: PastCell, limit: int, notes: list[str]) -> Markup:
    result = cell.result
    took = f"{result.elapsed_ms / 1000:.2f} s" if result else "cut off"
    state = "good" if cell.status == "ok" else "bad"
    head = f"Cell {cell.number} {element('span', line(cell.status), f'badge {state}')} {element('span', f'{took}, {len(cell.calls):,} calls', 'small')}"
    parts = [element("h3", head)]
    parts += [element("p", line(note), "small") for note in notes]
    parts.append(block("Code", run.text(cell.code), TEXT_MAX))
    if result is not None:
        if result.stdout.chars:
            parts.append(block("Output", run.text(result.stdout.text), TEXT_MAX))
        if result.error is not None:
            parts.append(block("Error", run.text(result.error), TEXT_MAX))
        if result.final is not None:
            parts.append(block("Final answer", run.text(result.final.text), TEXT_MAX))
        parts.append(_variables(run, result.variables))
    if cell.calls:
        parts.append(_calls(run, cell, limit))
    return element("article", "".join(parts), "panel cell-panel")


def _variables(run: Recording, digest: str) -> Markup:
    rows = [(each.get("name"), each.get("type"), each.get("len")) for each in run.variables(digest)]
    if not rows:
        return ""
    return f"<details><summary>{len(rows)} variables</summary>{table(('name', 'type', 'length'), rows)}</details>"


def _calls(run: Recording, cell: PastCell, limit: int) -> Markup:
    shown = sorted(cell.calls, key=lambda call: call.ordinal)
    chunks = [
        element("div", "".join(_call(run, call, limit) for call in shown[at : at + CHUNK]), "chunk")
        for at in range(0, len(shown), CHUNK)
    ]
    return f'<details class="calls"><summary>{len(shown):,} sub-calls</summary>{"".join(chunks)}</details>'


def _call(run: Recording, call: r.Call, limit: int) -> Markup:
    usage = call.usage or [0, 0, 0, 0]
    summary = (
        f'<span class="badge {call.outcome}">{call.outcome}</span> #{call.ordinal} '
        f'<span class="small">{line(call.model, 60)} &middot; {usage[0] + usage[2] + usage[3]:,}+{usage[1]:,} tokens'
        f" &middot; ${usd(call.cost_micro):.4f} &middot; {call.elapsed_ms:,} ms"
        f"{f' &middot; {len(call.attempts)} attempts' if len(call.attempts) > 1 else ''}"
        f"{' &middot; nobody waited any more' if call.late else ''}</span>"
    )
    asked = call.request
    body = [
        block("System", run.text(asked.system), limit) if asked.system else "",
        block("Prefix", run.text(asked.prefix), limit) if asked.prefix else "",
        block("Prompt", run.text(asked.prompt), limit),
        block("Schema", run.text(asked.schema_), limit) if asked.schema_ else "",
        block("Answer", run.text(call.answer), limit) if call.answer else "",
    ]
    if call.error is not None:
        body.append(
            block("Error", f"{call.error.kind} ({call.error.code}): {call.error.message} {call.error.hint}", limit)
        )
    if len(call.attempts) > 1:
        body.append(
            table(
                ("attempt", "sent after ms", "outcome"),
                [(each.number, each.sent_ms, each.outcome) for each in call.attempts],
            )
        )
    body.append(element("p", f"request {call.digest}", "small"))
    return f"<details><summary>{summary}</summary>{''.join(body)}</details>"


def _made_of(run: Recording) -> Markup:
    past, start = run.past, run.past.latest
    if start is None:
        return ""
    known = past.input
    pairs = [
        ("session", start.session),
        (
            "input",
            f"{start.input.display} ({start.input.kind}, {start.input.files} file(s), {start.input.bytes:,} bytes)",
        ),
        ("input sha256", known.digest if known else None),
        ("image", f"{start.image.name} {start.image.id}"),
        ("python", start.image.python),
        ("runtime", start.runtime),
        ("limits", json.dumps(start.profile)),
        ("settings", json.dumps(start.settings)),
        ("versions", json.dumps(start.versions)),
        ("journal", f"{past.records} records, head {past.head}"),
        ("bundle", run.verified.get("bundle_sha256")),
        ("signed by", run.verified.get("signed_by")),
        ("ended", f"{past.ended.reason}: {past.ended.message}" if past.ended else None),
    ]
    return element("section", element("h2", "What it was made of") + facts(pairs), "panel")
