import asyncio
import random
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from rlm_sandbox.container import gc
from rlm_sandbox.container.launch import launch
from rlm_sandbox.container.profile import Mount, RunProfile
from rlm_sandbox.errors import DeadlineError, EngineError, InputError, PrerequisiteError, ProtocolError, UsageError

pytestmark = pytest.mark.container

ECHO = """
    import sys
    for line in sys.stdin.buffer:
        sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()
"""


def ours(engine, label="rlm-sandbox.test=1"):
    return engine.api.containers(all=True, filters={"label": [label]})


async def test_the_guest_is_silent_until_it_is_spoken_to_and_nothing_is_lost(start):
    container = await start(ECHO)
    container.write(b"hello\n")
    assert await container.read() == b"hello\n"
    await container.close()


async def test_ten_megabytes_go_both_ways_unharmed(start):
    container = await start(ECHO)
    sent = b"".join(bytes(random.Random(i).choices(range(32, 127), k=1023)) + b"\n" for i in range(10)) * 1000

    async def feed():
        for at in range(0, len(sent), 100_000):
            container.write(sent[at : at + 100_000])
            await container.drain()

    feeding = asyncio.create_task(feed())
    got = b""
    async with asyncio.timeout(60):
        while len(got) < len(sent):
            got += await container.read()
    await feeding
    assert got == sent
    await container.close()


async def test_stderr_is_kept_apart_as_a_bounded_printable_tail(start):
    container = await start(r"""
        import sys
        sys.stderr.write("x" * 100_000 + "\x1b[31mend\n")
        sys.stdout.write("out")
    """)
    assert await container.read() == b"out"
    assert await container.read() == b""
    assert container.stderr_tail.endswith("xx\\x1b[31mend\n")
    assert len(container.stderr_tail) < 20_000
    await container.close()


@pytest.mark.parametrize(("code", "expected"), [("raise SystemExit(7)", 7), ("import os; os._exit(9)", 9)])
async def test_how_it_ended_is_known_although_the_container_is_gone(start, code, expected):
    container = await start(code)
    while await container.read():
        pass
    facts = await container.exit_facts()
    assert (facts.code, facts.oom) == (expected, False)
    await container.close()


async def test_a_guest_killed_for_memory_is_told_apart(start):
    container = await start("x = b'1' * (1 << 30)", memory=128 << 20)
    while await container.read():
        pass
    facts = await container.exit_facts()
    assert (facts.code, facts.oom) == (137, True)
    await container.close()


async def test_a_guest_that_stops_reading_runs_into_a_deadline_and_a_limit(start):
    container = await start("import time; time.sleep(60)")
    container.write(b"x" * (8 << 20))
    with pytest.raises(DeadlineError):
        await container.drain(0.3)
    for _ in range(50):
        container.write(b"x" * (1 << 20))
    with pytest.raises(ProtocolError, match="does not read"):
        container.write(b"x" * (8 << 20))
    await container.close()


async def test_a_guest_that_floods_is_held_back_by_the_host_not_buffered(start):
    container = await start("import sys\nwhile True: sys.stdout.buffer.write(b'x' * 1000000)")
    await asyncio.sleep(1)
    assert len(await container.read()) < 4 << 20
    await container.close()


async def test_closing_twice_and_at_once_leaves_nothing(engine, start):
    container = await start("import time; time.sleep(60)")
    await asyncio.gather(container.close(), container.close())
    await container.close()
    assert await container.read() == b""
    assert container.id not in {row["Id"] for row in ours(engine)}


async def test_killing_a_container_that_is_gone_is_fine(start):
    container = await start("pass")
    while await container.read():
        pass
    await container.kill()
    await container.close()
    await container.kill()


async def test_a_container_that_dies_while_it_is_written_to_ends_quietly(start):
    container = await start("import sys; sys.stdin.readline()")
    container.write(b"go\n")
    async with asyncio.timeout(30):
        while await container.read():
            pass
    for _ in range(20):
        container.write(b"x" * 100_000)
        await container.drain()
    await container.close()


async def test_a_launch_cancelled_at_any_moment_leaves_no_container(engine, base):
    labels = {"rlm-sandbox.test": "cancel"}

    class NoInput:
        mounts = ()

    for step in range(12):
        task = asyncio.create_task(launch(engine, base, RunProfile(), NoInput(), labels))
        await asyncio.sleep(step * 0.012)
        task.cancel()
        try:
            container = await task
        except asyncio.CancelledError:
            continue
        await container.close()
    assert ours(engine, "rlm-sandbox.test=cancel") == []


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"mounts": [Mount("/no/such/path", "/input/x")]}, InputError),
        ({"runtime": "nosuch"}, PrerequisiteError),
        ({"cpus": 4096.0}, UsageError),
    ],
)
async def test_a_launch_that_fails_says_whose_fault_it_was_and_leaves_nothing(engine, start, change, kind):
    with pytest.raises(kind):
        await start("pass", **change)
    assert ours(engine) == []


async def test_a_program_that_is_not_in_the_image_fails_at_the_start(engine, base):
    class Shell(RunProfile):
        def to_config(self, *args):
            return {**super().to_config(*args), "Entrypoint": ["/bin/sh"]}

    class NoInput:
        mounts = ()

    with pytest.raises(EngineError.__mro__[1], match="/bin/sh"):
        await launch(engine, base, Shell(), NoInput(), {"rlm-sandbox.test": "1"})
    assert ours(engine) == []


def test_when_the_host_process_is_killed_the_container_goes(engine, base):
    code = textwrap.dedent("""
        import asyncio, os, sys
        from rlm_sandbox.container import image
        from rlm_sandbox.container.engine import Engine
        from rlm_sandbox.container.launch import launch
        from rlm_sandbox.container.profile import RunProfile
        class NoInput: mounts = ()
        async def main():
            engine = Engine.connect()
            found = image.find(engine, sys.argv[1])
            container = await launch(engine, found, RunProfile(), NoInput(), {"rlm-sandbox.test": "kill"})
            print(container.id, flush=True)
            await asyncio.sleep(60)
        asyncio.run(main())
    """)
    host = subprocess.Popen([sys.executable, "-c", code, base.id], stdout=subprocess.PIPE, text=True)
    ident = host.stdout.readline().strip()
    assert ident in {row["Id"] for row in ours(engine, "rlm-sandbox.test=kill")}
    host.send_signal(signal.SIGKILL)
    host.wait()
    host.stdout.close()
    deadline = time.monotonic() + 20
    while ours(engine, "rlm-sandbox.test=kill") and time.monotonic() < deadline:
        time.sleep(0.1)
    assert ours(engine, "rlm-sandbox.test=kill") == []


async def test_an_orphan_is_found_by_its_labels_and_nobody_elses_is_touched(engine, base, tmp_path):
    class NoInput:
        mounts = ()

    def labels(session, owner, home, deadline):
        return gc.labels(session=session, owner=owner, home=home, deadline=deadline)

    later = time.time() + 600
    made = {
        "orphan": labels("orphan", "dead", tmp_path, later),
        "late": labels("late", "alive", tmp_path, time.time() - 5),
        "live": labels("live", "alive", tmp_path, later),
        "other": labels("other", "dead", tmp_path / "elsewhere", later),
    }
    containers = {name: await launch(engine, base, RunProfile(), NoInput(), marks) for name, marks in made.items()}
    try:
        removed = await asyncio.to_thread(gc.collect, engine, tmp_path, owner_alive=lambda owner: owner == "alive")
        assert sorted(found.session for found in removed) == ["late", "orphan"]
        left = gc.containers(engine, tmp_path)
        assert [(found.session, found.owner, found.state) for found in left] == [("live", "alive", "running")]
        assert [found.session for found in gc.containers(engine, tmp_path / "elsewhere")] == ["other"]
    finally:
        for container in containers.values():
            await container.close()
