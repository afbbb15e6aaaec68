"""What the input was, when its session ended too soon to say: known later only if nothing of it was touched."""

import hashlib
import os
import time

import pytest

from rlm_sandbox.container.admission import admit
from rlm_sandbox.session import journal as journals
from rlm_sandbox.session import resume
from rlm_sandbox.session.journal import Journal
from rlm_sandbox.session.late import late_digest
from rlm_sandbox.session.opening import UNPROVEN
from rlm_sandbox.session.store import Store
from tests.support.recorded import start_body

pytestmark = pytest.mark.unit


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "input"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.txt").write_text("one\n")
    (folder / "sub" / "b.txt").write_text("two\n")
    (folder / "left.bin").write_text("not selected\n")
    time.sleep(0.05)  # longer ago than the margin
    return folder


def ended(tmp_path, source, *, records=(), **report):
    """Return the store of a session that ended without a digest."""
    store = Store(tmp_path / "sessions", "s1")
    store.claim()
    journal = Journal(store.folder)
    if source.is_dir():
        admitted = admit(source, glob="*.txt", stage_dir=store.folder / "stage")
        about = {"kind": "directory", "bytes": admitted.total_bytes, "files": 2, "glob": "*.txt", "mtime_ns": 0}
        admitted.close()
    else:
        about = {"kind": "file", "bytes": source.stat().st_size, "files": 1, "glob": None, "mtime_ns": 0}
    body = start_body(settings={"max_per_file_bytes": 4096}, report=report)
    journal.append("start", **{**body, "input": {**body["input"], **about, "display": str(source)}})
    for kind, fields in records:
        journal.append(kind, **fields)
    journal.append("end", reason="no_session", message="it was stopped")
    journal.close()
    store.release()
    return store


def known(store):
    found = resume.load(store).input
    return None if found is None else found.digest


def test_what_an_engine_elsewhere_has_read_gets_no_digest_of_what_lies_here(tmp_path, source):
    store = ended(tmp_path, source / "a.txt", **{UNPROVEN: True})
    late_digest(store, source / "a.txt")
    assert known(store) is None


UNKNOWN = ("input", {"digest": None, "bytes": 8, "manifest": None, "index": None})


@pytest.mark.parametrize("records", [(), (UNKNOWN,)], ids=["killed", "stopped"])
def test_an_untouched_directory_gets_its_digest(tmp_path, source, records):
    store = ended(tmp_path, source, records=records)
    late_digest(store, source)
    found = resume.load(store).input
    manifest = Journal(store.folder).read(found.manifest)
    assert found.digest == hashlib.sha256(manifest).hexdigest()
    assert b'"path":"sub/b.txt"' in manifest
    assert b"left.bin" not in manifest
    assert not (store.folder / "late").exists()
    late_digest(store, source)
    assert len(list(journals.lines(store.folder / journals.NAME))) == 3 + len(records)


CHANGES = {
    "other content of the same size": lambda folder: (folder / "a.txt").write_text("One\n"),
    "other content with the old times": lambda folder: back_dated(folder / "a.txt"),
    "one more file": lambda folder: (folder / "c.txt").write_text("c"),
    "one file less": lambda folder: (folder / "a.txt").unlink(),
    "a folder renamed": lambda folder: (folder / "sub").rename(folder / "other"),
    "all of it gone": lambda folder: folder.rename(folder.with_name("gone")),
}


def back_dated(path):
    then = path.stat()
    path.write_text("ONE\n")
    os.utime(path, ns=(then.st_atime_ns, then.st_mtime_ns))


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_directory_that_was_touched_stays_unknown(tmp_path, source, change):
    store = ended(tmp_path, source)
    time.sleep(0.02)
    change(source)
    late_digest(store, source)
    assert known(store) is None


def test_a_file_is_known_by_its_times(tmp_path, source):
    store = ended(tmp_path, source / "a.txt")
    late_digest(store, source / "a.txt")
    assert known(store) == hashlib.sha256(b"one\n").hexdigest()


def test_a_file_that_was_touched_stays_unknown(tmp_path, source):
    store = ended(tmp_path, source / "a.txt")
    time.sleep(0.02)
    back_dated(source / "a.txt")
    late_digest(store, source / "a.txt")
    assert known(store) is None


def test_a_session_that_is_live_elsewhere_is_left_alone(tmp_path, source):
    store = ended(tmp_path, source)
    holder = Store(tmp_path / "sessions", "s1")
    holder.claim()
    late_digest(store, source)
    assert known(store) is None
    holder.release()
