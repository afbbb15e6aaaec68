"""An engine over ssh, played by a program named ssh that forwards a socket of this machine."""

import asyncio
import os
import sys
from pathlib import Path

import pytest

from rlm_sandbox.container.engine import Engine
from rlm_sandbox.container.launch import launch
from rlm_sandbox.container.profile import RunProfile
from rlm_sandbox.errors import EngineError

pytestmark = pytest.mark.container

SSH = """#!{python}
import os, sys, signal
assert sys.argv[-2:] == ["--", "someone@far.example"], sys.argv
local, remote = sys.argv[sys.argv.index("-L") + 1].split(":")
os.symlink(remote, local)
signal.pause()
"""


def install(folder, monkeypatch, text):
    tool = folder / "ssh"
    tool.write_text(text)
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


async def test_a_session_runs_over_ssh_as_it_does_over_a_socket(base, tmp_path, monkeypatch):
    install(tmp_path, monkeypatch, SSH.format(python=sys.executable))
    engine = Engine.connect("ssh://someone@far.example")
    try:
        assert not engine.info().local

        class NoInput:
            mounts = ()

        container = await launch(engine, base, RunProfile(), NoInput(), {"rlm-sandbox.test": "1"})
        container.write(b"not a frame, and so the agent ends")
        async with asyncio.timeout(30):
            while await container.read():
                pass
        assert (await container.exit_facts()).code == 70
        await container.close()
    finally:
        engine.close()
    assert not Path(engine.address.removeprefix("unix://")).parent.exists()
    assert engine._tunnel._process.poll() is not None


def test_an_ssh_that_fails_is_quoted(tmp_path, monkeypatch):
    install(tmp_path, monkeypatch, "#!/bin/sh\necho 'Permission denied (publickey).' >&2\nexit 255\n")
    with pytest.raises(EngineError, match=r"Permission denied \(publickey\)"):
        Engine.connect("ssh://someone@far.example")


@pytest.mark.parametrize("url", ["ssh://", "ssh://-oProxyCommand=x"])
def test_a_host_that_is_no_host_never_reaches_ssh(url):
    with pytest.raises(EngineError, match="names no host"):
        Engine.connect(url)
