"""``grep`` against its definition: ``re.search`` on each line. The fast ways must not be seen."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlm_sandbox.guest import grep as grep_module
from rlm_sandbox.guest import pattern as patterns
from rlm_sandbox.guest.document import Document
from rlm_sandbox.guest.errors import TooLarge
from rlm_sandbox.guest.grep import grep
from rlm_sandbox.guest.source import BytesSource
from rlm_sandbox.guest.text import Text

pytestmark = pytest.mark.unit

WORDS = [
    "ERROR",
    "error",
    "Err",
    "disk",
    "disk.full",
    "a",
    "b",
    " ",
    "\t",
    "\x1c",
    "é",
    "\u017f",
    "K",
    "😀",
    "\n",
    "\n",
    "\r\n",
    "\r",
    "1",
    "23",
    "=",
    "timeout",
    "foo",
    "bar",
]
raw = st.lists(st.sampled_from([word.encode() for word in WORDS] + [b"\xff", b"\xe2\x82"]), max_size=60).map(b"".join)

PATTERNS = [
    "ERROR", "(?i)error", r"disk\.full", "disk.full", "ERROR|disk", "ERROR|(?i:disk)", "^ERROR", "ERROR$", "^$", r"\s+", r"a\s+b", r"[^a]+b",
    r"\W", r"\D+\d", r"(?s)ERROR.*a", r"ERROR.*timeout", r"(foo|bar).*disk", r"(?=.*ERROR)(?=.*disk)", r"(?<!a)b", r"\Aa", r"a\Z", r"a\Z|foo", r"\bdisk\b",
    r"\Bisk", r"(a)\1", "é", "[é😀]", r"\xe9", r"\u00e9|ERROR", r"[\s,]a", r"[^\S]", r"(?x) disk  # comment", r"(?:ERROR)+?", r"(?P<n>ERROR)(?P=n)?",
    r"ERROR\n?", r"a{2,}", r"x*", "", r"(?>ERROR|ERR)a", r"a*+b", r"[]a]", r"[^]a]+", r"(?i)[k]", r"(?i)s", r"\.", r"=\d+$", r"\r", r".\Z", r"(?a)\w+$", r"timeout\s*$",
]  # fmt: skip


def reference(text, pattern, **options):
    flags = re.IGNORECASE if options.get("ignore_case") else 0
    compiled = re.compile(re.escape(pattern) if options.get("fixed") else pattern, flags)
    found, offset = [], 0
    rows = text.split("\n")
    if not rows[-1]:
        rows.pop()
        rows = [row + "\n" for row in rows]
    else:
        rows = [row + "\n" for row in rows[:-1]] + rows[-1:]
    for number, row in enumerate(rows, start=1):
        line = row[:-2] if row.endswith("\r\n") else row.removesuffix("\n")
        if (compiled.search(line) is not None) is not options.get("invert", False):
            found.append((number, offset, line))
        offset += len(row)
    return found


def test_all_patterns_compile_here_or_the_table_is_wrong():
    for pattern in PATTERNS:
        re.compile(pattern)


@given(
    raw,
    st.sampled_from(PATTERNS),
    st.sampled_from([{}, {"ignore_case": True}, {"fixed": True}, {"invert": True}]),
    st.sampled_from([8, 40, 4096]),
)
@settings(max_examples=1500, deadline=None)
def test_the_matching_lines_are_those_in_which_re_search_finds_something(data, pattern, options, chunk):
    if pattern.startswith("(?") and options.get("fixed"):
        pattern = "(?"
    text = data.decode("utf-8", "replace")
    grep_module.CHUNK, whole = chunk, grep_module.CHUNK
    try:
        found = grep(Text.from_bytes(data, block=7), pattern, **options)
    finally:
        grep_module.CHUNK = whole
    assert [(m.line, m.offset, m.text) for m in found] == reference(text, pattern, **options)
    for match in found:
        assert text[match.offset :].startswith(match.text)
        if not options.get("invert"):
            assert text[match.start : match.end] == match.match.group()


@given(raw, st.integers(0, 5), st.integers(0, 30), st.integers(0, 60))
@settings(deadline=None)
def test_neighbours_and_limits_and_parts_of_a_text(data, context, low, high):
    text = data.decode("utf-8", "replace")[low:high]
    doc = Document(BytesSource(data), block=7)
    part = Text(doc, doc.byte_at(low), max(doc.byte_at(low), doc.byte_at(high)))
    rows = [line for _, _, line in reference(text, "")]
    found = grep(part, "a", context=context)
    assert [(m.line, m.offset, m.text) for m in found] == reference(text, "a")
    for match in found:
        assert match.before == rows[max(0, match.line - 1 - context) : match.line - 1]
        assert match.after == rows[match.line : match.line + context]
    assert list(grep(part, "a", max_count=1)) == [m.text for m in found][:1]


def test_a_match_is_a_str_and_the_result_a_sequence():
    found = grep(Text.from_bytes(b"one ERROR\ntwo\nthree ERROR\r\n"), "ERR(OR)")
    assert found[0] == "one ERROR"
    assert str(found[1]) == f"{found[1]}" == "three ERROR"
    assert type(str(found[1])) is str
    assert "\n".join(found) == "one ERROR\nthree ERROR"
    assert [m.line for m in found[-1:]] == [3]
    assert (found[1].start, found[1].end, found[1].match[1]) == (20, 25, "OR")
    assert len(found) == 2
    assert bool(found)
    assert not grep(Text.from_bytes(b"one"), "ERROR")
    with pytest.raises(IndexError):
        found[2]


def test_more_matches_than_memory_allows_are_refused_with_the_way_out(monkeypatch):
    monkeypatch.setattr(grep_module, "MATCHES_MAX", 10)
    text = Text.from_bytes(b"x\n" * 11)
    with pytest.raises(TooLarge, match="max_count"):
        grep(text, "x")
    assert len(grep(text, "x", max_count=10)) == 10


def test_a_line_as_long_as_the_file_is_searched_for_up_to_the_limit(monkeypatch):
    monkeypatch.setattr(grep_module, "CHUNK", 16)
    text = Text.from_bytes(b"x" * 1000 + b"ERROR" + b"x" * 1000, block=16)
    assert [m.line for m in grep(text, "ERROR")] == [1]
    monkeypatch.setattr(grep_module, "LINE_MAX", 100)
    with pytest.raises(TooLarge, match="finditer"):
        grep(text, "ERROR")


def test_wrong_arguments_are_refused():
    text = Text.from_bytes(b"x\n")
    for arguments in ({"pattern": b"x"}, {"pattern": re.compile(b"x")}, {"pattern": None}):
        with pytest.raises(TypeError):
            grep(text, **arguments)
    with pytest.raises(ValueError, match="negative"):
        grep(text, "x", max_count=-1)
    with pytest.raises(re.error):
        grep(text, "(")


@pytest.mark.parametrize(
    ("pattern", "literals"),
    [
        ("ERROR.*disk", ["ERROR"]),
        ("(?i)error", ["error"]),
        ("[A-Z]+Error", ["Error"]),
        ("(ERROR|WARN|FATAL): ", ["ERROR", "WARN", "FATAL"]),
        ("(?=.*x)timeout", ["timeout"]),
        ("(timeout)?", None),
        ("(timeout)+", ["timeout"]),
        (r"\d+", None),
        ("a|timeout", None),
    ],
)
def test_the_literals_that_a_pattern_cannot_do_without(pattern, literals):
    found = patterns.required(re.compile(pattern))
    assert (sorted(found) if found else found) == (sorted(literals) if literals else literals)
