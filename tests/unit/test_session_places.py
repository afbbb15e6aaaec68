"""Sessions that lie elsewhere than in the state folder are found by whoever has no variable set."""

import asyncio
import json
from types import SimpleNamespace

import pytest

from rlm_sandbox.daemon.record_ops import erase, latest
from rlm_sandbox.errors import NoSuchSession, UsageError
from rlm_sandbox.record import history
from rlm_sandbox.record.recording import folder_of
from rlm_sandbox.session import places
from rlm_sandbox.session.store import Store
from tests.support.recorded import record_run

pytestmark = pytest.mark.unit


@pytest.fixture
def home(tmp_path):
    folder = tmp_path / "home"
    folder.mkdir()
    return folder


def put(root, name):
    store = Store(root, name)
    store.create()
    store.save_meta({"input": "/data/app.log", "provider": "p", "model": "m", "request": {}})
    record_run(store.folder)
    store.final.write_text(name)
    return store.folder


def test_the_usual_place_is_not_noted_and_another_is_noted_once(home, tmp_path):
    for _ in range(2):
        places.note(home, home / "sessions")
        places.note(home, tmp_path / "with a\nline and \udcff")
        places.note(home, tmp_path / "b")
    assert places.roots(home) == [home / "sessions", tmp_path / "with a\nline and \udcff", tmp_path / "b"]
    assert len((home / "places").read_bytes().splitlines()) == 2
    assert places.roots(home, str(tmp_path / "b"))[0] == tmp_path / "b"


def test_places_that_are_gone_are_forgotten(home, tmp_path):
    places.note(home, tmp_path / "gone")
    places.note(home, tmp_path)
    places.prune(home)
    assert places.roots(home) == [home / "sessions", tmp_path]


@pytest.mark.parametrize("raw", [b"", b"\xff\n", b'"relative"\n7\n[]\n"/torn', b'"/a\\u0000b"\n'])
def test_a_damaged_list_of_places_costs_no_more_than_what_it_said(home, tmp_path, raw):
    (home / "places").write_bytes(raw + b"\n" + json.dumps(str(tmp_path)).encode() + b"\n")
    assert places.roots(home) == [home / "sessions", tmp_path]


def test_a_session_elsewhere_is_listed_and_found(home, tmp_path):
    put(home / "sessions", "here")
    there = put(tmp_path / "elsewhere", "there")
    with pytest.raises(NoSuchSession):
        folder_of(home, "there")
    assert folder_of(home, "there", str(tmp_path / "elsewhere")) == there
    places.note(home, tmp_path / "elsewhere")
    assert folder_of(home, "there") == there
    assert {entry.session for entry in history.entries(*places.roots(home))} == {"here", "there"}
    assert latest(home, None) == "there"
    assert places.kept_final(home, "there", None) == b"there"
    with pytest.raises(NoSuchSession):
        places.kept_final(home, "../there", None)


def test_a_session_that_several_forget_at_once_is_forgotten_once(home):
    for name in ("one", "two"):
        put(home / "sessions", name)

    async def nothing(_):
        return False

    async def forget_all():
        host = SimpleNamespace(home=home, sessions={}, erasing=asyncio.Lock(), settled=nothing, stop=nothing)
        host.broker = SimpleNamespace(erase=nothing)
        return await asyncio.gather(*(erase(host, name) for name in ("one", "two", "one", "one", "two")))

    found = asyncio.run(forget_all())
    assert sorted(found) == [False, False, False, True, True]
    assert list((home / "sessions").iterdir()) == []


def test_what_cannot_be_removed_is_said_and_no_defect(home, tmp_path):
    put(tmp_path / "elsewhere", "moved")
    (home / "sessions").mkdir()
    (home / "sessions" / "moved").symlink_to(tmp_path / "elsewhere" / "moved")
    with pytest.raises(UsageError, match="cannot be removed"):
        history.remove(home / "sessions", "moved")
