"""The control socket against clients that are broken, old, huge, many, gone, or somebody else's."""

import json
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from rlm_sandbox.daemon.client import call, connect
from rlm_sandbox.daemon.paths import socket_path
from rlm_sandbox.daemon.protocol import EventReader, request
from rlm_sandbox.errors import UsageError
from rlm_sandbox.wire.frames import encode
from tests.support.cli import Home, eventually

pytestmark = pytest.mark.component


@pytest.fixture(scope="module")
def daemon(tmp_path_factory):
    home = Home(tmp_path_factory.mktemp("daemon") / "home")
    serving = home.spawn("broker", "serve", stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    def up():
        probe = connect(home.path)
        if probe is not None:
            probe.close()
        return probe is not None

    eventually(up, "the daemon did not come up")
    yield home
    serving.terminate()
    _, said = serving.communicate(timeout=20)
    assert serving.returncode == 0
    assert b"Traceback" not in said, said.decode()


def talk(home, raw, *, finish=True):
    """Send bytes and return the events that come back until the daemon hangs up."""
    with connect(home.path) as client:
        client.settimeout(20)
        try:
            client.sendall(raw)
            if finish:
                client.shutdown(socket.SHUT_WR)
            reader, events = EventReader(), []
            while data := client.recv(65536):
                events += reader.feed(data)
        except (BrokenPipeError, ConnectionResetError):
            return []
        return [(kind, json.loads(payload)) for kind, payload in events]


def well(home):
    return talk(home, request("broker_status", {}))[0][1]["running"] is True


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\x00",
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\xff" * 64,
        struct.pack(">II", 0, 0),
        struct.pack(">II", 2**32 - 1, 2**32 - 1),
        struct.pack(">II", 2, 0) + b"[]",
        struct.pack(">II", 20, 0) + b'{"op":"broker_status',
        struct.pack(">II", 60000, 0) + b"[" * 60000,
        request("broker_status", {})[:-1],
    ],
    ids=lambda raw: f"{len(raw)} bytes {raw[:12]!r}",
)
def test_garbage_is_hung_up_on_and_the_daemon_lives(daemon, raw):
    assert talk(daemon, raw) == []
    assert well(daemon)


@pytest.mark.parametrize(
    ("raw", "kind"),
    [
        (encode({"op": "list", "version": 99, "body": False}, b"{}"), "protocol"),
        (encode({"op": "list", "body": False}, b"{}"), "protocol"),
        (encode({"op": "list", "version": 1, "body": False}, b"not json"), "protocol"),
        (encode({"op": "list", "version": 1, "body": False}, b"[]"), "protocol"),
        (encode({"op": "list", "version": 1, "body": False}, b"[" * 200_000), "protocol"),
        (request("no_such_operation", {}), "usage"),
        (request("__class__", {}), "usage"),
        (request("start", {}), "usage"),
        (request("start", {"input": 5}), "usage"),
        (request("start", {"input": "/etc/hostname", "flags": [1]}), "usage"),
        (request("start", {"input": "/etc/hostname", "mode": "telepathy", "flags": {"provider": "scripted"}}), "usage"),
        (request("start", {"input": "/tmp/\ud800"}), "usage"),
        (request("start", {"input": "/tmp/a\0b"}), "usage"),
        (request("start", {"input": "/etc/hostname", "engine": {"DOCKER_HOST": 5}}), "usage"),
        (request("start", {"input": "/etc/hostname", "environment": {"RLM_PROVIDER": None}}), "usage"),
        (request("start", {"input": "/etc/hostname", "flags": {"session_dir": "/tmp/a\0b"}}), "usage"),
        (request("export", {}), "usage"),
        (request("final", {"session": "nobody", "root": "/tmp/a\0b"}), "usage"),
        (request("budget", {"session": "nobody", "set_cost_limit": 2**53}), "usage"),
        (request("exec", {"session": 7}, b"1"), "usage"),
        (request("exec", {"session": "nobody", "timeout": "soon"}, b"1"), "usage"),
        (request("exec", {"session": "nobody", "wait": float("nan")}, b"1"), "usage"),
        (request("exec", {"session": "nobody", "wait": float("inf")}, b"1"), "usage"),
        (request("exec", {"session": "nobody", "stdout_max": -1}, b"1"), "usage"),
        (request("exec", {"session": "nobody", "stdout_max": True}, b"1"), "usage"),
        (request("exec", {"session": "nobody", "surprise": 1}, b"1"), "usage"),
        (request("exec", {"session": "nobody"}, b"1"), "no_session"),
        (request("stop", {"session": "../../etc", "all": False}), None),
        (request("final", {"session": "../../etc/passwd"}), "no_session"),
    ],
)
def test_what_makes_no_sense_is_answered_with_an_error_that_is_no_defect(daemon, raw, kind):
    events = talk(daemon, raw, finish=False)
    assert len(events) == 1
    name, document = events[0]
    if kind is None:
        assert (name, document["was_live"]) == ("result", False)
    else:
        assert (name, document["kind"]) == ("error", kind)
        assert document["hint"]
    assert well(daemon)


def test_a_large_request_is_taken_and_a_larger_one_refused_before_it_is_read(daemon):
    assert talk(daemon, request("exec", {"session": "nobody"}, b"#" * (15 << 20)))[0][1]["kind"] == "no_session"
    head = encode({"op": "exec", "version": 1, "body": True}, b"{}")
    assert talk(daemon, head + struct.pack(">II", 10, 17 << 20)) == []
    assert well(daemon)


def test_fifty_clients_at_once_are_all_served(daemon):
    served = []

    def ask():
        served.append(well(daemon))

    threads = [threading.Thread(target=ask) for _ in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert served == [True] * 50


def test_clients_that_vanish_or_say_nothing_leave_no_descriptor_behind(daemon):
    pid = talk(daemon, request("broker_status", {}))[0][1]["pid"]

    def open_files():
        return len(list(Path(f"/proc/{pid}/fd").iterdir()))

    before = open_files()
    for _ in range(100):
        with connect(daemon.path) as client:
            client.sendall(request("list", {}))  # and gone before the answer
    silent = [connect(daemon.path) for _ in range(20)]
    for client in silent:
        client.close()
    eventually(lambda: open_files() <= before, "descriptors of clients that are gone stay open")
    assert well(daemon)


def test_a_slow_client_does_not_keep_others_waiting(daemon):
    with connect(daemon.path) as slow:
        slow.sendall(request("broker_status", {})[:5])
        began = time.monotonic()
        assert well(daemon)
        assert time.monotonic() - began < 10


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
def test_another_users_process_gets_no_answer_even_with_the_socket_at_hand(daemon):
    path = socket_path(daemon.path)
    path.chmod(0o666)
    intruder = (
        "import os, socket, sys\n"
        f"os.chdir({str(path.parent)!r})\n"
        "os.setgid(65534); os.setuid(65534)\n"
        "client = socket.socket(socket.AF_UNIX); client.connect('broker.sock')\n"
        "client.sendall(bytes.fromhex(sys.argv[1]))\n"
        "sys.stdout.buffer.write(client.recv(100))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", intruder, request("broker_status", {}).hex()],
        capture_output=True,
        check=False,
        timeout=30,
    )
    assert done.stdout == b""
    assert well(daemon)


def test_what_answers_and_is_no_daemon_is_a_broken_protocol_and_no_defect(tmp_path):
    home = Home(tmp_path)
    socket_path(tmp_path).parent.mkdir()
    with socket.socket(socket.AF_UNIX) as impostor:
        impostor.bind(str(socket_path(tmp_path)))
        impostor.listen()

        def answer():
            for reply in (b"garbage" * 100, encode({"event": "result"}, b"{"), encode({"event": "error"}, b"{}")):
                client, _ = impostor.accept()
                with client:
                    client.recv(65536)
                    client.sendall(reply)

        answering = threading.Thread(target=answer)
        answering.start()
        for _ in range(3):
            failed = home("list")
            assert (failed.code, failed.error["kind"]) == (8, "protocol")
        answering.join()


def test_something_else_in_the_sockets_place_is_named(tmp_path):
    socket_path(tmp_path).mkdir(parents=True)
    failed = Home(tmp_path)("gc")
    assert (failed.code, failed.error["kind"]) == (3, "prerequisite")
    assert str(socket_path(tmp_path)) in failed.error["message"]


def test_code_without_an_end_is_refused_and_not_read_for_ever(daemon):
    for args, code in ((("-f", "/dev/zero"), b""), ((), b"#" * (17 << 20))):
        failed = daemon("exec", *args, stdin=code)
        assert (failed.code, failed.error["kind"]) == (2, "usage")
        assert "more than 16777216 bytes" in failed.error["message"]
    with pytest.raises(UsageError, match="larger than 16777216 bytes"):
        call("exec", {}, b"#" * (17 << 20), spawn=False)
    with pytest.raises(UsageError, match="cannot be sent"):
        call("exec", {"session": object()}, b"", spawn=False)
