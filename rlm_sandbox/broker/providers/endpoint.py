"""Where a provider may be reached, decided before any SDK is imported.

A key is only ever sent over TLS or to this machine; everything else must be named as an exception by the user
(``Credentials.extra["allow_http"] = "1"``). A URL that carries credentials of its own is refused, since it would
show up in logs.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from rlm_sandbox.errors import PolicyError, PrerequisiteError, UsageError

if TYPE_CHECKING:
    from rlm_sandbox.broker.types import Credentials

NO_KEY = "none"
"""Sent in place of a key to a loopback server that needs none: the SDKs insist on some value, and an absent one would
make them look for a key in the environment."""


def is_loopback(url: str) -> bool:
    """Tell whether the URL names this machine itself (by name or address, without asking a resolver)."""
    host = urlsplit(url).hostname or ""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_http(url: str) -> bool:
    """Tell whether the text is a URL that a request can be sent to: what an SDK or a socket would stumble over later is none."""
    if not url.isprintable() or " " in url:
        return False
    try:
        parts = urlsplit(url)
        return parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:  # an address without its bracket, a port that is none
        return False


_SELLERS = {
    "openrouter.ai": "openrouter",
    "openai.azure.com": "azure",
    "services.ai.azure.com": "azure",
    "api.groq.com": "groq",
    "api.together.xyz": "together",
    "api.deepseek.com": "deepseek",
    "api.mistral.ai": "mistral",
    "api.x.ai": "x-ai",
    "api.fireworks.ai": "fireworks",
    "api.perplexity.ai": "perplexity",
}


def seller(url: str) -> str | None:
    """Return the price table's name for a host that sells other makers' models, None for any other."""
    host = urlsplit(url).hostname or ""
    return next((name for domain, name in _SELLERS.items() if host == domain or host.endswith(f".{domain}")), None)


def admit(credentials: Credentials, *, default_url: str, provider: str, variable: str) -> tuple[str, str]:
    """Return ``(base_url, key)`` to use, without a trailing slash.

    Raises UsageError (not an http URL), PolicyError (a key over plain http) and PrerequisiteError (no key).
    """
    url = (credentials.base_url or default_url).rstrip("/")
    if not is_http(url):
        raise UsageError(f"the base URL of {provider} is not an http(s) URL", hint="give it as https://host/path")
    parts = urlsplit(url)
    if parts.username or parts.password:
        raise UsageError(f"the base URL of {provider} carries credentials", hint=f"put the key in {variable} instead")
    local = is_loopback(url)
    if not credentials.api_key:
        if local:
            return url, NO_KEY
        raise PrerequisiteError(
            f"no API key for {provider}", hint=f"set {variable}, or try without a key: --provider local"
        )
    if parts.scheme == "http" and not local and credentials.extra.get("allow_http") != "1":
        raise PolicyError(
            f"the key of {provider} would travel unencrypted to {parts.hostname}",
            hint="use an https:// base URL, or set RLM_ALLOW_HTTP=1 if the network between is trusted",
        )
    return url, credentials.api_key.reveal()
