"""The Python API: synchronous and not, through the daemon and in this process, with the same documents and errors."""

import asyncio
import subprocess
import sys

import pytest

from rlm_sandbox import AsyncSession, Session, models
from rlm_sandbox.errors import InputError, NoSuchSession, PolicyError, UsageError

pytestmark = pytest.mark.container

WAYS = pytest.mark.parametrize("in_process", [False, True], ids=["daemon", "in process"])


@pytest.fixture(autouse=True)
def at_home(fresh, monkeypatch):
    for name in ("ANTHROPIC_API_KEY", "OPENAI_API_KEY", "LLM_API_KEY", "LLM_PROVIDER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RLM_SANDBOX_HOME", str(fresh.path))
    return fresh


@WAYS
def test_a_session_as_a_context_manager(log_file, fresh, in_process):
    with Session(log_file, provider="scripted", budget=3, in_process=in_process) as session:
        assert session.started.budget_limit == 3
        done = session.exec("x = [1, 2]; print(len(context)); llm_query('q'); FINAL_VAR('x')")
        assert isinstance(done, models.Executed)
        assert (done.status, done.final.kind, done.budget.calls) == ("ok", "var", 1)
        assert session.final() == b"[1, 2]"
        assert session.status().variables[-1].name == "x"
        assert session.budget(set=5).limit == 5
        assert len(fresh.containers()) == 1
    session.stop()
    assert fresh.containers() == []


@WAYS
def test_errors_are_exceptions(log_file, tmp_path, in_process):
    with pytest.raises(InputError):
        Session(tmp_path / "absent", provider="scripted", in_process=in_process)
    with pytest.raises(UsageError, match="no_such_option"):
        Session(log_file, provider="scripted", no_such_option=1, in_process=in_process)
    with Session(log_file, provider="scripted", in_process=in_process) as session:
        assert session.exec("1/0").status == "error"
        with pytest.raises(PolicyError):
            session.exec("1", timeout=10**6)
        with pytest.raises(UsageError):
            session.exec("1", timeout=-1)
    with pytest.raises(NoSuchSession):
        session.exec("1")


@WAYS
async def test_waiting_and_interrupting(log_file, in_process):
    async with await AsyncSession.start(log_file, provider="scripted", in_process=in_process) as session:
        running = await session.exec("import time; time.sleep(60)", wait=0.2)
        assert running.status == "running"
        assert (await session.interrupt()).status == "interrupted"
        assert (await session.exec("time.sleep(9)", timeout=0.3)).status == "timeout"
        assert (await session.wait()).cell == 2


@WAYS
async def test_many_sessions_at_once(log_file, fresh, in_process):
    sessions = await asyncio.gather(
        *(AsyncSession.start(log_file, provider="scripted", in_process=in_process) for _ in range(3))
    )
    done = await asyncio.gather(*(one.exec(f"print({number})") for number, one in enumerate(sessions)))
    assert [each.stdout for each in done] == ["0\n", "1\n", "2\n"]
    await asyncio.gather(*(one.stop() for one in sessions))
    assert fresh.containers() == []


def test_both_ways_at_once_on_one_state_folder(tmp_path, fresh):
    (tmp_path / "a.txt").write_text("staged\n")
    with Session(tmp_path, provider="scripted", in_process=True) as own:
        assert own.exec("print(len(files))").stdout == "1\n"
        with Session(tmp_path, provider="scripted") as daemons:
            fresh.ok("gc")
            assert own.exec("print(open('/input/tree/a.txt').read())").stdout == "staged\n\n"
            assert daemons.exec("print(files['a.txt'])").stdout == "staged\n\n"
            with pytest.raises(UsageError, match="live in another process"):
                Session(tmp_path, provider="scripted", session=own.id)
        assert own.exec("print(2)").stdout == "2\n"


def test_a_program_that_ends_without_stopping_leaves_no_container(log_file, fresh):
    code = (
        "from rlm_sandbox import Session\n"
        f"s = Session({str(log_file)!r}, provider='scripted', in_process=True)\n"
        "print(s.exec('print(7)').stdout)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=fresh.env(), capture_output=True, timeout=60, check=False, text=True
    )
    assert done.stdout == "7\n\n", done.stderr


async def test_state_of_an_in_process_session_is_private(log_file, fresh):
    async with await AsyncSession.start(log_file, provider="scripted", in_process=True) as session:
        await session.exec("print('x' * 9999); llm_query('q'); FINAL('a')")
        loose = [path for path in (fresh.path, *fresh.path.rglob("*")) if path.stat().st_mode & 0o077]
        assert loose == []
