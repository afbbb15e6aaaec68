r"""Make text from a guest, an input or a model harmless for where it goes.

Terminals obey escape sequences, and a model reads what a terminal would hide; so control characters, C1 codes, bidi overrides, carriage
returns and other invisible steering are shown as visible ``\xNN`` or ``\uNNNN``. Tab and newline stay. Nothing is dropped: the reader sees
that something was there.
"""

from __future__ import annotations

import re

# C0 but tab and newline; DEL and C1; line and paragraph separators; surrogates; and all that Unicode lets a display ignore (bidi marks and
# overrides, zero-width and invisible operators, fillers, tags, and variation selectors but the two that tell emoji from text).
_HOSTILE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202e\u2060-\u206f"
    "\u3164\ufe00-\ufe0d\ufeff\uffa0\ufff0-\ufffb\ud800-\udfff\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
    "|(?<=[\ufe00-\ufe0f])[\ufe0e\ufe0f]"  # a row of them shows nothing and can carry any text
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
