"""The provider's key is in the daemon's memory and in the requests it sends, and nowhere else: everything a run leaves behind is searched for it.

The provider is a real server on loopback that gets every request wrong in its own way, some by repeating the key. That it received the key, and
that the search finds the key where it must be, shows that the search can find something.
"""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from rlm_sandbox.broker.types import Credentials, Secret
from rlm_sandbox.session.start import StartRequest
from tests.support.cli import Home, docker, eventually
from tests.support.fault_server import Fault, FaultServer

pytestmark = pytest.mark.security

PREFIX = "sk-ant"  # apart from the rest: no tracked line looks like a key
KEY = f"{PREFIX}-api03-SENTINEL-7f3b9d21c4e84a5590aa"
ECHO = f"invalid x-api-key: {KEY}, header x-api-key={KEY}"

FAULTS = [
    Fault("status", {"status": 401, "kind": "authentication_error", "message": ECHO}),
    Fault("status", {"status": 403, "kind": "permission_error", "message": ECHO}),
    Fault("status", {"status": 400, "kind": "invalid_request_error", "message": ECHO}),
    Fault("status", {"status": 404, "kind": "not_found_error", "message": ECHO}),
    Fault("html"),
    Fault("truncated_json"),
    Fault("reset_in_body"),
    Fault("stream_error"),
    Fault("usage", {"input_tokens": -5}),
    Fault("refusal"),
    Fault("redirect"),
]

CELL = """
import traceback
for number in range(COUNT):
    try:
        print(llm_query(f"question {number}"))
    except Exception as exc:
        traceback.print_exc()
        print(repr(exc), exc.args, vars(exc))
"""


class Served:
    """The faulty provider on a thread of its own."""

    def __enter__(self):
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()
        self.server = FaultServer()
        self._do(self.server.__aenter__())
        return self.server

    def __exit__(self, *_):
        self._do(self.server.__aexit__(None, None, None))
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()

    def _do(self, work):
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(30)


class Recorded(Home):
    """A command line that keeps every byte that its commands printed."""

    def __init__(self, path, **environment):
        super().__init__(path, **environment)
        self.printed = b""

    def __call__(self, *args, **options):
        result = super().__call__(*args, **options)
        self.printed += result.out + result.err.encode()
        return result


def memory_holds(pid, needle):
    """Search a process's readable memory; as root, so also one that cannot be looked into by its own user."""
    with contextlib.suppress(OSError), Path(f"/proc/{pid}/mem").open("rb", 0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            area, rights, *_ = line.split()
            low, high = (int(part, 16) for part in area.split("-"))
            if "r" not in rights or line.endswith(("[vvar]", "[vsyscall]", "[vvar_vclock]")):
                continue
            with contextlib.suppress(OSError, ValueError):
                for at in range(low, high, 1 << 22):
                    memory.seek(at)
                    if needle in memory.read(min(high - at, (1 << 22) + len(needle))):
                        return True
    return False


def process_texts(pid):
    for name in ("environ", "cmdline", "status"):
        with contextlib.suppress(OSError):
            yield f"/proc/{pid}/{name}", Path(f"/proc/{pid}/{name}").read_bytes()


@pytest.fixture(scope="module")
def run_with_key(tmp_path_factory, log_file):
    """A run in which everything goes wrong, and what could be seen of it: where -> bytes."""
    folder = tmp_path_factory.mktemp("hygiene")
    seen = {}
    began = int(time.time())
    with Served() as server:
        home = Recorded(
            folder / "home", ANTHROPIC_API_KEY=KEY, ANTHROPIC_BASE_URL=server.anthropic_url, RLM_CALL_DEADLINE="10"
        )
        named = ("--session", home.start(log_file, "--provider", "anthropic", "--session", "keyed")["session"])
        server.plan = list(FAULTS)
        home.exec(CELL.replace("COUNT", str(len(FAULTS))), *named, "--timeout", "100", "--wait", "100")
        server.plan, server.default = [], "ok"
        home.exec("print(llm_query('one good answer')); kept = 1; FINAL('done')", *named)
        (container,) = home.containers()
        inside = [int(word) for word in docker("top", container, "-o", "pid").split()[1:]]
        seen["docker inspect"] = docker("inspect", container).encode()
        daemon = home.daemon
        for pid in (daemon, *inside):
            seen.update(process_texts(pid))
        if os.getuid() == 0:
            assert memory_holds(daemon, KEY.encode()), "the search finds what is there"
            seen.update({f"memory of {pid}": KEY.encode() for pid in inside if memory_holds(pid, KEY.encode())})
        for command in (("status",), ("list",), ("budget",), ("budget", "history"), ("doctor",), ("broker", "status")):
            home(*command, *(named if command[0] in {"status", "budget"} else ()))
            home("--format", "text", *command)
        home("start", "--input", "/nonexistent")
        home("run", "what?", "--input", str(log_file), "--provider", "anthropic", "--strategy", "map-reduce")
        server.default = "silent"
        home.exec("llm_query('never answered')", *named, "--wait", "1")
        os.kill(daemon, signal.SIGKILL)
        eventually(lambda: not home.containers(), "a container outlived its daemon")
        server.default = "ok"
        home.start(log_file, "--provider", "anthropic", "--session", "keyed")
        home.exec("print(llm_query('after the crash'))", *named)
        home("export", *named, "-o", str(folder / "run.bundle"))
        home("report", *named, "-o", str(folder / "report.html"))
        home.ok("stop", "--all")
        seen["docker events"] = docker("events", "--since", str(began), "--until", str(int(time.time()) + 1)).encode()
        home.close()
        keys = [[value for value in entry.headers.values() if KEY in value] for entry in server.log]
    seen["what commands printed"] = home.printed
    seen.update({str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()})
    return seen, keys


def test_the_provider_got_the_key_with_every_request(run_with_key):
    _, keys = run_with_key
    assert len(keys) > len(FAULTS)
    assert all(len(values) == 1 for values in keys)


def test_nothing_that_the_run_left_behind_or_showed_holds_the_key(run_with_key):
    seen, _ = run_with_key
    pieces = (KEY.encode(), KEY[-16:].encode(), KEY.encode().hex().encode(), KEY.encode("utf-16-le"))
    assert [where for where, data in seen.items() if any(piece in data for piece in pieces)] == []
    names = " ".join(seen)
    for part in ("ledger.db", "journal", "broker.log", "docker inspect", "docker events", "environ", "cmdline"):
        assert part in names, "and it was searched"


def test_the_errors_of_the_run_were_told_all_the_same(run_with_key):
    seen, _ = run_with_key
    (whole,) = [data for where, data in seen.items() if where.endswith("stdout-1.txt")]
    assert whole.count(b"Traceback") >= 6, "a fault that a retry mends raises nothing"
    assert b"***" in whole or b"redacted" in whole or b"authentication" in whole


def test_no_command_leaves_a_file_outside_its_state_folder(fresh, log_file, tmp_path):
    """Temporary files too: what a session writes lies in the state folder or in the container."""
    elsewhere = tmp_path / "tmp"
    elsewhere.mkdir()
    with fresh.session(log_file, env={"TMPDIR": str(elsewhere), "ANTHROPIC_API_KEY": KEY}) as started:
        fresh.exec("print('x' * 9999); FINAL('a')", "--session", started["session"], env={"TMPDIR": str(elsewhere)})
    assert list(elsewhere.rglob("*")) == []


def test_the_daemon_leaves_no_core_and_lets_nobody_look_into_it():
    code = (
        "import ctypes, resource; from rlm_sandbox.daemon.__main__ import protect; protect();"
        "print(resource.getrlimit(resource.RLIMIT_CORE), ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "(0, 0) 0\n"


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user and look at both")
def test_another_process_of_the_same_user_cannot_read_the_daemons_memory():
    """A process that protected itself, and one that did not, looked at by a third of the same unprivileged user."""
    look = "import os, sys; os.setuid(65534); open(f'/proc/{sys.argv[1]}/mem', 'rb'); open(f'/proc/{sys.argv[1]}/environ').read()"
    wait = "print('up', flush=True); sys.stdin.read()"  # changing the user resets the flag, so that comes first
    codes = (
        f"import os, sys; from rlm_sandbox.daemon.__main__ import protect; os.setuid(65534); protect(); {wait}",
        f"import ctypes, os, sys; os.setuid(65534); ctypes.CDLL(None).prctl(4, 1, 0, 0, 0); {wait}",
    )
    outcomes = []
    for code in codes:
        target = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        target.stdout.readline()
        looker = subprocess.run(
            [sys.executable, "-c", look, str(target.pid)], capture_output=True, text=True, check=False
        )
        outcomes.append("PermissionError" in looker.stderr)
        target.communicate()
    assert outcomes == [True, False]


def test_no_repr_shows_a_key():
    secret = Secret(KEY)
    credentials = Credentials(api_key=secret, base_url="http://x")
    request = StartRequest(input="x", environment={"ANTHROPIC_API_KEY": KEY})
    for shown in (secret, credentials, request, [secret], {"k": credentials}):
        assert KEY not in f"{shown!r} {shown!s} {shown}"
    assert KEY not in repr(ValueError(credentials))
