r"""Make text from a guest, an input or a model harmless for where it goes.

Terminals obey escape sequences, and a model reads what a terminal would hide; so control characters, C1 codes, bidi overrides, carriage
returns and other invisible steering are shown as visible ``\xNN`` or ``\uNNNN``. Tab and newline stay. Nothing is dropped: the reader sees
that something was there.
"""

from __future__ import annotations

import re

# C0 but tab and newline; DEL and C1; soft hyphen; Arabic letter mark; zero-width and bidi marks; line and paragraph separators, bidi embeddings
# and overrides; invisible operators and bidi isolates; BOM; interlinear annotation; variation selectors stay (emoji need them); tags; surrogates.
_HOSTILE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)


def visible(text: str) -> str:
    """Return ``text`` with every steering character as a visible escape; newlines and tabs are kept, CRLF becomes a newline."""
    return _HOSTILE.sub(_escape, text.replace("\r\n", "\n"))


def one_line(text: str, limit: int = 500) -> str:
    """Return ``text`` for a message: visible, on one line, at most ``limit`` characters."""
    flat = visible(text).replace("\n", "\\n").replace("\t", " ")
    return flat if len(flat) <= limit else flat[: limit - 1] + "\u2026"


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code <= 0xFF:  # noqa: PLR2004 - the range that \x can show
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"  # noqa: PLR2004 - the range that \u can show
