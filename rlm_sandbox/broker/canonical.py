"""One request, one name. Equal requests have equal keys in every process, on every machine and in every version of Python.

The key is the SHA-256 of RFC 8785 canonical JSON over everything that can change the answer: provider, where it is, model,
texts, parameters, sample and scope. Texts enter as digests, so that the key of an 8 MiB prompt costs two hashes, and a
schema as its own canonical form, so that its spelling does not matter.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import rfc8785

from rlm_sandbox.broker.types import Call, Request
from rlm_sandbox.errors import PolicyError

if TYPE_CHECKING:
    from rlm_sandbox.broker.types import SessionSpec

KEY_VERSION = 1
"""Part of every key: raise it when the meaning of a request changes, and old answers are no longer found."""

SCHEMA_MAX = 64 * 1024
"""Bytes of schema text: the providers' own limits are far below."""

SAMPLE_MAX = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Canonical:
    """A call with every default filled in, and its names."""

    call: Call
    key: str
    digests: dict[str, str | None]
    """SHA-256 of the call's texts, by name."""
    bytes_out: int

    @property
    def prompt_sha256(self) -> str:
        """The prompt's digest."""
        return self.digests["prompt"] or ""

    def leaving(self, call: Call) -> tuple[str, int]:
        """Return the prompt's digest and all bytes of what is sent; ``call`` may ask again with a longer prompt."""
        if call is self.call:
            return self.prompt_sha256, self.bytes_out
        prompt = call.prompt.encode()
        return hashlib.sha256(prompt).hexdigest(), self.bytes_out + len(prompt) - len(self.call.prompt.encode())


def canonical(request: Request, spec: SessionSpec) -> Canonical:
    """Fill in the session's defaults and name the result.

    Raises:
        PolicyError: a text is not valid Unicode, or the schema is no JSON object.
    """
    call = Call(
        model=spec.model if request.model is None else request.model,
        system=request.system or None,
        prefix=request.prefix or None,
        prompt=request.prompt,
        max_tokens=spec.max_tokens if request.max_tokens is None else request.max_tokens,
        cache=request.cache,
        thinking_budget=request.thinking_budget or None,
        schema=None if request.schema is None else _schema(request.schema),
        sample=request.sample,
        tools=request.tools,
    )
    if not 0 <= call.sample <= SAMPLE_MAX:
        raise PolicyError(f"sample={call.sample} is outside of 0 to {SAMPLE_MAX}", hint="number samples from 0")
    names = ("system", "prefix", "prompt", "schema", *(() if call.tools is None else ("tools",)))
    texts = {name: _encode(name, getattr(call, name)) for name in names}
    digests = {name: None if text is None else hashlib.sha256(text).hexdigest() for name, text in texts.items()}
    form = {
        "version": KEY_VERSION,
        "provider": spec.provider,
        "base_url": _digest(spec.credentials.base_url),
        "extra": {name: _digest(value) for name, value in spec.credentials.extra.items()},
        "scope": scope_of(spec),
        "model": call.model,
        "max_tokens": str(call.max_tokens),
        "thinking_budget": str(call.thinking_budget),
        "sample": call.sample,
        **digests,
    }
    # Strings, small integers and null under ASCII names: for these, sorted JSON is RFC 8785, in a tenth of the time.
    key = hashlib.sha256(
        json.dumps(form, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    ).hexdigest()
    return Canonical(call, key, digests, sum(len(text) for text in texts.values() if text))


def scope_of(spec: SessionSpec) -> str:
    """Return the response-cache scope; a session's own and a shared one never meet, whatever they are called."""
    return own_scope(spec.session) if spec.cache_scope is None else f"shared:{spec.cache_scope}"


def own_scope(session: str) -> str:
    """Return the scope of a session that shares its answers with no other."""
    return f"session:{session}"


def destination(spec: SessionSpec) -> str:
    """Return where prompts go, fit for a record: provider and host, without credentials, path or query."""
    if not spec.credentials.base_url:
        return spec.provider
    try:
        host = urlsplit(spec.credentials.base_url).netloc.rpartition("@")[2]
    except ValueError:
        host = "?"
    return f"{spec.provider}@{host}"


def _encode(name: str, text: str | None) -> bytes | None:
    if text is None:
        return None
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise PolicyError(
            f"the {name} holds a lone surrogate at character {error.start}, which is no text",
            hint="decode the input with errors='replace' before sending it",
        ) from None


def _digest(text: str | None) -> str | None:
    return None if text is None else hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def _schema(text: str) -> str:
    if len(text) > SCHEMA_MAX:
        raise PolicyError(f"the schema has {len(text)} characters; at most {SCHEMA_MAX} are taken", hint="simplify it")
    try:
        form = json.loads(text, parse_constant=_no_constant)
        if not isinstance(form, dict):
            raise PolicyError("the schema is not a JSON object", hint='for example {"type": "object"}')
        return rfc8785.dumps(form).decode()
    except (ValueError, RecursionError, rfc8785.CanonicalizationError) as error:
        raise PolicyError(f"the schema is not JSON that can be sent: {error}", hint="pass a JSON Schema") from None


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is no JSON")
