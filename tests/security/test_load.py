"""Twenty sessions attack at once beside one that works: its work comes out right, and afterwards there is nothing left of any."""

import contextlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rlm_sandbox.wire import messages as m
from tests.support.cli import alive, docker, eventually

pytestmark = pytest.mark.security

MIB = 1 << 20
SESSIONS = 20
LEFT = 1024 * MIB
"""Of the host's free memory, what may differ afterwards: half of what the attackers were allowed, and far more than a machine breathes."""

FORGED = m.KernelDown(gen=1, cell=1, cause="exit", code=0, expired=False, dropped=0).encode() + b"\xff" * 64

ATTACKS = {
    "forks": "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
    "memory": "hog = []\nwhile True: hog.append(bytearray(1 << 20))",
    "output": "import os\nblock = b'\\x1b[31mx' * 10_000\nwhile True: os.write(1, block)",
    "forgery": f"import os, time\nfor fd in range(3, 1100):\n    try: os.write(fd, {FORGED!r})\n    except OSError: pass\ntime.sleep(60)",
    "files": "import os\nn = 0\nwhile True:\n    n += 1\n    try: open(f'/tmp/{n}', 'wb').write(bytes(65536))\n    except OSError: pass",
}


def available():
    lines = Path("/proc/meminfo").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith("MemAvailable")]
    return int(line.split()[1]) * 1024


def resident(pid):
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith("VmRSS")]
    return int(line.split()[1]) * 1024


def start(home, path, number):
    limits = ("--memory", "96m", "--cpus", "0.25", "--pids", "48", "--tmpfs", "8m", "--output-max", "1m")
    return home.start(path, "--session", f"attacker-{number}", *limits)["session"]


def processes(container):
    """Host process ids in a container; none when its attack has ended it since it was listed."""
    with contextlib.suppress(AssertionError):
        return [int(word) for word in docker("top", container, "-o", "pid").split()[1:]]
    return []


def attack(home, session, code):
    """Send an attack; it may be over, with its session, before the command is."""
    return home("exec", "--session", session, "--wait", "0.2", "--timeout", "60", stdin=code)


def test_an_honest_session_beside_twenty_attackers(fresh, log_file):
    elsewhere = fresh.path.parent / "tmp"
    elsewhere.mkdir()
    fresh.environment["TMPDIR"] = str(elsewhere)
    honest = fresh.start(log_file, "--session", "honest", "--memory", "256m")["session"]
    here = ("--session", honest)
    fresh.exec("answers = []", *here)
    before, free = resident(fresh.daemon), available()
    with ThreadPoolExecutor(4) as pool:
        attackers = list(pool.map(lambda number: start(fresh, log_file, number), range(SESSIONS)))
        ids = fresh.containers()
        assert len(ids) == SESSIONS + 1
        kinds = [ATTACKS[name] for name in (list(ATTACKS) * SESSIONS)[:SESSIONS]]
        sent = pool.map(lambda pair: attack(fresh, *pair), zip(attackers, kinds, strict=True))
        for number in range(8):
            done = fresh.exec(f"answers.append((len(grep('ERROR')), llm_query('question {number}')))", *here)
            assert done["status"] == "ok", done
        codes = [result.code for result in sent]
    assert set(codes) <= {0, 4, 8}, "an attack runs, or has cost its session"
    done = fresh.exec("FINAL(str(len(answers)) + ' ' + str({count for count, _ in answers}))", *here)
    assert fresh("final", *here).out == b"8 {2}"
    assert done["budget"]["calls"] == 8
    live = {entry["session"] for entry in fresh.ok("list")["sessions"]}
    assert honest in live
    assert not live & {f"attacker-{number}" for number in range(SESSIONS) if kinds[number] == ATTACKS["forgery"]}
    pids = [pid for ident in fresh.containers() for pid in processes(ident)]
    assert len(pids) <= (SESSIONS + 1) * 128

    fresh.ok("stop", "--all", timeout=120)
    assert fresh.containers() == []
    eventually(lambda: not [pid for pid in pids if alive(pid)], "a process is left")
    mounts = Path("/proc/self/mounts").read_text()
    assert not [ident for ident in ids if ident in mounts]
    assert list(elsewhere.iterdir()) == []
    assert not list(fresh.path.glob("sessions/*/stage"))
    assert resident(fresh.daemon) - before < 150 * MIB
    eventually(lambda: free - available() < LEFT, "memory did not come back", within=30)
    assert fresh.start(log_file)
