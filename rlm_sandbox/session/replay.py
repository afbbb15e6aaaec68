"""Running a record again, offline: a fresh locked container, no account, every answer from the journal.

Each cell is run in order and compared with its record; the first difference ends the replay and is told. Where an interpreter died, or a session
was reopened, the replay gets a fresh interpreter with the same cells in it as the record says. A cell that killed its interpreter is left out,
as it was when the run went on. What comes from the record is a stranger's word: settings are validated and limited by this host's policy.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import shutil
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlm_sandbox import settings as environment
from rlm_sandbox.broker.types import Answer, Budget, CallEvent
from rlm_sandbox.container.image import NAMES
from rlm_sandbox.container.profile import default_cpus
from rlm_sandbox.errors import BundleError, DivergenceError, UsageError
from rlm_sandbox.session.compare import apart, difference
from rlm_sandbox.session.fingerprint import Pace, take
from rlm_sandbox.session.host import Host
from rlm_sandbox.session.pack import BLOB_MAX
from rlm_sandbox.session.recorder import Divergence
from rlm_sandbox.session.resume import seconds_for
from rlm_sandbox.session.start import StartRequest
from rlm_sandbox.session.store import AGAIN_FINAL
from rlm_sandbox.settings.model import load, load_policy

if TYPE_CHECKING:
    from collections.abc import Callable

    from rlm_sandbox.broker.types import Position, Request
    from rlm_sandbox.container.admission import Admitted
    from rlm_sandbox.session.cell import CellRun
    from rlm_sandbox.session.compare import Difference
    from rlm_sandbox.session.live import LiveSession
    from rlm_sandbox.session.past import Past, PastCell

MEMORY_MAX = 16 * 2**30
"""What a foreign record may claim where no policy says less: a workstation's share."""

OUTPUT_MAX = 2**30
"""Bytes of one cell's output that are listened to, whatever a foreign record says."""

STRONGER = ("runsc", "kata")
"""Runtimes that a record may ask for; any other is this host's own choice."""

_TAKEN = (
    "image",
    "runtime",
    "memory",
    "cpus",
    "pids",
    "tmpfs",
    "tmpfs_files",
    "shm",
    "open_files",
    "output_max",
    "context_str_max",
    "max_per_file_bytes",
    "concurrency",
    "clock",
)
"""Settings of the record that change what cells see."""

_GO_NUMBERS = ("str_max", "concurrency", "window", "max_prompt_bytes", "seed", "epoch")
_GUEST_FILE = re.compile(r"/input/[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class NoAccount:
    """The part of an account that a session without one needs: nothing spent, nothing to spend, nothing for sale."""

    async def ask(
        self, request: Request, position: Position, observer: Callable[[CallEvent], None] | None = None
    ) -> Answer:
        """Refuse."""
        del request, position, observer
        raise DivergenceError("a replay buys nothing", hint="")

    async def budget(self) -> Budget:
        """Return zeros."""
        return Budget(0, None, 0, 0, 0, 0, None, None, False, 0, None, 0, 0, 0, 0, None, None, None)

    def take_warnings(self) -> list[str]:
        """Return none."""
        return []

    async def close(self) -> None:
        """Nothing is open."""


@dataclass(frozen=True)
class Rehearsal:
    """What makes a start a replay. ``recorded`` is the kernel's payload of the record."""

    recorded: dict[str, Any]

    def account(self) -> NoAccount:
        """Return the account."""
        return NoAccount()

    def dress(self, admitted: Admitted) -> Admitted:
        """Give a file the place and name it had, wherever it lies now."""
        source = self.recorded.get("input")
        if admitted.kind != "file" or not isinstance(source, dict):
            return admitted
        path, name = source.get("path"), source.get("name")
        if (
            not isinstance(path, str)
            or not _GUEST_FILE.fullmatch(path)
            or not isinstance(name, str)
            or len(name) > 4096  # noqa: PLR2004 - PATH_MAX
        ):
            return admitted
        old = admitted.config["path"]
        admitted.mounts = tuple(replace(each, target=path) if each.target == old else each for each in admitted.mounts)
        admitted.config = {**admitted.config, "path": path, "name": name}
        return admitted

    def go(self, own: bytes) -> bytes:
        """Return the kernel's payload: the input as it is here, the rest as recorded."""
        payload = json.loads(own)
        for name in _GO_NUMBERS:
            value = self.recorded.get(name)
            if type(value) is int and 0 <= value < 2**53:
                payload[name] = value
        session = self.recorded.get("session")
        if isinstance(session, str) and len(session) <= 64:  # noqa: PLR2004 - the longest name
            payload["session"] = session
        return json.dumps(payload).encode()


@dataclass
class Replayed:
    """What came of a replay. ``final`` is the answer's bytes, None without one."""

    cells: int = 0
    calls: int = 0
    divergence: Divergence | None = None
    differs: str | None = None
    final: bytes | None = None
    image: str = ""
    notes: list[str] = field(default_factory=list)
    elapsed_ms: int = 0

    @property
    def final_sha256(self) -> str | None:
        """The digest of the answer."""
        return None if self.final is None else hashlib.sha256(self.final).hexdigest()


async def replay(
    past: Past,
    read: Callable[[str], bytes],
    source: Path,
    *,
    home: Path,
    progress: Callable[[str], None] = lambda _: None,
) -> Replayed:
    """Run a record again on the input at ``source``.

    Raises:
        UsageError: the record holds nothing that can be run.
        RLMError: the container could not be started.
    """
    if past.latest is None or past.start is None:
        raise UsageError("this record holds no run", hint="export a session in which cells have run")
    began = time.monotonic()
    (home / "tmp").mkdir(mode=0o700, parents=True, exist_ok=True)
    folder = await asyncio.to_thread(_scratch, home)
    stage = _Stage(past, read, source, home, progress)
    try:
        stage.host = await Host.open(folder, engine_host=environment.engine_host())
        # What is bought from whom is no matter of a replay: answers come from the record.
        stage.host.policy = load_policy(home).model_copy(update={"providers": None, "models": None})
        await stage.run()
    finally:
        if stage.host is not None:
            await stage.host.close()
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
    stage.outcome.elapsed_ms = round(1000 * (time.monotonic() - began))
    return stage.outcome


def _scratch(home: Path) -> Path:
    return Path(tempfile.mkdtemp(prefix="replay-", dir=home / "tmp"))


class _Stage:
    """One replay under way: the session it has now and which cells' work its interpreter holds."""

    def __init__(
        self, past: Past, read: Callable[[str], bytes], source: Path, home: Path, progress: Callable[[str], None]
    ) -> None:
        self.host: Host | None = None
        self.outcome = Replayed()
        self._past = past
        self._read = read
        self._source = source
        self._progress = progress
        self._own = load({}, environment.client_environment(), home)
        self._live: LiveSession | None = None
        self._held: list[int] = []
        self._clean = True

    async def run(self) -> None:
        """Take every step of the record until one differs."""
        await self._fresh()
        if not await self._same_input():
            return
        for step in self._past.steps:
            if step.cell is None:
                self._clean = step.clean
                if self._held != list(step.state):
                    await self._fresh()
                    await self._set_up(step.state)
                continue
            if not await self._step(self._past.cells[step.cell]):
                return
        self._check_final()

    async def _fresh(self) -> None:
        """Start a container in place of the one there is."""
        assert self.host is not None and self._past.latest is not None  # noqa: S101, PT018 - the caller made both
        if self._live is not None:
            await self.host.stop(self._live.session)
        first = self._past.latest
        request = StartRequest(
            input=str(self._source),
            glob=first.input.glob,
            exclude=first.input.exclude,
            mode="auto" if first.input.mode == "bind" else first.input.mode,
            flags=self._flags(first.settings),
            rehearsal=Rehearsal(dict(first.go)),
        )
        started = await self.host.start(request, self._progress)
        self._live, self._held = self.host.find(started.session), []
        await self._live.until_ready()
        self._compare_image(first.image.id)

    def _flags(self, recorded: dict[str, Any]) -> dict[str, Any]:
        assert self.host is not None and self._past.latest is not None  # noqa: S101, PT018 - as above
        policy, own = self.host.policy, self._own
        flags = {name: recorded.get(name) for name in _TAKEN}
        memory = recorded.get("memory")
        memory = min(policy.max_memory or MEMORY_MAX, memory if type(memory) is int else MEMORY_MAX)
        bounds: dict[str, tuple[float | None, ...]] = {
            "memory": (memory,),
            "cpus": (default_cpus(), policy.max_cpus),
            "pids": (policy.max_pids,),
            "tmpfs": (memory, policy.max_tmpfs),  # scratch space is memory, of which this host may grant less
            "tmpfs_files": (policy.max_tmpfs_files,),
            "shm": (memory, policy.max_shm),
            "open_files": (policy.max_open_files,),
            "output_max": (OUTPUT_MAX, policy.max_output),
        }
        for name, most in bounds.items():
            value: Any = flags[name]
            usable = isinstance(value, int | float) and not isinstance(value, bool)
            flags[name] = min([value, *(each for each in most if each is not None)]) if usable else None
            if usable and flags[name] != value:
                self._note(f"{name} is {flags[name]} here, {value} in the record")
        if flags["image"] not in NAMES:
            self._note(f"the record's image {str(flags['image'])[:80]!r} is not ours to run; base is used")
            flags["image"] = "base"
        runtime = flags["runtime"]
        if own.runtime or not (isinstance(runtime, str) and runtime.startswith(STRONGER)):
            flags["runtime"] = own.runtime
        flags.update(provider="scripted", sub_model=self._past.latest.model, idle_timeout=30 * 86400.0)
        try:
            load(flags, {}, self.host.home)
        except UsageError as exc:
            raise BundleError(
                f"the record's settings make no sense: {exc.message}", hint="no session of this program had them"
            ) from exc
        return flags

    def _compare_image(self, recorded: str) -> None:
        used = str(self._live.image_id) if self._live is not None else ""
        self.outcome.image = used
        note = f"the base image is another one here ({used[:19]}, recorded {recorded[:19]})"
        if used != recorded:
            self._note(note)

    def _note(self, note: str) -> None:
        if note not in self.outcome.notes:
            self.outcome.notes.append(note)

    async def _same_input(self) -> bool:
        assert self._live is not None  # noqa: S101 - just started
        recorded = self._past.input.digest if self._past.input else None
        if recorded is None:
            self.outcome.notes.append("the record does not say what the input was, so it could not be compared")
            return True
        here = await asyncio.to_thread(take, self._live.admitted, Pace(gentle=False))
        if here.digest == recorded:
            return True
        self._differs("input", Divergence(0, None, f"the input is not the recorded one (sha256 {recorded[:16]}...)"))
        return False

    def _differs(self, field_: str, divergence: Divergence) -> None:
        self.outcome.differs, self.outcome.divergence = field_, divergence

    async def _set_up(self, state: tuple[int, ...]) -> None:
        for number in state:
            await self._run(self._past.cells[number])
        self._held = list(state)

    async def _step(self, cell: PastCell) -> bool:
        """Run a cell and compare; False ends the replay."""
        if cell.status == "kernel_died":
            self.outcome.notes.append(f"cell {cell.number} ended its interpreter and was left out")
            return True
        self._progress(f"replaying cell {cell.number} of {len(self._past.cells)}")
        script_calls = len(cell.calls)
        run, found = await self._run(cell)
        self.outcome.cells += 1
        self.outcome.calls += script_calls
        if found is not None:
            self._differs("call", found)
            return False
        self._held.append(cell.number)
        assert self._live is not None  # noqa: S101 - it ran
        variables = self._live.chronicle.variables if self._clean else None
        unlike = difference(cell, run, variables, self._read)
        if unlike is not None and unlike.field == "final":
            unlike = self._answers(cell, run) or unlike
        if unlike is not None:
            self._differs(unlike.field, Divergence(cell.number, None, str(unlike)))
            return False
        if cell.cut_by_clock:
            self.outcome.notes.append(f"cell {cell.number} was ended by the clock; its output is not compared")
        if run.final_digest is not None:
            self.outcome.final = (self._live.store.folder / AGAIN_FINAL).read_bytes()
        return True

    def _answers(self, cell: PastCell, run: CellRun) -> Difference | None:
        """Return where two final answers part, in their own words; None where one of them is missing or not in the record."""
        assert self._live is not None  # noqa: S101 - it ran
        recorded = cell.result.final if cell.result is not None else None
        if recorded is None or recorded.text is None or run.final_digest is None or run.final_bytes > BLOB_MAX:
            return None
        try:
            before = self._read(recorded.text)
        except KeyError:
            return None
        now = (self._live.store.folder / AGAIN_FINAL).read_bytes()
        return apart("final", before.decode("utf-8", "backslashreplace"), now.decode("utf-8", "backslashreplace"))

    async def _run(self, cell: PastCell) -> tuple[Any, Divergence | None]:
        assert self._live is not None and self.host is not None  # noqa: S101, PT018 - started
        chronicle = self._live.chronicle
        chronicle.recorder.divergence = None
        chronicle.recorder.rerun(cell, self._read, strict=True)
        try:
            code = self._read(cell.code)
        except KeyError:
            raise UsageError(
                "this record is redacted: it holds no code to run", hint="export it without --redact"
            ) from None
        seconds = min(seconds_for(cell), self.host.policy.max_cell_timeout)
        run = await chronicle.run_again(code, cell.number, seconds)
        return run, chronicle.recorder.divergence

    def _check_final(self) -> None:
        recorded = self._past.final
        if recorded is None or self.outcome.divergence is not None:
            return
        if self.outcome.final_sha256 != recorded.digest:
            what = f"the final answer is not the recorded one (sha256 {recorded.digest[:16]}...)"
            self._differs("final", Divergence(self._past.final_cell, None, what))
