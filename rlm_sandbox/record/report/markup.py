"""The only way from foreign text to markup, and the few shapes that the page is made of."""

from __future__ import annotations

import html
from itertools import zip_longest
from typing import TYPE_CHECKING

from rlm_sandbox.sanitize import one_line, visible

if TYPE_CHECKING:
    from collections.abc import Iterable

Markup = str
"""HTML that was made here."""


def text(value: object, limit: int | None = None) -> Markup:
    """Return foreign text as the content of an element: steering characters visible, markup escaped, at most ``limit`` characters."""
    raw = value if isinstance(value, str) else str(value)
    more = ""
    if limit is not None and len(raw) > limit:
        more = f"\n[... {len(raw) - limit} more characters are in the record ...]"
        raw = raw[:limit]
    return html.escape(visible(raw) + more, quote=True)


def line(value: object, limit: int = 200) -> Markup:
    """As :func:`text`, on one line."""
    return html.escape(one_line(value if isinstance(value, str) else str(value), limit), quote=True)


def element(tag: str, content: Markup, kind: str = "") -> Markup:
    """Return an element; tag and class are ours."""
    return f'<{tag} class="{kind}">{content}</{tag}>' if kind else f"<{tag}>{content}</{tag}>"


def block(label: str, value: str | None, limit: int, missing: str = "not in this record") -> Markup:
    """Return a labelled block of foreign text."""
    if value is None:
        return element("p", f"{label}: {missing}", "missing")
    if not value:
        return ""
    return element("h4", label) + element("pre", text(value, limit))


def facts(pairs: Iterable[tuple[str, object]]) -> Markup:
    """Return a list of named values; names are ours, values foreign. None is left out."""
    rows = (f"<dt>{name}</dt><dd>{line(value, 400)}</dd>" for name, value in pairs if value is not None)
    return element("dl", "".join(rows))


def table(heads: Iterable[str], rows: Iterable[Iterable[object]]) -> Markup:
    """Return a table that scrolls within itself; heads are ours, cells foreign. Numbers stand to the right."""
    listed = [tuple(row) for row in rows]
    first = listed[0] if listed else ()
    numeric = ["number" if isinstance(value, int | float) else "" for value in first]
    head = "".join(element("th", name, kind) for name, kind in zip_longest(heads, numeric, fillvalue=""))
    body = "".join(element("tr", "".join(_cell(value) for value in row)) for row in listed)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(value: object) -> Markup:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return element(
            "td", f"{value:,}" if isinstance(value, int) else f"{value:,.6f}".rstrip("0").rstrip("."), "number"
        )
    return element("td", line("" if value is None else value))
