"""The sandbox attacked on the user's own engine: a throwaway session, every probe, a table of what was seen.

Attacks whose outcome shows inside run as :mod:`rlm_sandbox.doctor.attacks`; those that end the interpreter or the session are judged from here.
A row passes only when the attack was seen to be stopped: a probe that could not run is a failure, not a pass.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import tempfile
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlm_sandbox.doctor import attacks
from rlm_sandbox.errors import NoSuchSession, ProtocolError, RLMError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Call = Callable[..., dict[str, Any]]

SECRET = "rlm-doctor-filtered-secret"  # noqa: S105 - bait that the guest must not see
FLOOD = 256 * 2**20
"""Bytes of output in the flood probe: four times what is kept of one cell."""


@dataclass(frozen=True)
class Row:
    """One attack and what became of it."""

    attack: str
    expected: str
    seen: str
    blocked: bool


def source() -> str:
    """Return the attacks as the text of a cell."""
    return resources.files(attacks.__package__ or "").joinpath("attacks.py").read_text(encoding="utf-8")


def run(call: Call, *, runtime: str | None = None, image: str | None = None) -> list[Row]:
    """Attack a throwaway session through ``call(op, arguments, body)`` and return the rows. Raises what ``start`` raises."""
    with tempfile.TemporaryDirectory(prefix="rlm-doctor-") as folder:
        bait = _bait(Path(folder))
        flags = {"provider": "scripted", "runtime": runtime, "image": image, "memory": "512m", "budget_limit": 5}
        start = {"input": str(bait), "flags": {name: value for name, value in flags.items() if value is not None}}
        with _session(call, start) as session:
            rows = [
                *_inside(call, session, own_kernel=_own_kernel(runtime)),
                *_outside(call, session),
                _filtered(call, session),
            ]
            before = _digest(bait / "data.txt")
            rows.append(Row("input unchanged on the host", "same digest", "same digest", before == _BAIT_DIGEST))
        with _session(call, start) as session:
            rows.append(_forged(call, session))
    return rows


def document(rows: list[Row]) -> dict[str, Any]:
    """Return the public shape of a deep check."""
    return {"attacks": [asdict(row) for row in rows], "breached": [row.attack for row in rows if not row.blocked]}


_BAIT_TEXT = "line one\nline two\n"
_BAIT_DIGEST = hashlib.sha256(_BAIT_TEXT.encode()).hexdigest()


def _bait(folder: Path) -> Path:
    inside = folder / "input"
    inside.mkdir()
    (inside / "data.txt").write_text(_BAIT_TEXT)
    (inside / ".env").write_text(f"KEY={SECRET}\n")
    (folder / "secret").write_text(SECRET)
    (inside / "link.txt").symlink_to(folder / "secret")
    return inside


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@contextlib.contextmanager
def _session(call: Call, start: dict[str, Any]) -> Iterator[str]:
    session = str(call("start", start)["session"])
    try:
        yield session
    finally:
        with contextlib.suppress(RLMError):
            call("stop", {"session": session})


def _cell(call: Call, session: str, code: str, timeout: float = 60.0) -> dict[str, Any]:
    return call("exec", {"session": session, "timeout": timeout, "stdout_max": 100_000}, code.encode())


IN_OWN_KERNEL = {
    "environment of process 1": "readable: the variables that cells have themselves",
    "descriptors of process 1": "reachable: forged frames end that session",
    "fill the scratch space with files": "bounded by the memory limit",
}
"""What gVisor does not keep from a cell, and why it does not matter there: see docs/engines.md."""

ENDED_BY_LIMITS = {"fork bomb", "fill the scratch space with files"}
"""These may cost the attacker its interpreter instead of an error, where memory ends before processes or files do."""


def _own_kernel(runtime: str | None) -> bool:
    return (runtime or "").startswith("runsc")


def _inside(call: Call, session: str, *, own_kernel: bool) -> Iterator[Row]:
    _cell(call, session, source())
    for name in attacks.ATTACKS:
        done = _cell(call, session, f"attack({name!r})")
        expected = IN_OWN_KERNEL.get(name, "blocked") if own_kernel else "blocked"
        try:
            verdict = json.loads(done["stdout"].strip().splitlines()[-1])
            yield Row(name, expected, str(verdict["seen"]), not verdict["breached"] or expected != "blocked")
        except (ValueError, IndexError, KeyError):
            ended = name in ENDED_BY_LIMITS and done["status"] == "kernel_died"
            seen = f"{'' if ended else 'no verdict: '}{done['status']} {done['error'] or ''}"
            yield Row(name, expected, seen[:120], blocked=ended)
            _cell(call, session, source())  # the interpreter may be a new one


_STUBBORN = "while True:\n    try:\n        while True: pass\n    except BaseException: pass"

_OUTSIDE = (
    ("memory bomb", "kernel_died, memory", "x = []\nwhile True: x.append(bytearray(10**7))", 60.0),
    ("endless loop", "timeout", "while True: pass", 1.0),
    ("loop that ignores interrupts", "kernel_died or timeout", _STUBBORN, 1.0),
    ("exit of the interpreter", "kernel_died", "import os; os._exit(7)", 30.0),
    ("segmentation fault", "kernel_died", "import ctypes; ctypes.string_at(0)", 30.0),
    ("hostile repr", "error", "class E(Exception):\n    def __str__(self): raise E()\nraise E()", 30.0),
)


def _outside(call: Call, session: str) -> Iterator[Row]:
    for name, expected, code, timeout in _OUTSIDE:
        done = _cell(call, session, code, timeout)
        alive = _cell(call, session, "print('alive')")
        good = done["status"] in expected and alive["stdout"] == "alive\n"
        if "memory" in expected:
            good = good and "memory" in (done["error"] or "")
        yield Row(name, f"{expected}; session usable", f"{done['status']}; then {alive['status']}", good)
    flood = _cell(call, session, f"import os\nb = b'x' * 2**20\nfor _ in range({FLOOD >> 20}): os.write(1, b)")
    kept = Path(flood["stdout_full_path"]).stat().st_size if flood["stdout_full_path"] else -1
    yield Row("output flood", "bounded", f"{FLOOD >> 20} MiB written, {kept >> 20} MiB kept", 0 < kept < FLOOD)
    escape = _cell(call, session, r"print('\x1b]52;c;eA==\x07\x9b31m\u202e\r')")
    raw = any(character in escape["stdout"] for character in "\x1b\x07\x9b\u202e\r")
    yield Row("terminal escapes in output", "shown as text", "raw" if raw else "shown as text", not raw)


def _filtered(call: Call, session: str) -> Row:
    code = (
        "import os\nfound = [os.path.join(r, n) for r, _, names in os.walk('/input') for n in names]\n"
        "print(any('" + SECRET + "' in open(p, errors='replace').read() for p in found), len(found))"
    )
    seen = _cell(call, session, code)["stdout"].strip()
    return Row("filtered files and links out of the input", "not in the container", seen, seen.startswith("False"))


def _forged(call: Call, session: str) -> Row:
    code = (
        "import os, stat\nframe = b'\\xff' * 8 + b'[' * 4096\n"
        "for fd in range(3, 4096):\n"
        "    try:\n"
        "        if stat.S_ISFIFO(os.fstat(fd).st_mode) or stat.S_ISSOCK(os.fstat(fd).st_mode): os.write(fd, frame)\n"
        "    except OSError: pass\n"
        "import time; time.sleep(5)"
    )
    expected = "the end of that session"
    try:
        done = _cell(call, session, code, 20.0)
    except (ProtocolError, NoSuchSession) as exc:
        return Row("forged frames", expected, exc.message[:120], blocked=True)
    return Row("forged frames", expected, f"{done['status']}", blocked=done["status"] == "kernel_died")
