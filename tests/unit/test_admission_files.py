# ruff: noqa: PTH101, PTH108, PTH123, PTH208 - names that are bytes, and descriptors, need the plain calls
import bz2
import gzip
import lzma
import os
import socket
import stat

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlm_sandbox.container import admission, staging
from rlm_sandbox.container.admission import admit, guest_name, shown
from rlm_sandbox.container.reading import Counter
from rlm_sandbox.errors import InputError, UsageError

pytestmark = pytest.mark.unit


@pytest.fixture
def take(tmp_path):
    """Admit, and give everything back at the end."""
    taken = []

    def go(path, **options):
        options.setdefault("stage_dir", tmp_path / "home" / "stage")
        admitted = admit(path, **options)
        taken.append(admitted)
        return admitted

    yield go
    for admitted in taken:
        admitted.close()


def write(path, data=b"one\ntwo\n", mode=0o644):
    path.write_bytes(data)
    path.chmod(mode)
    return path


def test_a_readable_file_is_mounted_where_it_lies_and_described_exactly(take, tmp_path):
    path = write(tmp_path / "a.log", "eins\nzwei\u00e4\n".encode())
    admitted = take(path)
    (mount,) = admitted.mounts
    assert (mount.source, mount.target) == (str(path), "/input/a.log")
    assert admitted.config == {"kind": "file", "path": "/input/a.log", "index": None, "name": "a.log"}
    assert (admitted.total_bytes, admitted.total_chars, admitted.line_count) == (12, 11, 3)
    assert admitted.prefix == "eins\nzwei\u00e4\n"
    assert admitted.files_preview == [{"path": str(path), "chars": 11, "bytes": 12}]
    assert (admitted.kind, admitted.file_count, admitted.warnings, admitted.staged) == ("file", 1, [], False)
    assert not (tmp_path / "home").exists()


def test_a_file_that_others_may_not_read_is_copied_for_the_session(take, tmp_path):
    path = write(tmp_path / "secret.log", mode=0o600)
    admitted = take(path)
    copy = tmp_path / "home" / "stage" / "secret.log"
    assert admitted.mounts[0].source == str(copy)
    assert copy.read_bytes() == b"one\ntwo\n"
    assert stat.S_IMODE(copy.stat().st_mode) == 0o444
    assert (copy.stat().st_dev, copy.stat().st_ino) == (admitted.identity.dev, admitted.identity.ino)
    assert stat.S_IMODE((tmp_path / "home").stat().st_mode) == 0o700
    assert (admitted.total_chars, admitted.line_count, admitted.staged) == (8, 3, True)
    admitted.close()
    assert not copy.parent.exists()


def test_a_snapshot_does_not_change_with_the_original(take, tmp_path):
    path = write(tmp_path / "a.log")
    admitted = take(path, mode="snapshot")
    path.write_bytes(b"other")
    assert (tmp_path / "home" / "stage" / "a.log").read_bytes() == b"one\ntwo\n"
    assert admitted.changed() is None


@pytest.mark.parametrize(
    "change",
    [
        lambda path: path.write_bytes(b"longer than before"),
        lambda path: os.utime(path, ns=(1, 1)),
        lambda path: path.unlink(),
        lambda path: write(path.with_name("b")).rename(path),
        lambda path: os.truncate(path, 1),
    ],
    ids=["rewritten", "touched", "removed", "replaced", "cut"],
)
def test_a_mounted_file_that_changes_is_noticed(take, tmp_path, change):
    path = write(tmp_path / "a.log")
    admitted = take(path)
    assert admitted.changed() is None
    change(path)
    assert "changed" in admitted.changed()


def test_a_symlink_that_the_user_named_is_followed_once(take, tmp_path):
    path = write(tmp_path / "real.log")
    link = tmp_path / "link.log"
    link.symlink_to(path)
    admitted = take(link)
    assert admitted.display == admitted.mounts[0].source == str(path)


def test_special_files_are_refused_by_name_and_never_waited_for(take, tmp_path):
    fifo = tmp_path / "pipe"
    os.mkfifo(fifo)
    with pytest.raises(InputError, match="is a FIFO"):
        take(fifo)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "sock"))
        with pytest.raises(InputError, match="is a socket"):
            take(tmp_path / "sock")
    with pytest.raises(InputError, match="is a device"):
        take("/dev/null")
    link = tmp_path / "to-pipe"
    link.symlink_to(fifo)
    with pytest.raises(InputError, match="is a FIFO"):
        take(link)


def test_nothing_there_says_so(take, tmp_path):
    with pytest.raises(InputError, match="no such file"):
        take(tmp_path / "missing")
    dangling = tmp_path / "dangling"
    dangling.symlink_to(tmp_path / "missing")
    with pytest.raises(InputError, match="no such file"):
        take(dangling)
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    with pytest.raises(InputError):
        take(loop)
    with pytest.raises(InputError):
        take("nul\0byte")


def test_an_empty_file_is_refused(take, tmp_path):
    with pytest.raises(InputError, match="is empty"):
        take(write(tmp_path / "empty", b""))
    with pytest.raises(InputError, match="is empty"):
        take(write(tmp_path / "empty2", b"", 0o600), mode="snapshot")


def test_options_of_directories_are_refused_for_a_file(take, tmp_path):
    path = write(tmp_path / "a.log")
    with pytest.raises(UsageError, match="directory"):
        take(path, exclude="x")
    with pytest.raises(UsageError, match="no such mode"):
        take(path, mode="teleport")


def test_a_glob_named_for_whatever_comes_does_not_keep_a_file_out(take, tmp_path):
    taken = take(write(tmp_path / "a.log"), glob="*.py")
    assert taken.kind == "file"
    assert any("--glob *.py selects files of a directory" in warning for warning in taken.warnings)


def test_a_file_that_cannot_be_mounted_is_not_copied_behind_the_users_back(take, tmp_path):
    with pytest.raises(InputError, match="not readable by everyone"):
        take(write(tmp_path / "a", mode=0o600), mode="bind")


@pytest.mark.parametrize(
    "name",
    [
        b"a b.log",
        b'it\'s "it".log',
        b"new\nline",
        b"-rf",
        b"..hidden",
        b"comma,colon:.log",
        b"\xff\xfe.log",
        "日本.log".encode(),
    ],
)
def test_any_name_is_admitted_under_a_harmless_one(take, tmp_path, name):
    path = os.fsencode(tmp_path) + b"/" + name
    with open(path, "wb") as file:
        file.write(b"x")
    os.chmod(path, 0o644)
    admitted = take(os.fsdecode(path))
    target = admitted.mounts[0].target
    assert target.startswith("/input/")
    assert target.removeprefix("/input/").replace(".", "").replace("_", "").replace("-", "").isascii()
    assert "\n" not in admitted.display
    admitted.display.encode("utf-8")
    admitted.mounts[0].source.encode("utf-8")
    assert admitted.staged == (name == b"\xff\xfe.log"), "a name that is not UTF-8 cannot be told to the engine"


@given(st.binary(min_size=1, max_size=300).filter(lambda raw: b"\0" not in raw and b"/" not in raw))
def test_a_guest_name_is_short_and_plain(raw):
    name = guest_name(os.fsdecode(raw))
    assert 0 < len(name) <= 100
    assert name[0] not in ".-_"
    assert all(char.isascii() and (char.isalnum() or char in "._-") for char in name)


def test_a_shown_path_cannot_drive_a_terminal():
    assert shown("a\x1b[31m\u202eb") == "a\\x1b[31m\\u202eb"
    assert shown(b"\xff".decode("utf-8", "surrogateescape")) == "\\xff"


def test_binary_input_is_admitted_with_a_warning(take, tmp_path):
    admitted = take(write(tmp_path / "a.bin", b"\0\xff\xfe" * 10))
    assert "binary" in admitted.warnings[0]
    assert admitted.total_chars == 30


def test_a_large_file_is_not_read_to_its_end(take, tmp_path):
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.write(b"begin " + "\u00e4".encode() * 1000)
        file.truncate(10 * 1024**3)
    path.chmod(0o644)
    admitted = take(path)
    assert (admitted.total_bytes, admitted.total_chars, admitted.line_count) == (10 * 1024**3, None, None)
    assert admitted.prefix == "begin " + "\u00e4" * 794


def test_a_prefix_is_cut_in_characters_and_never_within_one(take, tmp_path):
    path = write(tmp_path / "a", "\U0001f600".encode() * 10)
    assert take(path, prefix_len=3).prefix == "\U0001f600" * 3
    assert take(path, prefix_len=0).prefix == ""


@settings(max_examples=60)
@given(st.binary(max_size=200), st.data())
def test_counting_in_pieces_agrees_with_decoding_at_once(raw, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=6)))
    counter = Counter(10)
    for start, stop in zip([0, *cuts], [*cuts, len(raw)], strict=True):
        counter.feed(raw[start:stop])
    counter.feed(b"", final=True)
    text = raw.decode("utf-8", "replace")
    assert (counter.chars, counter.newlines, counter.prefix) == (len(text), text.count("\n"), text[:10])


def test_a_disk_without_room_is_noticed_before_copying(take, tmp_path, monkeypatch):
    monkeypatch.setattr(staging, "FREE_MIN", 1 << 60)
    with pytest.raises(InputError, match="free"):
        take(write(tmp_path / "a", mode=0o600))
    assert not (tmp_path / "home" / "stage").exists()


def test_a_copy_works_where_blocks_cannot_be_shared(tmp_path):
    source = write(tmp_path / "a", os.urandom(100_000))
    with source.open("rb") as read, (tmp_path / "b").open("w+b") as written:
        assert staging.copy(read.fileno(), written.fileno(), 60_000) in {60_000, 100_000}
    assert source.read_bytes().startswith((tmp_path / "b").read_bytes()[:60_000])


def test_a_copy_falls_back_to_reading_and_writing(tmp_path, monkeypatch):
    def unsupported(*args):
        raise OSError(18, "cross-device")

    monkeypatch.setattr(os, "copy_file_range", unsupported)
    monkeypatch.setattr(staging, "CHUNK", 1000)
    source = write(tmp_path / "a", os.urandom(100_000))
    with source.open("rb") as read, open("/dev/shm/rlm-copy-test", "w+b") as written:
        try:
            assert staging._copy_range(read.fileno(), written.fileno(), 100_000) == 100_000
            written.seek(0)
            assert written.read() == source.read_bytes()
        finally:
            os.unlink(written.name)


def test_closing_twice_is_fine_and_gives_every_descriptor_back(take, tmp_path):
    before = len(os.listdir("/proc/self/fd"))
    admitted = take(write(tmp_path / "a"))
    admitted.close()
    admitted.close()
    assert len(os.listdir("/proc/self/fd")) == before
    with pytest.raises(InputError):
        take(write(tmp_path / "b", b""))
    assert len(os.listdir("/proc/self/fd")) == before


def test_what_is_opened_is_what_was_resolved_not_what_replaced_it(tmp_path):
    path = write(tmp_path / "a")
    resolved = admission.resolve(path)
    path.unlink()
    path.symlink_to("/etc/passwd")
    with pytest.raises(InputError, match="cannot open"):
        admission.open_admitted(resolved)


@pytest.mark.parametrize("make", [gzip.compress, bz2.compress, lzma.compress])
def test_a_compressed_input_is_named_with_the_way_to_read_it(take, tmp_path, make):
    path = tmp_path / "a.log.packed"
    path.write_bytes(make(b"text\n" * 100))
    (warning,) = take(path).warnings
    assert "open_archive()" in warning
    assert "not text" in warning


@pytest.mark.parametrize("text", ["BZhang wrote:", "PK 3", "% PDF"])
def test_a_text_that_begins_like_an_archives_name_is_a_text(take, tmp_path, text):
    path = tmp_path / "a.txt"
    path.write_text(text)
    assert not take(path).warnings
