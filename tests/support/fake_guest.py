"""A live session whose container is played by the test: real session, store, journal and channel, no engine."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from rlm_sandbox.broker.types import Answer, Budget, Usage
from rlm_sandbox.container.admission import admit
from rlm_sandbox.session.channel import Channel
from rlm_sandbox.session.guest_settings import hello
from rlm_sandbox.session.journal import Journal
from rlm_sandbox.session.live import LiveSession
from rlm_sandbox.session.store import Store
from rlm_sandbox.settings.model import HostPolicy, Settings
from rlm_sandbox.wire import messages as m
from rlm_sandbox.wire.frames import FrameDecoder

if TYPE_CHECKING:
    from pathlib import Path

REPORT = m.Report(
    protocol=1, guest_version="0", python="3", uid=65534, gid=65534, groups=[], cap_eff="0", cap_prm="0", cap_bnd="0",
    cap_inh="0", cap_amb="0", no_new_privs=1, seccomp=2, socket_denied=True, dumpable=0, memory_max=1, swap_max=1,
    pids_max=1, cpu_milli=1, nofile=1, core=0, root_readonly=True, interfaces=["lo"], mounts=[], env=[],
    kernel_release="x", input_dev=0, input_ino=0, input_size=0, input_sample="",
)  # fmt: skip


class FakeContainer:
    """Plays :class:`rlm_sandbox.container.attach.Container`: ``say`` is the guest's voice, ``heard`` what it was told."""

    id = "f" * 64
    name = "fake"
    stderr_tail = ""

    def __init__(self) -> None:
        self._said: asyncio.Queue[bytes] = asyncio.Queue()
        self._decoder = FrameDecoder()
        self._inner = FrameDecoder()
        self._parse = m.parser(m.HOST_TO_AGENT)
        self._parse_inner = m.parser(m.HOST_TO_KERNEL)
        self.heard: list[m.Message] = []
        self.closed = 0
        self.close_error: Exception | None = None

    def say(self, *messages: m.Message | bytes) -> None:
        self._said.put_nowait(b"".join(each if isinstance(each, bytes) else each.encode() for each in messages))

    def kernel_says(self, gen: int, *messages: m.Message) -> None:
        for message in messages:
            self.say(m.KernelOut(gen, message.encode()))

    def hang_up(self) -> None:
        self._said.put_nowait(b"")

    async def hears(self, kind: type[m.Message]) -> Any:
        """Wait until a message of this kind has come, and take it."""
        async with asyncio.timeout(10):
            while True:
                for message in self.heard:
                    if isinstance(message, kind):
                        self.heard.remove(message)
                        return message
                await asyncio.sleep(0)

    async def read(self) -> bytes:
        return await self._said.get()

    def write(self, data: bytes) -> None:
        self._decoder.feed(data)
        for header, payload in self._decoder:
            message = self._parse(header, payload)
            if isinstance(message, m.KernelIn):
                self._inner.feed(message.payload)
                self.heard += [self._parse_inner(*frame) for frame in self._inner]
            else:
                self.heard.append(message)

    async def drain(self) -> None:
        """The fake takes everything at once."""

    async def close(self) -> None:
        self.closed += 1
        self.hang_up()
        if self.close_error is not None:
            raise self.close_error


class FakeAccount:
    """Answers every call with its own prompt in capitals."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.closed = 0
        self.gate = asyncio.Event()
        self.gate.set()

    async def ask(self, request: Any, position: Any, observer: Any = None) -> Answer:
        self.asked.append(request.prompt)
        await self.gate.wait()
        return Answer(request.prompt.upper(), "m", Usage(1, 1))

    async def budget(self) -> Budget:
        return Budget(0, 100, 0, 0, 0, 0, None, None, False, 0, None, 0, 0, 0, 0, None, None, None)

    def take_warnings(self) -> list[str]:
        return []

    async def close(self) -> None:
        self.closed += 1


class Played:
    """A session with its parts at hand."""

    def __init__(self, live: LiveSession, container: FakeContainer, account: FakeAccount, journal: Journal) -> None:
        self.live = live
        self.container = container
        self.account = account
        self.journal = journal

    def boot(self, gen: int) -> None:
        """A kernel comes up."""
        self.container.say(m.KernelUp(gen))
        self.container.kernel_says(gen, m.Ready())

    def execute(self, code: bytes = b"1", **options: Any) -> asyncio.Task[Any]:
        given = {"timeout_s": None, "wait_s": None, "stdout_max": None, **options}
        return asyncio.create_task(self.live.execute(code, **given))

    async def finish(self, gen: int, cell: int, status: str = "ok", payload: bytes = b"") -> None:
        """Play the end of a cell."""
        self.container.kernel_says(gen, m.Result(cell, status, [], 0, [], payload))
        await self.container.hears(m.CellEnd)
        self.container.say(m.CellClosed(cell, 0, 0))


async def played(folder: Path, **settings: Any) -> Played:
    """Start a session on a small file in ``folder``; its first kernel has not come up yet."""
    path = folder / "input.txt"
    path.write_text("some input\n")
    path.chmod(0o644)
    admitted = admit(path, stage_dir=folder / "stage")
    store = Store(folder / "sessions", "played")
    store.claim()
    container, account, journal = FakeContainer(), FakeAccount(), Journal(store.folder)
    given = Settings(**settings)
    channel = Channel(container)
    container.say(REPORT)
    await channel.greet(hello("played", given))
    channel.send(m.Go(b"{}"))
    live = LiveSession(
        session="played", channel=channel, account=account, admitted=admitted, store=store, journal=journal, settings=given,
        policy=HostPolicy(), provider="scripted", model="m", runtime="runc",
    )  # fmt: skip
    live.begin()
    return Played(live, container, account, journal)
