"""Providers connected to a server that fails on demand."""

import pytest

from rlm_sandbox.broker.providers import create
from rlm_sandbox.broker.types import Credentials, Secret
from tests.support.fault_server import FaultServer


@pytest.fixture
async def server():
    """A fault server on loopback."""
    async with FaultServer() as running:
        yield running


@pytest.fixture
async def connect(server):
    """Makes real providers that talk to it; they are closed at the end."""
    made = []

    def connect(api, **fields):
        url = server.anthropic_url if api == "anthropic" else server.openai_url
        made.append(create(api, Credentials(**({"api_key": Secret("sk-test-key"), "base_url": url} | fields))))
        return made[-1]

    yield connect
    for provider in made:
        await provider.aclose()
