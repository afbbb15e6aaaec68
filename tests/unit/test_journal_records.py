"""The journal and its pack: what was written is there, what was torn is cut off, what was changed shows."""

import hashlib
import itertools
import json
import os
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlm_sandbox.errors import BundleError, UsageError
from rlm_sandbox.session import journal as journals
from rlm_sandbox.session.journal import Journal
from rlm_sandbox.session.pack import Pack
from rlm_sandbox.session.past import Past
from rlm_sandbox.session.resume import Plan, restore
from tests.support.recorded import record_run

pytestmark = pytest.mark.unit


def records(folder, *, torn=False):
    return [record for record, _ in journals.read(journals.lines(folder / "journal.jsonl"), torn=torn)]


@pytest.fixture
def folder(tmp_path):
    record_run(tmp_path)
    return tmp_path


def test_what_was_written_is_read_back_in_order(folder):
    found = records(folder)
    assert [record.seq for record in found] == list(range(len(found)))
    assert {record.kind for record in found} >= {"start", "input", "restored", "cell", "call", "result", "end"}


def test_every_line_carries_the_digest_of_the_one_before_it(folder):
    lines = (folder / "journal.jsonl").read_bytes().splitlines(keepends=True)
    for before, after in itertools.pairwise(lines):
        assert json.loads(after)["prev"] == hashlib.sha256(before).hexdigest()


@pytest.mark.parametrize("cut", [1, 2, 17, 100])
def test_a_torn_last_line_is_cut_off_and_writing_goes_on(folder, cut):
    path = folder / "journal.jsonl"
    whole = records(folder)
    os.truncate(path, path.stat().st_size - cut)
    assert len(records(folder, torn=True)) == len(whole) - 1
    with pytest.raises(BundleError):
        records(folder)
    journal = Journal(folder)
    journal.append("end", reason="no_session", message="again")
    journal.close()
    found = records(folder)
    assert len(found) == len(whole)
    assert found[-1].message == "again"


def test_a_changed_line_shows_wherever_it_is(folder):
    path = folder / "journal.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    for number in range(len(lines) - 1):
        changed = lines[number].replace(b'"v":2', b'"v":2 ', 1)
        path.write_bytes(b"".join([*lines[:number], changed, *lines[number + 1 :]]))
        with pytest.raises(BundleError, match="journal is broken at line"):
            records(folder)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"timeout_s":60.0', b'"timeout_s":NaN'),
        (b'"timeout_s":60.0', b'"timeout_s":Infinity'),
        (b'"timeout_s":60.0', b'"timeout_s":-1.0'),
        (b'"elapsed_ms":40', b'"elapsed_ms":-40'),
        (b'"elapsed_ms":40', b'"elapsed_ms":' + b"9" * 30),
        (b'"elapsed_ms":40', b'"elapsed_ms":"40"'),
        (b'"status":"ok"', b'"status":"fine"'),
        (b'"cell":1', b'"cell":0'),
        (b'"cell":1', b'"cell":true'),
        (b'"kind":"cell"', b'"kind":"cell","more":1'),
        (b'"at":"2', b'"at":"9999-99-99T99:99:99.000000+00:00","x":"2'),
        (b'"at":"2026', b'"at":"2026-13'),
    ],
)
def test_a_value_that_makes_no_sense_is_refused(folder, old, new):
    path = folder / "journal.jsonl"
    raw = path.read_bytes()
    assert old in raw
    path.write_bytes(raw.replace(old, new, 1))
    with pytest.raises(BundleError, match="journal is broken at line"):
        records(folder)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\n",
        b"{}\n",
        b"[1]\n",
        b'{"v": 2}\n',
        b'{"v": 1, "kind": "start"}\n',
        b"[" * 200_000 + b"\n",
        b'{"v":2,"seq":0,"prev":"' + b"0" * 64 + b'","at":"x","kind":"end","reason":"a","message":"b"}\n',
        b'{"v":2,"seq":0,"prev":"' + b"0" * 64 + b'","at":"2026-01-01T00:00:00.000000+00:00","kind":"nothing"}\n',
        b'{"v":2,"seq":9' + b"9" * 5000 + b"}\n",
        b"\xff\xfe\n",
        b"x" * (journals.LINE_MAX + 10) + b"\n",
    ],
)
def test_a_line_that_is_no_record_is_refused_in_one_line(tmp_path, line):
    (tmp_path / "journal.jsonl").write_bytes(line)
    if not line:
        assert records(tmp_path) == []
        return
    with pytest.raises(BundleError) as caught:
        records(tmp_path)
    assert "\n" not in caught.value.message


def test_a_newer_journal_is_not_written_into(tmp_path):
    (tmp_path / "journal.jsonl").write_bytes(b'{"v": 99}\n')
    with pytest.raises(UsageError, match="newer"):
        Journal(tmp_path)
    with pytest.raises(BundleError, match="99"):
        records(tmp_path)


def test_an_older_journal_is_kept_aside(tmp_path):
    (tmp_path / "journal.jsonl").write_bytes(b'{"v": 1, "kind": "start"}\n')
    Journal(tmp_path).close()
    assert (tmp_path / "journal-v1.jsonl").exists()
    assert (tmp_path / "journal.jsonl").read_bytes() == b""


@given(texts=st.lists(st.binary(max_size=2000), max_size=12))
def test_texts_come_back_by_their_digest_and_are_kept_once(tmp_path_factory, texts):
    folder = tmp_path_factory.mktemp("pack")
    pack = Pack(folder)
    names = [pack.put(text) for text in texts + texts]
    size = (folder / "blobs.pack").stat().st_size
    assert [pack.put(text) for text in texts] == names[: len(texts)]
    assert (folder / "blobs.pack").stat().st_size == size
    pack.close()
    again = Pack(folder, write=False)
    assert [again.get(name) for name in names] == texts + texts
    assert [again.size(name) for name in names[: len(texts)]] == [len(text) for text in texts]
    again.close()


@pytest.mark.parametrize("cut", [1, 10, 43, 45])
def test_a_torn_text_is_cut_off_and_the_others_stay(tmp_path, cut):
    pack = Pack(tmp_path)
    first, second = pack.put(b"first" * 100), pack.put(os.urandom(100))
    pack.close()
    os.truncate(tmp_path / "blobs.pack", (tmp_path / "blobs.pack").stat().st_size - cut)
    again = Pack(tmp_path)
    assert again.get(first) == b"first" * 100
    assert second not in again
    third = again.put(b"third")
    again.close()
    last = Pack(tmp_path, write=False)
    assert (last.get(first), last.get(third)) == (b"first" * 100, b"third")
    last.close()


def test_a_damaged_text_is_not_given_out(tmp_path):
    pack = Pack(tmp_path)
    name = pack.put(os.urandom(500))
    pack.close()
    path = tmp_path / "blobs.pack"
    raw = bytearray(path.read_bytes())
    raw[100] ^= 1
    path.write_bytes(raw)
    again = Pack(tmp_path, write=False)
    with pytest.raises(KeyError):
        again.get(name)
    again.close()


@pytest.mark.parametrize("name", ["journal.jsonl", "blobs.pack"])
@pytest.mark.parametrize("kind", ["folder", "link", "pipe"])
def test_what_is_no_file_is_no_record(tmp_path, name, kind):
    path = tmp_path / name
    if kind == "folder":
        path.mkdir()
    elif kind == "link":
        path.symlink_to(tmp_path / "elsewhere")
    else:
        os.mkfifo(path)
    with pytest.raises(BundleError):
        Journal(tmp_path)
    if name == "blobs.pack":
        with pytest.raises(BundleError):
            Pack(tmp_path, write=False)
    assert not (tmp_path / "elsewhere").exists()


def test_a_pack_that_is_gone_is_a_damaged_record(tmp_path):
    with pytest.raises(BundleError):
        Pack(tmp_path, write=False)


async def test_a_cell_whose_code_is_gone_ends_the_restoring_and_is_named(folder):
    past = Past.of(journals.read(journals.lines(folder / "journal.jsonl")))
    (folder / "blobs.pack").write_bytes(b"")
    journal = Journal(folder)
    chronicle = SimpleNamespace(
        journal=journal, recorder=SimpleNamespace(divergence=None), deaths=0, again_done=lambda: None,
        write=lambda kind, **body: None,
    )  # fmt: skip
    assert journal.holds(past.cells[1].code) is False
    outcome = await restore(chronicle, Plan(past), "reopened", lambda _: None)
    assert (outcome.divergence.cell, outcome.cells) == (1, [])
    assert "no longer in the record" in outcome.divergence.what
    journal.close()
