"""Which names of models may stand where texts may not: those that somebody outside chose. Others are a cell's words, or a provider's."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

GONE = "(redacted)"

_IDENTIFIER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/+-]{0,127}")


def word(text: str | None) -> str | None:
    """Return what is an identifier of a provider's, and no text that came with it."""
    return text if text is None or _IDENTIFIER.fullmatch(text) else GONE


class ModelNames:
    """Learns from each start of a session."""

    def __init__(self) -> None:
        self._chosen: set[str] = set()

    def learn(self, model: str, allowed: object) -> None:
        """Take what a start chose: its model, and the list that it allowed besides."""
        besides: Iterable[object] = allowed if isinstance(allowed, list) else ()
        self._chosen |= {name for name in (model, *besides) if isinstance(name, str) and name}

    def asked(self, name: str | None) -> str | None:
        """Return the model that a cell asked for, if it may be shown."""
        return name if name is None or name in self._chosen else GONE

    def used(self, name: str, outcome: str) -> str:
        """Return the model of a call, which providers give under a longer name than was asked for: ``gpt-4o-2024-08-06``."""
        if name in self._chosen:
            return name
        dated = outcome != "failed" and any(name.startswith(chosen) for chosen in self._chosen)
        return name if dated and _IDENTIFIER.fullmatch(name) else GONE
