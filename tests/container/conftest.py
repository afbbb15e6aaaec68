"""Code run in a real, hardened container, and the same code in a plain one as the positive control."""

import asyncio
import json
import textwrap
from dataclasses import dataclass

import pytest

from rlm_sandbox.container import image
from rlm_sandbox.container.engine import Engine
from rlm_sandbox.container.launch import launch
from rlm_sandbox.container.profile import RunProfile

PYTHON = ["/usr/local/bin/python3", "-P", "-s", "-c"]


@pytest.fixture(scope="session")
def engine():
    connected = Engine.connect()
    yield connected
    connected.close()


@pytest.fixture(scope="session")
def base(engine):
    return image.ensure(engine, "base")


@dataclass(frozen=True)
class Program(RunProfile):
    """The profile, with a program of the test's own in place of the agent."""

    code: str = ""

    def to_config(self, *args):
        return {**super().to_config(*args), "Entrypoint": [*PYTHON, textwrap.dedent(self.code)]}


@dataclass
class Inputs:
    """What ``launch`` needs of an admitted input."""

    mounts: tuple = ()


async def read_all(container):
    data = b""
    while piece := await container.read():
        data += piece
    return data


@pytest.fixture
def start(engine, base):
    """Start a program under the profile; every container of a test is closed after it."""
    started = []

    async def go(code, *, mounts=(), using=base, **changes):
        made = Program(code=code, **changes)
        container = await launch(engine, using, made, Inputs(tuple(mounts)), {"rlm-sandbox.test": "1"})
        started.append(container)
        return container

    yield go
    assert all(container._closing is not None for container in started), "a test left a container open"


@pytest.fixture
def run(start):
    """Run a program to its end and return what it printed."""

    async def go(code, **options):
        container = await start(code, **options)
        try:
            async with asyncio.timeout(60):
                printed = await read_all(container)
            assert container.stderr_tail == ""
            return printed.decode()
        finally:
            await container.close()

    return go


PROBE = """
import ctypes, json, os
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
def call(number, *args):
    result = libc.syscall(ctypes.c_long(number), *[ctypes.c_long(a) if isinstance(a, int) else a for a in args])
    return 0 if result >= 0 else ctypes.get_errno()
"""


@pytest.fixture
def probe(run):
    """Run code that sets ``out``, with ``call(number, *args)`` for raw system calls (0, or the errno), and return ``out``."""

    async def go(code, **options):
        return json.loads(await run(PROBE + textwrap.dedent(code) + "\nprint(json.dumps(out))", **options))

    return go


@pytest.fixture
def unconfined(engine, base):
    """As ``probe``, in a container with no filter, as root and with capabilities: what is blocked by us works here."""

    def go(code):
        config = {
            "Image": base.id,
            "User": "0:0",
            "Entrypoint": [*PYTHON, PROBE + textwrap.dedent(code) + "\nprint(json.dumps(out))"],
            "HostConfig": {
                "CapAdd": ["SYS_ADMIN", "SYS_PTRACE", "NET_ADMIN", "SYSLOG"],
                "SecurityOpt": ["seccomp=unconfined", "apparmor=unconfined"],
                "MaskedPaths": [],
                "ReadonlyPaths": [],
            },
        }
        ident = engine.api.create_container_from_config(config)["Id"]
        try:
            engine.api.start(ident)
            engine.api.wait(ident)
            return json.loads(engine.api.logs(ident, stderr=False))
        finally:
            engine.api.remove_container(ident, force=True)

    return go
