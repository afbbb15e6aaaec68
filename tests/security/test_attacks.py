"""Every attack that ``doctor --deep`` runs, with its control: the same code gets through in a container without our walls."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import docker
import pytest

from rlm_sandbox.container import image
from rlm_sandbox.container.engine import Engine
from rlm_sandbox.doctor import attacks, deep

pytestmark = pytest.mark.security

NO_CONTROL = {"kill process 1", "metadata address"}
"""The first is judged by what happens afterwards (the session lives on); the second would leave this machine."""


@pytest.fixture(scope="module")
def in_session(cli):
    with tempfile.TemporaryDirectory() as folder:
        bait = Path(folder) / "data.txt"
        bait.write_text("one\ntwo\n")
        bait.chmod(0o644)
        started = cli("start", "--input", str(bait), "--provider", "scripted", "--memory", "1g").doc
        cli("exec", "--session", started["session"], "-c", deep.source())

        def verdict(name):
            done = cli("exec", "--session", started["session"], "-c", f"attack({name!r})").doc
            assert done["status"] == "ok", done["error"]
            return json.loads(done["stdout"])

        yield verdict
        cli("stop", "--session", started["session"])
        assert bait.read_text() == "one\ntwo\n"


ABSENT = {"EAFNOSUPPORT", "ENOSYS", "EPROTONOSUPPORT"}

_WANTED = {
    "MKNOD": 27,
    "NET_ADMIN": 12,
    "NET_RAW": 13,
    "SYS_ADMIN": 21,
    "SYS_CHROOT": 18,
    "SYS_PTRACE": 19,
    "SYS_RAWIO": 17,
    "SYSLOG": 34,
}


def _capabilities():
    """Those of the attacks' capabilities that this host's engine can give at all."""
    status = Path("/proc/self/status").read_text()
    bounding = int(status.partition("CapBnd:")[2].split()[0], 16)
    return [name for name, number in _WANTED.items() if bounding >> number & 1]


@pytest.fixture(scope="module")
def unguarded(tmp_path_factory):
    """The verdicts of all attacks in a privileged container with network, root and a writable everything."""
    folder = tmp_path_factory.mktemp("control")
    for name in ("input", "opt"):
        (folder / name).mkdir()
    (folder / "input" / "data.txt").write_text("x")
    (folder / "opt" / "program").write_text("x")
    (folder / "opt" / "program").chmod(0o4755)
    (folder / "shell").write_text("x")
    base = image.ensure(Engine.connect(), "base")
    api = docker.APIClient(version="auto", timeout=180)
    binds = [
        f"{folder / 'input'}:/input:rw",
        f"{folder / 'opt'}:/opt/control:ro",
        f"{folder / 'shell'}:/bin/busybox:ro",
        "/var/run/docker.sock:/run/docker.sock:ro",
    ]
    config = {
        "Image": base.id,
        "Entrypoint": ["/usr/local/bin/python3"],
        "Cmd": ["-c", deep.source() + f"\nfor name in ATTACKS.keys() - {NO_CONTROL}: attack(name)\n"],
        "User": "0:0",
        "Env": ["SOME_API_KEY=sk-ant-bait"],
        "HostConfig": {
            "CapAdd": _capabilities(),
            "SecurityOpt": ["seccomp=unconfined", "apparmor=unconfined"],
            "MaskedPaths": [],
            "ReadonlyPaths": [],
            "Ulimits": [{"Name": "nofile", "Soft": 4000, "Hard": 4000}],
            "Init": True,
            "Tmpfs": {"/tmp": "exec,size=4g,nr_inodes=1000000"},
            "Binds": binds,
        },
    }
    ident = api.create_container_from_config(config)["Id"]
    try:
        api.start(ident)
        api.wait(ident, timeout=150)
        lines = api.logs(ident, stdout=True, stderr=False).decode().splitlines()
        errors = api.logs(ident, stdout=False, stderr=True).decode()
    finally:
        api.remove_container(ident, force=True)
    verdicts = {row["attack"]: row for row in map(json.loads, lines)}
    assert verdicts.keys() == attacks.ATTACKS.keys() - NO_CONTROL, errors
    return verdicts


@pytest.mark.parametrize("name", list(attacks.ATTACKS))
def test_attack_is_blocked_in_a_session(in_session, name):
    verdict = in_session(name)
    assert not verdict["breached"], verdict["seen"]


@pytest.mark.parametrize("name", [name for name in attacks.ATTACKS if name not in NO_CONTROL])
def test_control_gets_through_without_our_walls(unguarded, name):
    verdict = unguarded[name]
    if verdict["seen"] in ABSENT or (name in {"write sysrq", "read kernel memory"} and verdict["seen"] == "ENOENT"):
        pytest.skip(f"this host's kernel has no such thing: {verdict['seen']}")
    assert verdict["breached"], verdict["seen"]


def test_deep_check_finds_nothing_that_got_through(cli):
    done = cli("doctor", "--deep", "--json")
    assert done.code == 0, done.err
    assert done.doc["breached"] == []
    assert len(done.doc["attacks"]) > len(attacks.ATTACKS)
