"""The names a session gets for its input, over real files: one file, directories, and input that does not hold still."""

import copy
import errno
import gc
import itertools
import json
import os
import pickle
import random
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from rlm_sandbox.guest import helpers, parallel
from rlm_sandbox.guest import source as source_module
from rlm_sandbox.guest.document import Document
from rlm_sandbox.guest.errors import InputChanged, TooLarge
from rlm_sandbox.guest.source import Changes, FileSource
from rlm_sandbox.guest.text import Text

pytestmark = pytest.mark.component


def build_file(path, str_max=1000, name="input.txt"):
    return helpers.build({"kind": "file", "path": str(path), "index": None, "name": name}, str_max=str_max)


def build_directory(root, files, str_max=1000, index=True):
    rows = []
    for path, data in files.items():
        target = root / "tree" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
        rows.append({"path": path, "bytes": len(data), "chars": len(data.decode("utf-8", "replace"))})
    (root / "index.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {"kind": "directory", "path": str(root / "tree"), "index": str(root / "index.jsonl") if index else None}
    return helpers.build({**config, "name": "tree"}, str_max=str_max)


def concatenated(files):
    return "\n\n".join(
        f"======== FILE: {path} ({len(data.decode('utf-8', 'replace'))} chars) ========\n"
        + data.decode("utf-8", "replace")
        for path, data in files.items()
    )


FILES = {
    "a.txt": b"hello\nERROR one\n",
    "sub/b.txt": "h\u00e9llo \U0001f600\r\nERROR two\r\nend".encode(),
    "empty.txt": b"",
    "sub/broken.bin": b"\x80\x80\xff ERROR three \xe2\x82",
    "z \u00fc.md": b"# Title\n\npara one\nstill\n\n\npara two\n",
}


@pytest.mark.parametrize("str_max", [1_000_000, 160])
def test_a_directory_reads_as_its_files_behind_their_headers(tmp_path, str_max):
    names = build_directory(tmp_path, FILES, str_max)
    expected = concatenated(FILES)
    context = names["context"]
    assert isinstance(context, str if str_max > 1000 else Text)
    assert context == expected
    assert len(context) == len(expected)
    assert [entry["path"] for entry in names["context_files"]] == list(FILES)
    for entry in names["context_files"]:
        text = FILES[entry["path"]].decode("utf-8", "replace")
        assert sorted(entry) == ["chars", "end", "path", "start"]
        assert context[entry["start"] : entry["end"]] == text
        assert names["files"][entry["path"]] == text
        assert entry["chars"] == len(text)
    assert list(names["files"]) == list(FILES)
    assert "nothing" not in names["files"]
    with pytest.raises(KeyError):
        names["files"]["nothing"]
    assert [(m.text, expected[m.offset : m.offset + len(m)]) for m in names["grep"]("ERROR")] == [
        ("ERROR one",) * 2,
        ("ERROR two",) * 2,
        ("\ufffd\ufffd\ufffd ERROR three \ufffd",) * 2,
    ]
    assert [m.line for m in names["grep"]("ERROR", "sub/b.txt")] == [2]
    assert helpers.warnings() == []


def test_random_slices_of_a_large_directory_agree_with_the_whole(tmp_path):
    rng = random.Random(1)
    pieces = [b"a", b"line\n", "\u00e9\U0001f600".encode(), b"\x80\xff", b"ERROR"]
    files = {f"d{i % 7}/f{i}": b"".join(rng.choices(pieces, k=rng.randrange(400))) for i in range(300)}
    names = build_directory(tmp_path, files, str_max=20_000)
    context, expected = names["context"], concatenated(files)
    assert isinstance(context, Text)
    for _ in range(200):
        start = rng.randrange(len(expected))
        stop = start + rng.randrange(5000)
        assert context[start:stop] == expected[start:stop]
        assert context.find("ERROR", start) == expected.find("ERROR", start)
    assert context.count("ERROR") == expected.count("ERROR")
    assert [m.offset for m in names["grep"]("ERROR")] == [m.start() for m in re.finditer("(?m)^[^\n]*ERROR", expected)]
    assert len(list(Path("/proc/self/fd").iterdir())) < source_module.OPEN_FILES + 100


def test_a_directory_without_an_index_is_read_once_to_make_one(tmp_path):
    names = build_directory(tmp_path, {"b": b"two \xff", "a": b"one"}, index=False)
    assert names["context"] == concatenated({"a": b"one", "b": b"two \xff"})


def test_an_empty_file_and_an_empty_directory_are_empty_texts(tmp_path):
    (tmp_path / "empty").write_bytes(b"")
    names = build_file(tmp_path / "empty")
    assert names["context"] == ""
    assert list(names["lines"]()) == list(names["chunks"](5)) == list(names["grep"]("")) == names["sample"](3) == []
    assert build_directory(tmp_path, {})["context"] == ""


@pytest.mark.parametrize("str_max", [1_000_000, 50])
def test_a_file_gives_the_same_text_whether_it_is_small_or_lazy(tmp_path, str_max):
    data = "\ufefffirst \u00e9\r\nERROR x\rsame line\n\U0001f600\u2028end".encode() * 10 + b"\xff\xfe"
    (tmp_path / "f").write_bytes(data)
    names = build_file(tmp_path / "f", str_max)
    expected = data.decode("utf-8", "replace")
    context = names["context"]
    assert isinstance(context, str) == (str_max > 50)
    assert context == expected
    entry = names["context_files"][0]
    assert entry["path"] == "input.txt"
    assert (entry["start"], entry["end"], entry.get("chars")) == (0, len(expected), len(expected))
    assert dict(entry) == {"path": "input.txt", "start": 0, "end": len(expected), "chars": len(expected)}
    assert json.loads(json.dumps(names["context_files"])) == [dict(entry)]
    assert names["files"]["input.txt"] is context
    assert [str(line) for line in names["lines"]()] == [line.removesuffix("\r") for line in expected.split("\n")]
    assert [m.span() for m in names["finditer"](r"\w+$", flags=re.MULTILINE)] == [
        m.span() for m in re.finditer(r"\w+$", expected, re.MULTILINE)
    ]
    assert names["search"]("ERROR").start() == expected.index("ERROR")
    assert names["findall"]("(E)(R)") == re.findall("(E)(R)", expected)


@pytest.mark.parametrize("str_max", [1_000_000, 100])
@pytest.mark.parametrize(("size", "overlap"), [(1, 0), (7, 0), (7, 3), (100, 99), (5000, 10)])
def test_chunks_of_characters_cover_the_text_and_know_their_place(tmp_path, str_max, size, overlap):
    data = "\u00e9 line\n\U0001f600x".encode() * 17
    (tmp_path / "f").write_bytes(data)
    expected = data.decode()
    names = build_file(tmp_path / "f", str_max)
    if size > str_max and len(expected) > str_max:
        with pytest.raises(TooLarge):
            list(names["chunks"](size, overlap))
        return
    cut = list(names["chunks"](size, overlap))
    assert [chunk.index for chunk in cut] == list(range(len(cut)))
    assert all(expected[chunk.start : chunk.end] == chunk for chunk in cut)
    assert cut[0].start == 0
    assert cut[-1].end == len(expected)
    assert all(b.start == a.end - overlap for a, b in itertools.pairwise(cut))
    assert len(names["chunks"](size, overlap)) == len(cut)
    assert cut[0].index("l" if size > 2 else "\u00e9") == expected.index("l" if size > 2 else "\u00e9")


@pytest.mark.parametrize("str_max", [1_000_000, 60])
def test_chunks_by_lines_paragraphs_sections_tokens_and_files(tmp_path, str_max):
    text = "# A\n\npara one\nstill\n\n\n# B\nend\n"
    files = {"a.md": text.encode(), "b.md": b"x", "c.md": b"y"}
    names = build_directory(tmp_path, files, str_max)
    chunks = names["chunks"]
    whole = names["context"]
    assert chunks(2, by="lines", text="1\n2\n3\n")[:] == ["1\n2\n", "3\n"]
    assert list(chunks(2, 1, by="lines", text="1\n2\n3")) == ["1\n2\n", "2\n3"]
    assert list(chunks(1, by="paragraphs", text=text)) == ["# A\n\n", "para one\nstill\n\n\n", "# B\nend\n"]
    indented = "\n \n  one\r\n \r\n\ttwo\n\n"
    assert list(chunks(1, by="paragraphs", text=indented)) == ["\n \n  one\r\n \r\n", "\ttwo\n\n"]
    assert list(chunks(1, by="paragraphs", text=" \n\n")) == [" \n\n"]
    assert list(chunks(1, by=re.compile("^# ", re.MULTILINE), text=text)) == [
        "# A\n\npara one\nstill\n\n\n",
        "# B\nend\n",
    ]
    assert list(chunks(text, 1, by="paragraphs")) == list(chunks(1, by="paragraphs", text=text))
    assert list(chunks(1, by="files")) == [data.decode() for data in files.values()]
    assert [c.start for c in chunks(1, by="files")] == [entry["start"] for entry in names["context_files"]]
    for size, by in ((3, "lines"), (3, "tokens"), (1, "paragraphs"), (3, "chars")):
        assert "".join(chunks(size, by=by)) == str(whole[:40]) + "".join(whole[40:])
    assert [len(c) for c in chunks(2, by="tokens", text="abcdefghijk")] == [8, 3]
    assert [len(c) for c in chunks(2, by="tokens", text="\u4e00" * 5)] == [2, 2, 1]
    for wrong in (
        {"size": 0},
        {"size": -1},
        {"size": 5, "overlap": 5},
        {"size": 5, "overlap": -1},
        {"size": 5, "by": "x"},
    ):
        with pytest.raises(ValueError, match=r"size|overlap|by"):
            chunks(**wrong)
    with pytest.raises(TypeError, match="needs a size"):
        chunks()


@pytest.mark.parametrize("str_max", [1_000_000, 100])
@pytest.mark.parametrize("by", ["chars", "lines"])
def test_any_chunk_can_be_had_by_its_number(tmp_path, str_max, by):
    (tmp_path / "f").write_bytes(b"a\xc3\xa9\n\xff\r\nword  \n\n\xf0\x9f\x98\x80" * 30)
    made = build_file(tmp_path / "f", str_max)["chunks"](7, 2, by=by)
    every = list(made)
    for key in (0, -1, len(every) - 1, True, slice(None, None, -2), slice(1, 4), slice(-3, None)):
        found, expected = made[key], every[key]
        assert found == expected
        pairs = zip(found, expected, strict=True) if isinstance(key, slice) else [(found, expected)]
        assert all((one.start, one.end, one.index) == (two.start, two.end, two.index) for one, two in pairs)
    for key in (len(every), -len(every) - 1):
        with pytest.raises(IndexError):
            made[key]


def test_the_entry_of_a_lazy_file_is_a_whole_dict_however_it_is_taken(tmp_path):
    (tmp_path / "f").write_bytes("\u00e9\n".encode() * 50)
    whole = {"path": "f", "start": 0, "end": 100, "chars": 100}
    for take in (dict, lambda e: e.copy(), lambda e: e | {}, lambda e: {} | e, lambda e: {**e}, copy.deepcopy,
                 lambda e: json.loads(json.dumps(e)), lambda e: pickle.loads(pickle.dumps(e)), lambda e: dict(e.items())):  # fmt: skip
        (entry,) = build_file(tmp_path / "f", 10, name="f")["context_files"]
        assert take(entry) == whole


def test_texts_can_be_copied_and_pickled_and_outlive_their_copies(tmp_path):
    (tmp_path / "f").write_bytes(b"a\xc3\xa9\n\xff\r\nword  \n\n\xf0\x9f\x98\x80" * 30)
    names = [build_file(tmp_path / "f", 50), build_directory(tmp_path, FILES, str_max=50)]
    for text in [each["context"] for each in names]:
        copies = [copy.deepcopy([text])[0], copy.copy(text), pickle.loads(pickle.dumps(text))]
        assert all(list(each) == list(text) for each in copies)
        del copies
        gc.collect()
        assert text[:5] == "".join(itertools.islice(text, 5))


def test_a_tiny_limit_makes_the_context_lazy_and_leaves_what_it_gives_a_str(tmp_path):
    (tmp_path / "f").write_bytes(b"some words\n" * 100)
    config = {"kind": "file", "path": str(tmp_path / "f"), "index": None, "name": "f"}
    names = helpers.build(config, str_max=0, piece_max=1000)
    context = names["context"]
    assert isinstance(context, Text)
    assert type(context[:200]) is str
    assert type(context[:2000]) is Text
    assert [len(chunk) for chunk in names["chunks"](600)] == [600, 500]
    assert hash(context) == hash(copy.copy(context))
    with pytest.raises(TooLarge):
        str(context)


def test_lines_are_numbered_as_grep_numbers_them(tmp_path):
    (tmp_path / "f").write_bytes(b"".join(b"line %d\n" % i for i in range(1, 2001)))
    for str_max in (1_000_000, 100):
        names = build_file(tmp_path / "f", str_max)
        hit = names["grep"]("line 1234$", context=2)[0]
        assert hit.line == 1234
        assert list(names["lines"](start=hit.line, stop=hit.line + 2)) == ["line 1234", "line 1235"]
        assert hit.before == ["line 1232", "line 1233"]
        assert hit.after == ["line 1235", "line 1236"]
        assert list(names["lines"](start=5000)) == []
        sample = names["sample"](20, seed=7)
        assert sample == names["sample"](20, seed=7) != names["sample"](20, seed=8)
        assert all(line == f"line {line.line}" for line in sample)
        assert all(names["context"][line.offset :].startswith(line) for line in sample)
        assert len(names["sample"](5000)) == 2000
        peek = names["peek"](40)
        assert peek.startswith(f"{(tmp_path / 'f').stat().st_size} ")
        assert "line 1\n" in peek
        assert peek.endswith("line 2000\n")


def test_a_file_that_shrinks_raises_where_bytes_are_missing_and_is_reported(tmp_path):
    path = tmp_path / "f"
    path.write_bytes(b"0123456789" * 100)
    context = build_file(path, 10)["context"]
    assert context[:4] == "0123"
    with path.open("r+b") as file:
        file.truncate(500)
    assert context[:4] == "0123"
    for read in (lambda: context[600:610], lambda: context.count("9"), lambda: len(context.splitlines())):
        with pytest.raises(InputChanged, match="changed"):
            read()
    assert [note for note in helpers.warnings() if "changed" in note and "shrank" in note]
    assert helpers.warnings() == []


def test_a_file_that_grows_or_is_rewritten_in_place_is_reported_and_never_breaks_a_read(tmp_path):
    path = tmp_path / "f"
    path.write_bytes("\u00e9t\u00e9\n".encode() * 500)
    names = build_file(path, 10)
    context = names["context"]
    assert context[-4:] == "\u00e9t\u00e9\n"
    with path.open("ab") as file:
        file.write(b"more")
    assert context[-4:] == "\u00e9t\u00e9\n"
    assert len(context) == 2000
    assert any("changed" in note and "grew" in note for note in helpers.warnings())
    with path.open("r+b") as file:
        file.write(b"\xff\xe2\x82" * 700)
    for read in (
        lambda: context[1000:1010], lambda: context[-5:], lambda: list(names["lines"]()), lambda: context.find("t\u00e9"),
        lambda: names["grep"]("t")[:], lambda: context[1999], lambda: list(context)[:3], lambda: context.rfind("t"),
        lambda: names["chunks"](7)[:],
    ):  # fmt: skip
        try:
            read()
        except (InputChanged, IndexError, TooLarge):
            continue


def test_a_file_that_is_replaced_is_read_as_it_was_and_reported(tmp_path):
    path = tmp_path / "f"
    path.write_bytes(b"old text " * 100)
    context = build_file(path, 10)["context"]
    (tmp_path / "new").write_bytes(b"new text " * 100)
    (tmp_path / "new").replace(path)
    assert context[:8] == "old text"
    assert any("changed" in note and "replaced" in note for note in helpers.warnings())


def test_a_small_file_is_a_snapshot_and_its_change_is_still_reported(tmp_path):
    path = tmp_path / "f"
    path.write_bytes(b"as it was")
    context = build_file(path)["context"]
    path.write_bytes(b"another")
    assert context == "as it was"
    assert any("changed" in note for note in helpers.warnings())
    path.unlink()
    assert any("changed" in note and "removed" in note for note in helpers.warnings())


def test_a_file_of_a_directory_that_disappears_is_a_typed_error(tmp_path):
    names = build_directory(tmp_path, FILES, str_max=10)
    (tmp_path / "tree" / "a.txt").unlink()
    with pytest.raises(InputChanged, match=r"a\.txt"):
        names["files"]["a.txt"][:3]
    assert any("a.txt" in note and "changed" in note for note in helpers.warnings())


def test_a_cell_that_used_up_its_descriptors_is_not_told_that_the_input_changed(tmp_path, monkeypatch):
    names = build_directory(tmp_path, FILES, str_max=10)

    def refuse(*_):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(OSError, match="Too many") as caught:
        str(names["files"]["a.txt"])
    assert not isinstance(caught.value, InputChanged)
    monkeypatch.undo()
    assert "".join(names["files"]["a.txt"]) == FILES["a.txt"].decode()
    assert helpers.warnings() == []


def test_forked_counting_equals_counting_alone(tmp_path, monkeypatch):
    data = b"".join(b"line %d ERROR \xc3\xa9\xff\n" % i if i % 3 else b"plain\n" for i in range(20_000))
    (tmp_path / "f").write_bytes(data)
    expected = data.decode("utf-8", "replace")
    monkeypatch.setattr(parallel, "WORTH", 4096)
    monkeypatch.setattr(parallel, "cores", lambda: 3)
    text = Text(Document(FileSource(str(tmp_path / "f"), Changes()), block=1024, str_max=100))
    assert len(text) == len(expected)
    assert text.count("ERROR") == expected.count("ERROR")
    helpers_ = helpers.Helpers(text, [], {}, 100)
    found = helpers_.grep("ERROR")
    rows = [(i, row) for i, row in enumerate(expected.split("\n"), start=1) if "ERROR" in row]
    assert [(m.line, m.text) for m in found[::997]] == rows[::997]
    assert len(found) == len(rows)
    assert text[123_456:123_460] == expected[123_456:123_460]
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_a_child_that_cannot_be_forked_or_dies_costs_nothing_but_time(tmp_path, monkeypatch):
    (tmp_path / "f").write_bytes(b"x\n" * 50_000)
    monkeypatch.setattr(parallel, "WORTH", 4096)
    monkeypatch.setattr(parallel, "cores", lambda: 4)

    def refuse():
        raise BlockingIOError(11, "pids limit")

    for name in ("fork", "pipe"):
        monkeypatch.setattr(os, name, refuse)
        text = Text(Document(FileSource(str(tmp_path / "f"), Changes()), block=1024))
        assert text.count("x") == 50_000
    monkeypatch.undo()
    monkeypatch.setattr(parallel, "WORTH", 4096)
    monkeypatch.setattr(parallel, "cores", lambda: 4)
    monkeypatch.setattr(parallel, "_DONE", b"")  # as if every child had been killed before its end
    monkeypatch.setattr(parallel, "_collect", lambda child: None)
    assert text.count("x") == 50_000


SPARSE = """
    import json, resource, sys
    limit = 256 << 20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    from rlm_sandbox.guest import helpers
    names = helpers.build({"kind": "file", "path": sys.argv[1], "index": None, "name": "big"}, str_max=1 << 20)
    context, grep = names["context"], names["grep"]
    hits = grep("NEEDLE")
    print(json.dumps({
        "len": len(context), "tail": context[-7:], "count": context.count("NEEDLE"), "found": context.find("NEEDLE"),
        "hits": [[m.line, m.offset, m.text[:20]] for m in hits], "lines": sum(1 for _ in names["lines"]()),
        "ci": len(grep("needle", ignore_case=True)), "regex": [m.span() for m in context.finditer("NEEDLE=[0-9]+")],
        "middle": context[len(context) // 2], "newlines": context.count("\\n"),
        "peak_mib": int(open("/proc/self/status").read().partition("VmHWM:")[2].split()[0]) // 1024,
    }))
"""


def test_300_mib_are_read_in_a_quarter_of_a_gigabyte_of_address_space(tmp_path):
    path = tmp_path / "big"
    line = b"." * 999 + b"\n"
    block = line * 1049  # about 1 MiB
    with path.open("wb") as file:
        for i in range(300):
            file.write(block)
            if i in (100, 250):
                file.write("\u00e9 NEEDLE=%d\n".encode() % i)
        file.write(b"the end")
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SPARSE), str(path)],
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    got = json.loads(done.stdout)
    chars = 300 * len(block) + 2 * len("\u00e9 NEEDLE=100\n") + len("the end")
    first, second = 101 * len(block), 251 * len(block) + len("\u00e9 NEEDLE=100\n")
    assert got["len"] == chars
    assert got["tail"] == "the end"
    assert (got["count"], got["ci"], got["newlines"]) == (2, 2, 300 * 1049 + 2)
    assert got["found"] == first + 2
    assert got["hits"] == [[101 * 1049 + 1, first, "\u00e9 NEEDLE=100"], [251 * 1049 + 2, second, "\u00e9 NEEDLE=250"]]
    assert got["regex"] == [[first + 2, first + 12], [second + 2, second + 12]]
    assert got["lines"] == 300 * 1049 + 3
    assert got["middle"] == "."
    assert got["peak_mib"] < 200


def test_a_hundred_thousand_files_are_one_context(tmp_path):
    tree = tmp_path / "tree"
    (tree / "000").mkdir(parents=True)
    for number in range(1000):
        (tree / "000" / f"{number:03}").write_text(f"{number:03}")
    for folder in range(1, 100):  # the same thousand files by a hundred names: the making of files is not the test
        (tree / f"{folder:03}").symlink_to("000")
    (tmp_path / "index.jsonl").write_text(
        "".join(f'{{"path":"{i // 1000:03}/{i % 1000:03}","bytes":3,"chars":3}}\n' for i in range(100_000))
    )
    names = helpers.build(
        {"kind": "directory", "path": str(tree), "index": str(tmp_path / "index.jsonl"), "name": "t"}, str_max=1000
    )
    context, spans = names["context"], names["context_files"]
    assert len(spans) == len(names["files"]) == 100_000
    for i in (0, 1, 54_321, 99_999):
        text = names["files"][spans[i]["path"]]
        assert context[spans[i]["start"] : spans[i]["end"]] == text == spans[i]["path"][4:]
    assert context[-3:] == "999"
    assert len(context) == spans[-1]["end"]
    assert names["grep"]("^765$")[98].offset == spans[98_765]["start"]


@pytest.mark.parametrize("str_max", [1_000_000, 20])
@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le"])
def test_utf_16_files_read_as_their_text_alone_and_among_others(tmp_path, str_max, encoding):
    text = "first \u00e9\r\nERROR \U0001f600\n" * 20
    data = {"utf-16-le": b"\xff\xfe", "utf-16-be": b"\xfe\xff", "utf-32-le": b"\xff\xfe\0\0"}[encoding] + text.encode(
        encoding
    )
    (tmp_path / "alone").write_bytes(data)
    names = build_file(tmp_path / "alone", str_max)
    assert names["context"] == text
    assert [m.offset for m in names["grep"]("ERROR")] == [m.start() for m in re.finditer("ERROR", text)]
    assert [m.line for m in names["grep"]("ERROR", max_count=2)] == [2, 4]

    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "a").write_bytes(data)
    (tmp_path / "tree" / "b").write_bytes(b"plain \xff")
    rows = [
        {"path": "a", "bytes": len(data), "chars": len(text), "encoding": encoding, "utf8_bytes": len(text.encode())},
        {"path": "b", "bytes": 7, "chars": 7},
    ]
    (tmp_path / "index").write_text("".join(json.dumps(row) + "\n" for row in rows))
    expected = (
        f"======== FILE: a ({len(text)} chars) ========\n{text}\n\n======== FILE: b (7 chars) ========\nplain \ufffd"
    )
    for index in (str(tmp_path / "index"), None):
        config = {"kind": "directory", "path": str(tmp_path / "tree"), "index": index, "name": "tree"}
        names = helpers.build(config, str_max=str_max)
        assert names["context"] == expected
        assert names["files"]["a"] == text
        assert helpers.warnings() == []


def test_peek_takes_a_text_first_and_says_what_it_wants(tmp_path):
    (tmp_path / "f").write_bytes(b"hello world")
    peek = build_file(tmp_path / "f")["peek"]
    assert peek("abcdef", 2).endswith("--- first 1 ---\na\n--- last 1 ---\nf")
    assert peek("abcdef") == peek(text="abcdef")
    for wrong in (None, 1.5, [1]):
        with pytest.raises(TypeError, match=r"peek\(n=2000, text=None\) takes a number of characters, not"):
            peek(wrong)
