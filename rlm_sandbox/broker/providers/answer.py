"""What every provider's answer has in common while it is put together: who sends it, and the faults that it can amount to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from rlm_sandbox.broker import conversation
from rlm_sandbox.broker.types import ProviderFault

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rlm_sandbox.broker.types import Usage

COUNT_MAX = 10**12
"""Tokens. Far above any bill, and times any price still within the ledger's 64-bit integers."""

REQUEST_ID_MAX = 128
"""Characters. The longest in use are UUIDs with a few words before them."""

Count = Annotated[int, Field(ge=0, le=COUNT_MAX)]


def short_id(text: str | None) -> str | None:
    """Return a provider's name for a request as it may be kept with every attempt and shown to people: one short printable line."""
    return "".join(ch for ch in (text or "")[:REQUEST_ID_MAX] if ch.isprintable()) or None


class Strict(BaseModel):
    """Base of the shapes that are read: what is there has the right type, what is not asked for is ignored."""

    model_config = ConfigDict(strict=True, extra="ignore")


class Answer:
    """Collects text. ``blocks``: the answer of a conversation with tools, which is told as blocks."""

    def __init__(self, *, where: str, request_id: str | None, blocks: bool) -> None:
        self._where = where
        self._request_id = short_id(request_id)
        self._as_blocks = blocks
        self._text: list[str] = []
        self._thought = False
        self._stop: str | None = None

    def told(self, tools: Iterable[tuple[str, str, str]], usage: Usage, *, refused: bool) -> str:
        """Return the answer's text; with ``blocks`` its blocks as JSON, each tool use from ``(name, id, arguments)``.

        Raises:
            ProviderFault: the model refused, or said nothing.
        """
        if refused:
            raise self._billed("refusal", f"the model of {self._where} refused to answer", usage)
        text = "".join(self._text)
        if self._as_blocks:
            blocks: list[dict[str, Any]] = [{"type": "text", "text": text}] if text.strip() else []
            blocks += [conversation.tool_use(*tool) for tool in tools]
            text = conversation.encode(blocks) if blocks else ""
        if not text.strip():
            why = "it only thought" if self._thought else f"stop reason {(self._stop or 'not given')[:40]}"
            raise self._billed("no_text", f"the answer of {self._where} has no text ({why})", usage)
        return text

    def cut_off(self) -> ProviderFault:
        """Return the fault for an answer that did not come to its end."""
        return self._unsettled("connection_lost", f"the answer of {self._where} was cut off", retryable=True)

    def unusable(self, why: str, *, again: bool = True) -> ProviderFault:
        """Return the fault for a response that is no answer. ``again=False``: the next one would not be either."""
        return self._unsettled("bad_answer", f"{self._where} sent an unusable answer: {why}", retryable=again)

    def _uncounted(self, what: str) -> ProviderFault:
        return self._unsettled("bad_usage", f"{self._where} answered without usable token counts ({what})")

    def _broken_off(self, kind: str, *, overloaded: bool) -> ProviderFault:
        """An error inside a stream that had begun: what was made up to there may be billed."""
        code = "overloaded" if overloaded else "server_error"
        message = f"{self._where} broke off its answer ({kind[:60]})"
        return self._unsettled(code, message, retryable=True, overloaded=overloaded)

    def _unsettled(
        self, code: str, message: str, *, retryable: bool = False, overloaded: bool = False
    ) -> ProviderFault:
        return ProviderFault(
            message,
            code=code,
            billable="unknown",
            retryable=retryable,
            overloaded=overloaded,
            request_id=self._request_id,
        )

    def _billed(self, code: str, message: str, usage: Usage) -> ProviderFault:
        return ProviderFault(message, code=code, billable="yes", usage=usage, request_id=self._request_id)
