"""The providers, by name. Each is one module, imported when it is asked for, so that nobody waits for an SDK unused.

To add one: a module with a class that fits :class:`~rlm_sandbox.broker.types.Provider`, and a line in ``_MAKERS``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rlm_sandbox.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from rlm_sandbox.broker.types import Credentials, Provider


def _anthropic(credentials: Credentials) -> Provider:
    from rlm_sandbox.broker.providers.anthropic import AnthropicProvider  # noqa: PLC0415

    return AnthropicProvider(credentials)


def _openai(credentials: Credentials) -> Provider:
    from rlm_sandbox.broker.providers.openai import OpenAIProvider  # noqa: PLC0415

    return OpenAIProvider(credentials)


def _local(credentials: Credentials) -> Provider:
    from rlm_sandbox.broker.providers.local import LocalProvider  # noqa: PLC0415

    return LocalProvider(credentials)


def _scripted(credentials: Credentials) -> Provider:
    from rlm_sandbox.broker.providers.scripted import ScriptedProvider  # noqa: PLC0415

    return ScriptedProvider.from_credentials(credentials)


_MAKERS: dict[str, Callable[[Credentials], Provider]] = {
    "anthropic": _anthropic,
    "openai": _openai,
    "local": _local,
    "scripted": _scripted,
}

_ALIASES = {"openai-compat": "openai", "openai-compatible": "openai"}
"""Names that rlm-skill accepts for LLM_PROVIDER."""

NAMES = tuple(_MAKERS)


def create(name: str, credentials: Credentials) -> Provider:
    """Return the provider of that name, bound to these credentials.

    Raises UsageError (no such provider, a bad script or URL), PrerequisiteError (no key, a missing extra, no weights) and
    PolicyError (a key over an unencrypted connection).
    """
    wanted = name.strip().lower()
    maker = _MAKERS.get(_ALIASES.get(wanted, wanted))
    if maker is None:
        raise UsageError(f"there is no provider {name[:40]!r}", hint=f"one of: {', '.join(NAMES)}")
    return maker(credentials)
