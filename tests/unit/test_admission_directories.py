# ruff: noqa: PTH102, PTH123, PTH208 - names that are bytes, and descriptors, need the plain calls
import json
import os
import stat
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlm_sandbox.container import admission, directory, pace, staging, tree
from rlm_sandbox.container.admission import admit
from rlm_sandbox.container.selection import Selection
from rlm_sandbox.container.tree import Walker, clean_name
from rlm_sandbox.errors import InputError, UsageError
from rlm_sandbox.guest.files import Index
from rlm_sandbox.guest.source import Changes

pytestmark = pytest.mark.unit


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "project"
    folder.mkdir()
    return folder


@pytest.fixture
def take(tmp_path, root):
    taken = []

    def go(path=root, **options):
        admitted = admit(path, stage_dir=tmp_path / "home" / "stage", **options)
        taken.append(admitted)
        return admitted

    yield go
    for admitted in taken:
        admitted.close()


def fill(root, *names, data=b"x\n"):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        path.chmod(0o644)


def staged(tmp_path):
    top = tmp_path / "home" / "stage" / "tree"
    return sorted(str(path.relative_to(top)) for path in top.rglob("*") if path.is_file())


def index(tmp_path):
    with (tmp_path / "home" / "stage" / "index.jsonl").open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def test_only_what_is_admitted_is_copied(take, tmp_path, root):
    fill(root, "a.py", "sub/b.md", ".env", "sub/.env.local", ".git/config", "node_modules/x/y.js", "key.pem", "id_rsa.pub",
         "env/lib.py", ".env.example", "deep/er/c.txt", ".SSH/known", "SECRET.KEY")  # fmt: skip
    (root / "passwd").symlink_to("/etc/passwd")
    (root / "loop").symlink_to(root)
    os.mkfifo(root / "pipe")
    admitted = take()
    assert staged(tmp_path) == [".env.example", "a.py", "deep/er/c.txt", "sub/b.md"]
    assert admitted.file_count == 4
    assert admitted.skipped["symlink"] == 2
    assert admitted.skipped["special"] == 1
    assert admitted.skipped["secret"] == 6
    assert admitted.skipped["ignored"] == 3
    assert any("usual places of keys" in warning for warning in admitted.warnings)


def test_the_mount_is_the_stage_and_the_guest_is_told_where_everything_is(take, tmp_path, root):
    fill(root, "a.py")
    admitted = take()
    (mount,) = admitted.mounts
    assert (mount.source, mount.target) == (str(tmp_path / "home" / "stage"), "/input")
    assert admitted.config == {
        "kind": "directory", "path": "/input/tree", "index": "/input/index.jsonl", "name": "project",
    }  # fmt: skip
    info = (tmp_path / "home" / "stage" / "tree").stat()
    assert (admitted.identity.dev, admitted.identity.ino) == (info.st_dev, info.st_ino)


def test_everything_staged_can_be_read_by_others_and_written_by_nobody(take, tmp_path, root):
    fill(root, "a.py", "sub/b.py")
    (root / "a.py").chmod(0o600)
    (root / "sub").chmod(0o700)
    old = os.umask(0o077)
    try:
        take()
    finally:
        os.umask(old)
    stage = tmp_path / "home" / "stage"
    assert stat.S_IMODE(stage.parent.stat().st_mode) == 0o700
    for path in [stage, *stage.rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o755 if path.is_dir() else 0o444)


def test_context_is_described_as_the_guest_will_build_it(take, tmp_path, root):
    fill(root, "b.txt", data="h\u00e4\n".encode())
    fill(root, "a/z.txt", data=b"one\ntwo")
    fill(root, "a-1.txt", data=b"\xff")
    admitted = take()
    rows = index(tmp_path)
    assert rows == [
        {"path": "a/z.txt", "bytes": 7, "chars": 7},
        {"path": "a-1.txt", "bytes": 1, "chars": 1},
        {"path": "b.txt", "bytes": 4, "chars": 3},
    ]
    texts = ["one\ntwo", "\ufffd", "h\u00e4\n"]
    context = "".join(
        f"{'' if i == 0 else chr(10) * 2}======== FILE: {row['path']} ({row['chars']} chars) ========\n{text}"
        for i, (row, text) in enumerate(zip(rows, texts, strict=True))
    )
    assert admitted.total_chars == len(context)
    assert admitted.line_count == context.count("\n") + 1
    assert admitted.prefix == context[:800]
    assert admitted.total_bytes == len(context.encode()) - 2, "the byte that is not UTF-8 is one byte, not three"
    assert admitted.files_preview[0] == {"path": "a/z.txt", "chars": 7, "bytes": 7}


def test_the_guests_own_index_agrees(take, tmp_path, root):
    fill(root, "a.txt", "sub/\u00fc ,\n.txt", "z.txt", data="\u00e4\U0001f600\r\n".encode())
    admitted = take()
    stage = tmp_path / "home" / "stage"
    document, _ = Index.load(str(stage / "index.jsonl")).document(str(stage / "tree"), Changes(), 1 << 20)
    assert document.total_chars() == admitted.total_chars


@pytest.mark.parametrize(
    ("glob", "exclude", "expected"),
    [
        ("*.py", None, ["a.py", "src/b.py", "src/deep/c.py"]),
        ("*.py,*.md", None, ["a.py", "doc/d.md", "src/b.py", "src/deep/c.py"]),
        ("/src/*.py", None, ["src/b.py"]),
        ("src/", None, ["src/b.py", "src/deep/c.py"]),
        ("src/**/*.py", "deep/", ["src/b.py"]),
        (None, "*.py", ["doc/d.md"]),
        (None, "/src", ["a.py", "doc/d.md"]),
        ("*.py", "b.*, c.*", ["a.py"]),
        ("*.py,!b.py", None, ["a.py", "src/deep/c.py"]),
    ],
)
def test_globs_are_comma_lists_in_gitignore_syntax(take, tmp_path, root, glob, exclude, expected):
    fill(root, "a.py", "src/b.py", "src/deep/c.py", "doc/d.md")
    take(glob=glob, exclude=exclude)
    assert staged(tmp_path) == expected


def test_a_glob_does_not_bring_secrets_back(take, tmp_path, root):
    fill(root, ".env", "a.txt")
    take(glob=".env,*.txt")
    assert staged(tmp_path) == ["a.txt"]


def test_a_pattern_list_without_a_pattern_is_refused(take, root):
    fill(root, "a")
    for options in ({"glob": " , "}, {"exclude": ""}):
        with pytest.raises(UsageError, match="no pattern"):
            take(**options)


def test_files_over_the_limit_are_left_out_and_reported(take, tmp_path, root):
    fill(root, "small.txt")
    fill(root, "big.txt", data=b"x" * 11)
    admitted = take(max_file_bytes=10)
    assert staged(tmp_path) == ["small.txt"]
    assert admitted.skipped["too large"] == 1
    assert any("RLM_MAX_PER_FILE_BYTES" in warning and "big.txt" in warning for warning in admitted.warnings)


def test_a_file_larger_than_one_read_is_copied_and_counted(take, tmp_path, root):
    fill(root, "big.txt", data="\u00e4\n".encode() * 2_000_000)
    admitted = take(max_file_bytes=1 << 30)
    assert (tmp_path / "home" / "stage" / "tree" / "big.txt").read_bytes() == (root / "big.txt").read_bytes()
    assert index(tmp_path) == [{"path": "big.txt", "bytes": 6_000_000, "chars": 4_000_000}]
    assert admitted.files_preview[0]["chars"] == 4_000_000


def test_nothing_that_matches_is_an_error_that_says_what_was_there(take, tmp_path, root):
    with pytest.raises(InputError, match="is empty"):
        take()
    fill(root, "a.txt", ".env")
    with pytest.raises(InputError, match=r"no files matched .*1 not selected, 1 secret"):
        take(glob="*.py")
    assert not (tmp_path / "home" / "stage").exists()


@pytest.mark.parametrize(
    ("limit", "value", "message"), [("FILES_MAX", 2, "more than 2 files"), ("ENTRIES_MAX", 3, "more than 3 entries")]
)
def test_counts_have_limits_and_nothing_remains_of_the_try(take, tmp_path, root, monkeypatch, limit, value, message):
    fill(root, "a", "b", "c", "d")
    monkeypatch.setattr(tree, limit, value)
    with pytest.raises(InputError, match=message):
        take()
    assert not (tmp_path / "home" / "stage").exists()


def test_depth_has_a_limit(take, root):
    fill(root, "/".join("d" * 70) + "/x")
    with pytest.raises(InputError, match=r"nests deeper than 64: 'd/d/d"):
        take()


def test_bytes_have_a_limit(take, root, monkeypatch):
    fill(root, "a", "b", data=b"x" * 100)
    monkeypatch.setattr(directory, "TOTAL_MAX", 150)
    with pytest.raises(InputError, match="more than 0 GiB match"):
        take()


def test_names_that_are_not_text_are_staged_under_one_that_is(take, tmp_path, root):
    base = os.fsencode(root)
    os.mkdir(base + b"/d\xff")
    for name in (b"/\xff.txt", b"/d\xff/x", b"/tab\t.txt"):
        with open(base + name, "wb") as file:
            file.write(b"x")
    take()
    assert sorted(row["path"] for row in index(tmp_path)) == ["\\xff.txt", "d\\xff/x", "tab\t.txt"]
    assert staged(tmp_path) == ["\\xff.txt", "d\\xff/x", "tab\t.txt"]


@given(
    st.lists(
        st.binary(min_size=1, max_size=255).filter(lambda raw: not set(raw) & set(b"\0/")), unique=True, max_size=20
    )
)
def test_clean_names_are_unique_text_that_fits(names):
    taken = set()
    clean = [clean_name(os.fsdecode(raw), taken) for raw in names]
    assert len(set(clean)) == len(names)
    assert all(0 < len(name.encode("utf-8")) <= 255 for name in clean)


def test_something_that_becomes_a_symlink_while_walked_is_not_followed(root):
    fill(root, "a", "sub/b")
    (root.parent / "outside").mkdir()
    fill(root.parent / "outside", "b", data=b"host")
    fd = os.open(root, tree.FOLDER_FLAGS)
    walker = iter(Walker(fd, Selection(), 1 << 20))
    first = next(walker)
    os.close(first.fd)
    (root / "sub").rename(root / "gone")
    (root / "sub").symlink_to(root.parent / "outside")
    assert list(walker) == []
    os.close(fd)


def test_an_abandoned_walk_leaks_no_descriptor(root):
    fill(root, "a", "sub/deep/b", "sub/deep/c")
    before = len(os.listdir("/proc/self/fd"))
    fd = os.open(root, tree.FOLDER_FLAGS)
    walker = iter(Walker(fd, Selection(), 1 << 20))
    for _ in range(2):
        os.close(next(walker).fd)
    walker.close()
    os.close(fd)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_bound_directory_is_mounted_as_it_is_with_a_filtered_index(take, tmp_path, root):
    fill(root, "a.txt", "b.py", "private.txt")
    (root / "private.txt").chmod(0o600)
    root.chmod(0o755)
    admitted = take(mode="bind", glob="*.txt")
    assert [(mount.source, mount.target) for mount in admitted.mounts] == [
        (str(root), "/input/tree"),
        (str(tmp_path / "home" / "stage" / "index.jsonl"), "/input/index.jsonl"),
    ]
    assert [row["path"] for row in index(tmp_path)] == ["a.txt"]
    assert admitted.skipped["not readable by everyone"] == 1
    assert any("every file in it" in warning for warning in admitted.warnings)
    assert admitted.changed() is None
    fill(root, "new.txt")
    assert "changed" in admitted.changed()


def test_progress_is_told_files_and_bytes(take, root):
    fill(root, "a", "b", data=b"xyz")
    seen = []
    take(progress=seen.append)
    assert seen[-1] == "staging: 2 of 2 files, 0 of 0 MiB"


def test_progress_is_told_of_a_tree_in_which_nothing_matches(take, root, monkeypatch):
    fill(root, "a", "b", "c")
    monkeypatch.setattr(pace, "EVERY_S", 0)
    seen = []
    with pytest.raises(InputError, match="no files matched"):
        take(glob="*.py", progress=seen.append)
    assert [line for line in seen if line.startswith("looking: 3 entries, 0 files that match")]


def test_a_start_can_be_given_up_at_any_look(take, tmp_path, root, monkeypatch):
    fill(root, "a", "b", "c")
    monkeypatch.setattr(pace, "EVERY_S", 0)

    def enough(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        take(glob="*.py", progress=enough)
    assert not (tmp_path / "home" / "stage").exists()


@pytest.mark.parametrize(
    ("where", "limit", "value"), [(tree, "FILES_MAX", 2), (directory, "TOTAL_MAX", 5), (staging, "FREE_MIN", 2**62)]
)
def test_what_is_too_much_is_refused_before_anything_is_copied(take, root, monkeypatch, where, limit, value):
    fill(root, "a", "b", "c", data=b"xyz")
    monkeypatch.setattr(where, limit, value)
    monkeypatch.setattr(directory.Target, "write", lambda *_: pytest.fail("something was copied"))
    with pytest.raises(InputError, match=r"more than"):
        take()


def test_the_files_of_the_kernel_are_left_out_and_said_to_be(take, root, monkeypatch):
    fill(root, "a", "proc/cpuinfo")
    look = os.fstat

    def elsewhere(fd):
        info = look(fd)
        if Path(f"/proc/self/fd/{fd}").readlink().name == "proc":
            return os.stat_result((*info[:2], Path("/proc").stat().st_dev, *info[3:]))
        return info

    monkeypatch.setattr(tree.os, "fstat", elsewhere)
    admitted = take()
    assert [file["path"] for file in admitted.files_preview] == ["a"]
    assert "1 left out, file systems of the kernel: proc/" in admitted.warnings


def test_a_file_system_of_the_kernel_is_no_input(tmp_path):
    with pytest.raises(InputError, match="the kernel's file system proc"):
        admission.admit("/proc", stage_dir=tmp_path / "stage")
    assert not (tmp_path / "stage").exists()


def test_what_is_left_out_is_said(take, root):
    fill(root, "a", ".git/config", "build/out.log")
    (root / "link").symlink_to(root / "a")
    os.mkfifo(root / "pipe")
    assert take().warnings == [
        "2 left out, caches, dependencies and build products: .git/, build/",
        "1 left out, symbolic links, which are not followed: link",
        "1 left out, devices, sockets and pipes: pipe",
    ]


def test_a_stage_of_an_earlier_session_is_replaced(take, tmp_path, root):
    fill(root, "a")
    old = tmp_path / "home" / "stage" / "tree"
    old.mkdir(parents=True)
    (old / "left-over").write_text("x")
    take()
    assert staged(tmp_path) == ["a"]


@pytest.mark.parametrize(
    "glob", ["*" * 300 + "b", "*a" * 30 + "b", "*?" * 30 + "b", "*[!x]" * 30 + "b", "**/a/**/a/**/a*b"]
)
def test_no_pattern_takes_longer_than_a_name_is_long(glob):
    selection = Selection(glob)
    begun = time.monotonic()
    assert selection.refused("a" * 250) == "not selected"
    assert selection.refused("a/" * 60 + "c") == "not selected"
    assert time.monotonic() - begun < 2


@pytest.mark.parametrize(
    ("glob", "path", "wanted"),
    [("*a*b*c", "xaabbcc", True), ("*a*b*c", "cba", False), ("*a*b/c", "aa/b/c", False), ("*[!a]*b", "a/cb", True),
     ("x*[!a]*b", "xa/b", False), ("*a*[]x]*.*", "ba]q.c", True), ("**.log", "a/b.log", True)],
)  # fmt: skip
def test_stars_match_what_git_says(glob, path, wanted):
    assert (Selection(glob).refused(path) is None) is wanted


@pytest.mark.parametrize("glob", ["[z-a]", "\\", "**/a/**/b/**/c/**/d"])
def test_a_pattern_that_cannot_be_is_refused(glob):
    with pytest.raises(UsageError):
        Selection(glob)


def test_what_only_a_mount_leaves_out_is_told_how_to_get_in(take, root):
    fill(root, "a")
    (root / "a").chmod(0o600)
    with pytest.raises(InputError) as caught:
        take(mode="bind")
    assert "leave out --bind" in caught.value.hint
