"""Shorthand for tests that ask a provider directly."""

import pytest

from rlm_sandbox.broker.types import Call, ProviderFault

MODELS = {"anthropic": "claude-haiku-4-5", "openai": "gpt-4o-mini", "local": "smollm2-135m-instruct"}


def call(api, **fields):
    base = {"model": MODELS[api], "system": None, "prefix": None, "prompt": "ping", "max_tokens": 100, "cache": True}
    return Call(**(base | {"thinking_budget": None, "schema": None, "sample": 0} | fields))


async def ask(provider, timeout_s=20.0, began=lambda: None, **fields):
    return await provider.attempt(call(provider.name, **fields), timeout_s=timeout_s, began=began)


async def fail(provider, **fields):
    with pytest.raises(ProviderFault) as caught:
        await ask(provider, **fields)
    return caught.value
