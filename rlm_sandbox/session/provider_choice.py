"""Which provider a session talks to, with which key, at which address.

The names and their precedence are those of rlm-skill. A base URL goes only with the key it was set for: ``LLM_BASE_URL`` never receives
``ANTHROPIC_API_KEY``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rlm_sandbox.broker.types import Credentials, Secret
from rlm_sandbox.errors import PrerequisiteError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rlm_sandbox.settings.model import Settings

_ALIASES = {"openai-compat": "openai", "openai-compatible": "openai"}
NAMES = ("anthropic", "openai", "local", "scripted")


def choose(settings: Settings, environment: Mapping[str, str]) -> tuple[str, Credentials]:
    """Return the provider's name and its credentials. Raises :class:`UsageError` or :class:`PrerequisiteError`."""
    asked = (settings.provider or environment.get("LLM_PROVIDER") or _detect(environment)).strip().lower()
    name = _ALIASES.get(asked, asked)
    if name not in NAMES:
        raise UsageError(f"unknown provider {asked[:40]!r}", hint=f"use one of {', '.join(NAMES)}")
    if name == "anthropic":
        return name, _anthropic(environment)
    if name == "openai":
        return name, _openai(environment, settings)
    extra = {}
    if name == "scripted" and settings.script is not None:
        extra["script"] = str(settings.script)
    if name == "local" and settings.gguf is not None:
        extra["gguf"] = str(settings.gguf)
    return name, Credentials(extra=extra)


def _detect(environment: Mapping[str, str]) -> str:
    if environment.get("ANTHROPIC_API_KEY"):
        return "anthropic"
    if environment.get("OPENAI_API_KEY"):
        return "openai"
    if environment.get("LLM_API_KEY"):
        return "anthropic"  # as rlm-skill: the generic key alone means Anthropic
    return "local"


def _anthropic(environment: Mapping[str, str]) -> Credentials:
    own = environment.get("ANTHROPIC_API_KEY")
    key = own or environment.get("LLM_API_KEY")
    if not key:
        raise PrerequisiteError(
            "provider anthropic needs a key",
            hint="export ANTHROPIC_API_KEY=..., or use --provider local, which needs none",
        )
    base = environment.get("ANTHROPIC_BASE_URL") or (None if own else environment.get("LLM_BASE_URL"))
    return Credentials(api_key=Secret(key.strip()), base_url=base, extra=_network(environment))


def _openai(environment: Mapping[str, str], settings: Settings) -> Credentials:
    generic = environment.get("LLM_API_KEY")
    key = environment.get("OPENAI_API_KEY") or generic
    if not key:
        raise PrerequisiteError(
            "provider openai needs a key",
            hint="export OPENAI_API_KEY=... (or LLM_API_KEY; any word will do where the server checks none)",
        )
    base = environment.get("LLM_BASE_URL") or environment.get("OPENAI_BASE_URL")
    extra = {"default_model": settings.openai_fast} if settings.openai_fast else {}
    return Credentials(api_key=Secret(key.strip()), base_url=base, extra=extra | _network(environment))


def _network(environment: Mapping[str, str]) -> dict[str, str]:
    """Ways to a provider that must be named: ambient proxies and certificates have no say."""
    names = {"RLM_ALLOW_HTTP": "allow_http", "RLM_PROXY": "proxy", "RLM_CA_FILE": "ca_file"}
    return {key: environment[name] for name, key in names.items() if environment.get(name)}
