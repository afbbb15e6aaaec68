"""A run as one page for a browser: no script, no request, no style that comes from data.

Everything in a run is hostile text. It reaches the page through :func:`rlm_sandbox.record.report.markup.text` only, which makes steering
characters visible and escapes the rest, and always as the content of an element, never within a tag. A content-security policy in the page
forbids everything but the page's own style sheet, by its hash, so that a mistake here would still run nothing and load nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rlm_sandbox.record.report.page import page

if TYPE_CHECKING:
    from rlm_sandbox.record.recording import Recording


def build(recording: Recording) -> bytes:
    """Return the page."""
    return page(recording).encode("utf-8", "replace")
