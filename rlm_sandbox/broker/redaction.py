"""The outbound filter: credentials that an input happens to contain need not leave with a prompt.

Detection is by known shapes (keys of cloud providers, tokens of forges, private-key blocks), from detect-secrets and a few of
our own for model providers. Entropy and keyword guesses are left out: on logs and source code they fire on hashes and
identifiers, and a filter that mangles answers is soon switched off. It is a net with known holes, not a guarantee.
Nothing found is ever logged or put in a message, only its kind. Text is searched in windows, so that no line of an input can
make an expression run for long.
"""

from __future__ import annotations

import asyncio
import logging
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rlm_sandbox.broker import conversation
from rlm_sandbox.errors import PolicyError, PrerequisiteError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rlm_sandbox.broker.types import Request

log = logging.getLogger(__name__)

GUESSERS = frozenset({"Base64HighEntropyString", "HexHighEntropyString", "KeywordDetector", "IPPublicDetector"})

OWN = {
    "Anthropic API Key": re.compile(r"sk-ant-[A-Za-z0-9_-]{20,256}"),
    "OpenAI API Key": re.compile(r"sk-(?:proj|svcacct|admin)-[A-Za-z0-9_-]{20,256}"),
    "OpenRouter API Key": re.compile(r"sk-or-v1-[0-9a-f]{64}"),
    "Google API Key": re.compile(r"AIza[A-Za-z0-9_-]{35}"),
    "Hugging Face Token": re.compile(r"\bhf_[A-Za-z0-9]{34}"),
    "GitHub Fine-Grained Token": re.compile(r"github_pat_[A-Za-z0-9_]{22,255}"),
}

REST = re.compile(r"[A-Za-z0-9_-]*")
"""What belongs to a token that goes on."""

VERIFIED = frozenset({"JwtTokenDetector"})
"""Plugins that look at what their expression found."""

JWT, JWT_REST = "JSON Web Token", r"[A-Za-z0-9_.=+/-]*"
"""detect-secrets ends one before its signature, and a window may end one before that."""

KEY_BEGINS = re.compile(r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----")
KEY_ENDS = re.compile(r"-----END [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----")
KEY_MAX = 16384
"""Characters between the two lines. A block is taken whole, or up to where the text ends: its body is the secret, and detect-secrets knows the header alone."""

FOUND_MAX = 1000
"""Different credentials of one text that are redacted. Each costs a pass over it, and a text of more is a list of credentials."""

WINDOW, OVERLAP = 4096, 512
"""Characters searched at once, and repeated from the one before. The longest token here (a JWT aside) is below 512."""

INLINE_MAX = 64 * 1024
"""Characters searched on the event loop; more goes to a thread."""


class OutboundFilter:
    """The filter of one policy. ``mode`` is refuse or redact.

    Raises PrerequisiteError where detect-secrets is not installed: a filter that was asked for is not left out.
    """

    def __init__(self, mode: str) -> None:
        self._mode = mode
        self._detectors = dict(_detectors())

    async def apply(self, request: Request) -> Request:
        """Return the request as it may leave.

        Raises:
            PolicyError: credentials were found, and the policy is to refuse.
        """
        texts = {name: getattr(request, name) for name in ("system", "prefix", "prompt", "schema")}
        size = sum(len(text) for text in texts.values() if text)
        search = self._clean if request.tools is None else self._clean_conversation
        if size <= INLINE_MAX:
            cleaned, kinds = search(texts)
        else:
            cleaned, kinds = await asyncio.to_thread(search, texts)
        if not kinds:
            return request
        found = ", ".join(sorted(kinds))
        if self._mode == "refuse":
            raise PolicyError(
                f"the prompt contains credentials ({found}) and the policy is not to send any",
                hint="leave that part of the input out, or redact it first",
            )
        log.warning("credentials were redacted from an outbound prompt: %s", found)
        return replace(request, **cleaned)

    def _clean(self, texts: dict[str, str | None]) -> tuple[dict[str, Any], set[str]]:
        kinds: set[str] = set()
        return {name: text and self._clean_one(text, kinds) for name, text in texts.items()}, kinds

    def _clean_conversation(self, texts: dict[str, str | None]) -> tuple[dict[str, Any], set[str]]:
        """As :meth:`_clean`, where the prompt is a list of messages: what is searched is each text in it, not its JSON."""
        cleaned, kinds = self._clean({**texts, "prompt": None})
        prompt = conversation.cleaned(texts["prompt"] or "[]", lambda text: self._clean_one(text, kinds))
        return {**cleaned, "prompt": prompt}, kinds

    def _clean_one(self, text: str, kinds: set[str]) -> str:
        if "PRIVATE KEY" in text:
            text, count = _without_key_blocks(text)
            kinds.update({"Private Key"} if count else ())
        found: dict[str, str] = {}
        for start in range(0, max(1, len(text)), WINDOW - OVERLAP):
            window = text[start : start + WINDOW]
            for kind, search in self._detectors.items():
                found.update(dict.fromkeys(search(window), kind))
            if len(found) > FOUND_MAX:
                raise PolicyError(
                    f"the prompt contains more than {FOUND_MAX} credentials and the policy is to filter them",
                    hint="leave that part of the input out, or redact it first",
                )
        for secret in sorted(found, key=len, reverse=True):
            kinds.add(found[secret])
            mark = f"[REDACTED {found[secret]}]"
            text = (
                re.sub(re.escape(secret) + JWT_REST, mark, text) if found[secret] == JWT else text.replace(secret, mark)
            )
        return text


def _without_key_blocks(text: str) -> tuple[str, int]:
    """Return the text without private keys, and how many there were. One pass each, however many lines begin a key that never ends."""
    ends = [found.span() for found in KEY_ENDS.finditer(text)]
    kept: list[str] = []
    at = following = 0
    for begin in KEY_BEGINS.finditer(text):
        if begin.start() < at:
            continue
        while following < len(ends) and ends[following][0] < begin.end():
            following += 1
        if following < len(ends) and ends[following][0] - begin.end() <= KEY_MAX:
            end = ends[following][1]
        elif len(text) - begin.end() <= KEY_MAX:
            end = len(text)
        else:
            continue
        kept += [text[at : begin.start()], "[REDACTED Private Key]"]
        at = end
    return "".join([*kept, text[at:]]), len(kept) // 2


def _detectors() -> Iterator[tuple[str, Callable[[str], set[str]]]]:
    try:
        from detect_secrets.core.plugins.util import (  # noqa: PLC0415 - 0.3 s, and only where a policy asks for it
            get_mapping_from_secret_type_to_class,
        )
    except ImportError:
        raise PrerequisiteError(
            "the policy filters credentials from prompts, and detect-secrets is not installed",
            hint="pip install 'rlm-sandbox[secrets]', or set secrets = off in the policy",
        ) from None
    known: dict[str, Any] = dict(get_mapping_from_secret_type_to_class())
    for kind, plugin in known.items():
        if plugin.__name__ not in GUESSERS:
            yield kind, _searcher(plugin())
    for kind, pattern in OWN.items():
        yield kind, _finder(pattern)


def _searcher(plugin: Any) -> Callable[[str], set[str]]:
    """Return a search for whole matches: of an expression with groups, ``analyze_string`` gives the groups, and some hold but a prefix."""
    if isinstance(plugin.denylist, (list, tuple)) and plugin.__class__.__name__ not in VERIFIED:
        return _finder(*plugin.denylist)
    return lambda text: {secret for secret in plugin.analyze_string(text) if isinstance(secret, str) and secret.strip()}


def _finder(*patterns: re.Pattern[str]) -> Callable[[str], set[str]]:
    def find(text: str) -> set[str]:
        found = set()
        for pattern in patterns:
            for match in pattern.finditer(text):
                end = match.end()
                rest = REST.match(text, end) if match[0][-1:].isalnum() else None
                end = rest.end() if rest else end  # the expression may know the shortest form of a longer token
                found.add(text[match.start() : end].strip())
        return found - {""}

    return find
