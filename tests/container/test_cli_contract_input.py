"""Inputs of every kind a person can name: what is refused, in one line and with nothing left; and odd ones that work."""

import os
import socket
import stat
from pathlib import Path

import pytest

pytestmark = pytest.mark.container


def refused(cli, path, *args):
    before = {entry["session"] for entry in cli.ok("list")["sessions"]}
    result = cli("start", "--input", path, "--provider", "scripted", *args)
    assert (result.code, result.error["kind"]) == (2, "input"), result
    assert len(result.err.splitlines()) == 1
    assert result.error["hint"]
    assert {entry["session"] for entry in cli.ok("list")["sessions"]} == before
    return result.error["message"]


def test_a_missing_path(cli, tmp_path):
    assert "no such file" in refused(cli, str(tmp_path / "absent"))


def test_a_dangling_link(cli, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "absent")
    refused(cli, str(tmp_path / "link"))


def test_an_empty_file(cli, tmp_path):
    (tmp_path / "empty").touch()
    assert "empty" in refused(cli, str(tmp_path / "empty"))


def test_an_empty_directory_and_one_where_nothing_matches(cli, tmp_path):
    refused(cli, str(tmp_path))
    (tmp_path / "a.txt").write_text("x")
    refused(cli, str(tmp_path), "--glob", "*.py")


def test_a_fifo_a_socket_and_a_device_do_not_block(cli, tmp_path):
    os.mkfifo(tmp_path / "fifo")
    assert "FIFO" in refused(cli, str(tmp_path / "fifo"))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(tmp_path / "sock"))
        assert "socket" in refused(cli, str(tmp_path / "sock"))
    assert "device" in refused(cli, "/dev/zero")


def test_a_file_that_the_user_may_not_read(cli, tmp_path):
    path = tmp_path / "secret"
    path.write_text("x")
    path.chmod(0)
    if os.access(path, os.R_OK):  # root reads everything but the kernel's write-only settings
        path = Path("/proc/sys/vm/compact_memory")
    assert "permission" in refused(cli, str(path))


def test_a_path_with_a_nul_or_no_path_at_all(cli):
    assert cli("start", "--input", "").code == 2


@pytest.mark.parametrize(
    "name",
    [
        b"with space.txt",
        b"quote'\"double.txt",
        b"line\nbreak.txt",
        b"-dash",
        b"colon:comma,.txt",
        b"caf\xc3\xa9 \xf0\x9f\x98\x80.txt",
        b"not utf-8 \xff\xfe.txt",
        b"esc\x1b[31m.txt",
        b"$(reboot) `x` %s \\",
        b"bidi\xe2\x80\xae.txt",
    ],
    ids=repr,
)
def test_an_odd_name_is_read_like_any_other_and_shown_escape_free(cli, tmp_path, name):
    path = tmp_path / os.fsdecode(name)
    path.write_bytes(b"some content\n")
    path.chmod(0o644)
    result = cli("start", "--input", os.fsencode(path), "--provider", "scripted")
    started = result.doc
    try:
        done = cli.exec("print(context, list(files)[0] in files, len(context_files))", "--session", started["session"])
        assert done["stdout"] == "some content\n True 1\n"
        shown = started["input"] + started["files_preview"][0]["path"]
        assert not set(shown) & set("\x1b\n\u202e")
        shown.encode("utf-8")
    finally:
        cli.ok("stop", "--session", started["session"])


def test_odd_names_inside_a_directory(cli, tmp_path):
    names = [b"plain.txt", b"a b.txt", b"new\nline.txt", b"\xff\xfe.txt", b"esc\x1b[2J.txt", b"sub/deep'er.txt"]
    (tmp_path / "sub").mkdir()
    for name in names:
        (tmp_path / os.fsdecode(name)).write_bytes(b"content of " + name + b"\n")
    with cli.session(tmp_path) as started:
        assert started["file_count"] == len(names)
        assert all(not set(entry["path"]) & set("\x1b\n") for entry in started["files_preview"])
        done = cli.exec(
            "print(all(str(files[e['path']]) == str(context[e['start']:e['end']]) for e in context_files), len(files))\n"
            "print(files['plain.txt'])",
            "--session",
            started["session"],
        )
        assert done["stdout"] == "True 6\ncontent of plain.txt\n\n"


def test_a_relative_path_starts_at_the_callers_folder(cli, log_file):
    result = cli("start", "--input", log_file.name, "--provider", "scripted", cwd=log_file.parent)
    assert result.doc["input"] == str(log_file)
    cli.ok("stop", "--session", result.doc["session"])


def test_a_file_that_only_its_owner_may_read_is_staged(cli, tmp_path):
    path = tmp_path / "private.log"
    path.write_text("owner only\n")
    path.chmod(0o600)
    with cli.session(path) as started:
        assert cli.exec("print(context)", "--session", started["session"])["stdout"] == "owner only\n\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_binary_file_is_text_with_replacement_characters(cli, tmp_path):
    path = tmp_path / "blob.bin"
    path.write_bytes(bytes(range(256)) * 4)
    path.chmod(0o644)
    with cli.session(path) as started:
        assert started["context_total_bytes"] == 1024
        assert not set(started["context_prefix"]) & {"\x1b", "\x00", "\x9b"}
        done = cli.exec("print(len(context), type(context).__name__)", "--session", started["session"])
        assert done["status"] == "ok"


def test_globs_and_excludes_are_comma_lists_in_gitignore_syntax(cli, tmp_path):
    for name in ("a.py", "b.md", "c.txt", "sub/d.py", "sub/tests/e.py", ".env"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{name}\n")
    with cli.session(tmp_path, "--glob", "*.py,*.md", "--exclude", "tests/") as started:
        done = cli.exec("print(sorted(files))", "--session", started["session"])
        assert done["stdout"] == "['a.py', 'b.md', 'sub/d.py']\n"


def test_a_filtered_file_is_not_in_the_container_at_all(cli, tmp_path):
    (tmp_path / "a.py").write_text("code\n")
    (tmp_path / ".env").write_text("SECRET=hunter2\n")
    with cli.session(tmp_path, "--glob", "*.py") as started:
        done = cli.exec(
            "import os\nprint([n for r, d, f in os.walk('/input') for n in f if 'env' in n])",
            "--session",
            started["session"],
        )
        assert done["stdout"] == "[]\n"


def test_an_input_that_changes_is_noticed(cli, tmp_path):
    path = tmp_path / "growing.log"
    path.write_text("first\n")
    path.chmod(0o644)
    with cli.session(path) as started:
        named = ("--session", started["session"])
        assert cli.exec("x = 1", *named)["warnings"] == []
        with path.open("a") as file:
            file.write("second\n")
        done = cli.exec("print(len(context))", *named)
        assert any("changed" in text for text in done["warnings"])
        assert done["status"] == "ok"


def test_a_snapshot_does_not_change_with_its_file(cli, tmp_path):
    path = tmp_path / "growing.log"
    path.write_text("first\n")
    with cli.session(path, "--snapshot") as started:
        path.write_text("other text\n")
        done = cli.exec("print(context)", "--session", started["session"])
        assert (done["stdout"], done["warnings"]) == ("first\n\n", [])


def test_snapshot_and_bind_exclude_each_other(cli, log_file):
    assert cli("start", "--input", str(log_file), "--snapshot", "--bind").code == 2


def test_an_absent_image_and_an_unknown_runtime_are_said_in_one_line(cli, log_file):
    result = cli("start", "--input", str(log_file), "--provider", "scripted", "--image", "example.invalid/none:1")
    assert (result.code, result.error["kind"]) == (3, "image")
    result = cli("start", "--input", str(log_file), "--provider", "scripted", "--runtime", "no-such-runtime")
    assert result.code in {2, 3}
    assert "no-such-runtime" in result.error["message"]


def test_a_provider_without_a_key_is_a_missing_prerequisite(cli, log_file):
    for provider in ("anthropic", "openai"):
        result = cli("start", "--input", str(log_file), "--provider", provider)
        assert (result.code, result.error["kind"]) == (3, "prerequisite")
        assert "KEY" in result.error["hint"]
