"""``Text`` against ``str``: the same operations on the same bytes, with blocks so small that every boundary is met."""

import itertools
import re
import sys
from array import array
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rlm_sandbox.guest import cells, doors, parts, regex, utf8
from rlm_sandbox.guest.document import Document
from rlm_sandbox.guest.errors import TooLarge
from rlm_sandbox.guest.source import BytesSource
from rlm_sandbox.guest.text import Text

pytestmark = pytest.mark.unit
settings.register_profile("text", deadline=None, max_examples=150)
settings.load_profile("text")

WORDS = [
    "a",
    "ab",
    "aab",
    "é",
    "ßx",
    "\u20ac",
    "😀",
    "\n",
    "\r\n",
    "\r",
    " ",
    "\t",
    "\x1c",
    "\x85",
    "\u2028",
    "\ufffd",
    "\ufeff",
    "ERROR",
    "\x00",
]
BROKEN = [
    b"\xff",
    b"\x80",
    b"\xe2\x82",
    b"\xf0\x9f\x98",
    b"\xc0\xaf",
    b"\xed\xa0\x80",
    b"\xf4\x90\x80\x80",
    b"\x80\x80\x80\x80\x80",
    b"\xe0\x80",
]
raw = st.lists(st.sampled_from([word.encode() for word in WORDS] + BROKEN) | st.binary(max_size=6), max_size=30).map(
    b"".join
)
blocks = st.integers(4, 17)
bound = st.none() | st.integers(-40, 60)
needles = st.lists(st.sampled_from(WORDS), min_size=0, max_size=3).map("".join)


def both(data, block=5, str_max=10_000):
    return data.decode("utf-8", "replace"), Text.from_bytes(data, block=block, str_max=str_max)


def outcome(call):
    try:
        return call()
    except (IndexError, ValueError, TypeError) as error:
        return type(error)


@given(raw, st.integers(0, 200))
def test_a_safe_cut_never_changes_what_the_bytes_decode_to(data, at):
    at = min(at, len(data))
    if at < len(data):
        at -= utf8.safe_cut(data[max(0, at - 3) : at], data[at])
    whole = data.decode("utf-8", "replace")
    assert utf8.decode(data[:at]) + utf8.decode(data[at:]) == whole
    assert utf8.byte_length(data, len(utf8.decode(data[:at]))) == at


@given(raw, blocks)
def test_length_text_and_characters_are_those_of_the_str(data, block):
    s, t = both(data, block)
    assert list(t) == list(s)
    assert len(t) == len(s)
    assert str(t) == s
    assert t == s
    assert s == t
    assert hash(t) == hash(s)
    assert bool(t) == bool(s)
    assert f"{t:>5}" == f"{s:>5}"
    assert list(reversed(t)) == list(reversed(s))
    assert t.isascii() == s.isascii()


@given(raw, blocks, st.integers(-40, 60))
def test_an_index_gives_the_character_or_an_index_error(data, block, i):
    s, t = both(data, block)
    assert outcome(lambda: t[i]) == outcome(lambda: s[i])


@given(raw, blocks, bound, bound, st.none() | st.integers(-5, 5).filter(bool))
def test_a_slice_with_any_bounds_and_step_gives_the_same_characters(data, block, start, stop, step):
    s, t = both(data, block)
    assert t[start:stop:step] == s[start:stop:step]


@given(raw, blocks, st.lists(st.tuples(bound, bound), max_size=4))
def test_slices_taken_in_any_order_agree_whatever_the_index_already_knows(data, block, bounds):
    s, t = both(data, block)
    for a, b in bounds:
        assert t[a:b] == s[a:b]


@given(raw, blocks, needles, bound, bound)
@settings(max_examples=400)
def test_searching_gives_the_same_positions(data, block, needle, start, stop):
    s, t = both(data, block)
    assert (needle in t) == (needle in s)
    for name in ("find", "rfind", "index", "rindex", "count", "startswith", "endswith"):
        assert outcome(lambda: getattr(t, name)(needle)) == outcome(lambda: getattr(s, name)(needle)), name  # noqa: B023
        expected = outcome(lambda: getattr(s, name)(needle, start, stop))  # noqa: B023
        assert outcome(lambda: getattr(t, name)(needle, start, stop)) == expected, name  # noqa: B023


@given(raw, blocks, needles, needles, bound)
def test_prefixes_and_suffixes_may_be_tuples(data, block, one, two, start):
    s, t = both(data, block)
    assert t.startswith((one, two), start) == s.startswith((one, two), start)
    assert t.endswith((one, two), start) == s.endswith((one, two), start)
    assert t.startswith(()) is False


@given(raw, blocks, st.none() | needles, st.integers(-1, 4))
@settings(max_examples=400)
def test_splitting_gives_the_same_pieces(data, block, sep, maxsplit):
    s, t = both(data, block)
    for name in ("split", "rsplit"):
        expected = outcome(lambda: getattr(s, name)(sep, maxsplit))  # noqa: B023
        got = outcome(lambda: getattr(t, name)(sep, maxsplit))  # noqa: B023
        assert (got if isinstance(got, type) else list(got)) == expected


@given(raw, blocks, needles)
def test_partitions_are_the_same(data, block, sep):
    s, t = both(data, block)
    assert outcome(lambda: t.partition(sep)) == outcome(lambda: s.partition(sep))
    assert outcome(lambda: t.rpartition(sep)) == outcome(lambda: s.rpartition(sep))


@given(raw, blocks, st.booleans())
def test_splitlines_cuts_where_str_does(data, block, keepends):
    s, t = both(data, block)
    assert list(t.splitlines(keepends)) == s.splitlines(keepends)
    assert len(t.splitlines(keepends)) == len(s.splitlines(keepends))


@given(raw, blocks)
def test_lines_end_at_newlines_only_and_lose_the_carriage_return_before_one(data, block):
    s, t = both(data, block)
    expected = s.replace("\r\n", "\n").split("\n")
    if not expected[-1]:
        expected.pop()
    assert list(t.lines()) == expected


@given(raw, blocks, bound, bound)
def test_the_pieces_of_a_split_can_be_indexed_and_sliced(data, block, a, b):
    s, t = both(data, block)
    parts, expected = t.split("a"), s.split("a")
    assert list(parts[a:b]) == expected[a:b]
    assert list(parts[a:b:2]) == expected[a:b:2]
    assert list(parts[b:a:-1]) == expected[b:a:-1]
    assert parts[-1] == expected[-1]
    assert len(parts) == len(expected)
    assert outcome(lambda: parts[a or 0]) == outcome(lambda: expected[a or 0])


@given(raw, raw, blocks)
def test_comparisons_agree(one, two, block):
    (s, t), (u, v) = both(one, block), both(two, block)
    assert (t == v, t == u, t < v, t <= u, t > u, t >= v) == (s == u, s == u, s < u, s <= u, s > u, s >= u)
    assert t + u == s + u
    assert u + t == u + s


@given(raw, blocks, bound, bound)
def test_a_view_of_a_part_is_a_text_of_its_own(data, block, a, b):
    s = data.decode("utf-8", "replace")
    lazy = Text.from_bytes(data, block=block, str_max=4)
    part, expected = lazy[a:b], s[a:b]
    assert len(part) == len(expected)
    assert isinstance(part, str) == (len(expected) <= 4)
    assert "".join(part) == expected
    assert part == expected
    for needle in ("a", "é", "\n", "ERR"):
        assert part.find(needle) == expected.find(needle)
        assert part.rfind(needle) == expected.rfind(needle)
        assert part.count(needle) == expected.count(needle)
    assert part[1:3] == expected[1:3]
    assert part[-3:-1] == expected[-3:-1]


PATTERNS = [
    r"a+",
    r"\bab?\b",
    r"^",
    r"$",
    r"^a",
    r"a$",
    r"(?m)^a",
    r"(?m)$",
    r"(?m)^.*$",
    r"\w+",
    r"(?<=a)b",
    r"(?<!a)b",
    r"a|",
    r"|a",
    r"\s*",
    r"(?P<x>a)(b)?",
    r"[^a]+",
    r"\Aa",
    r"a\Z",
    r"(?s).+",
    r".(?=a)",
    r"\B",
    r"ERROR|é",
    r"(?i)error",
]


@given(raw, blocks, st.sampled_from(PATTERNS), st.integers(1, 9))
@settings(max_examples=600)
def test_regular_expressions_find_what_they_find_in_the_str(data, block, pattern, width):
    s, t = both(data, block)
    try:
        regex.SPAN, regex.BEHIND, regex.WINDOW_MIN, regex.WINDOW_MAX = 250, 4, width, 4 * width
        got = [(m.span(), m.group(), m.groups(), m.groupdict(), m.regs) for m in t.finditer(pattern)]
        expected = [(m.span(), m.group(), m.groups(), m.groupdict(), m.regs) for m in re.finditer(pattern, s)]
        assert got == expected
        assert t.findall(pattern) == re.findall(pattern, s)
        one, two = t.search(pattern), re.search(pattern, s)
        assert (one and one.span()) == (two and two.span())
        one, two = t.match(pattern), re.match(pattern, s)
        assert (one and one.span()) == (two and two.span())
    finally:
        regex.SPAN, regex.BEHIND, regex.WINDOW_MIN, regex.WINDOW_MAX = 1 << 20, 4096, 1 << 16, 1 << 23


def test_a_match_longer_than_its_window_is_found_in_a_larger_one_and_refused_beyond_the_limit(monkeypatch):
    monkeypatch.setattr(regex, "SPAN", 8)
    monkeypatch.setattr(regex, "WINDOW_MIN", 4)
    text = "x" * 100 + "b" * 500 + "y"
    assert Text.from_bytes(text.encode(), block=16, str_max=10_000).search("b+").span() == (100, 600)
    with pytest.raises(TooLarge, match="longer than 64"):
        Text.from_bytes(text.encode(), block=16, str_max=64).search("b+")


def test_what_would_build_a_huge_str_is_refused_and_names_the_lazy_way():
    t = Text.from_bytes(b"Some text\n" * 20, block=16, str_max=64)
    for call in (t.upper, lambda: t.replace("a", "b"), lambda: str(t), lambda: f"{t}", lambda: t + "x", t.strip):
        with pytest.raises(TooLarge, match="lines\\(\\)"):
            call()
    assert t[:5].upper() == "SOME "
    assert isinstance(t[:100], Text)
    assert isinstance(t[:64], str)
    with pytest.raises(AttributeError):
        t.nothing_like_it  # noqa: B018


@given(raw, blocks)
def test_methods_of_str_work_on_texts_that_fit(data, block):
    s, t = both(data, block)
    assert t.upper() == s.upper()
    assert t.replace("a", "b") == s.replace("a", "b")
    assert t.strip() == s.strip()
    assert t.encode() == s.encode()
    assert "-".join(itertools.islice(t, 3)) == "-".join(s[:3])


@pytest.mark.parametrize("str_max", [3, 50, 1000])
def test_rsplit_cuts_from_the_end_where_separators_overlap(str_max):
    s, t = both(b"a\n\n\nb\n\n\n\n\nc\n\n" * 5, str_max=str_max)
    for maxsplit in (-5, -1, 0, 1, 2, 7, 100):
        for sep in ("\n\n", "\n"):
            assert list(t.rsplit(sep, maxsplit)) == s.rsplit(sep, maxsplit)


class Number:
    """What numpy's integers are: no int, and good as an index."""

    def __init__(self, value):
        self._value = value

    def __index__(self):
        return self._value


def test_pieces_take_every_index_that_a_list_takes():
    s, t = both("\n".join(map(str, range(3000))).encode(), block=64)
    listed, lazy = s.split("\n"), t.split("\n")
    for key in (Number(1500), True, slice(Number(2), Number(9), Number(3)), slice(-5, None), slice(4, 2**70, 2**70)):
        assert lazy[key] == listed[key]
    assert list(reversed(lazy)) == listed[::-1]
    assert lazy.__add__(["x"]) == [*listed, "x"]
    assert lazy.__radd__(["x"]) == ["x", *listed]
    assert lazy + lazy[:2] == listed + listed[:2]
    with pytest.raises(AttributeError, match=r"list\(\.\.\.\)"):
        lazy.sort()
    for wrong, error in ((1.0, TypeError), ("1", TypeError), (slice(0, 5, 0), ValueError), (slice("a"), TypeError)):
        with pytest.raises(error):
            lazy[wrong]


def test_threads_may_walk_the_pieces_and_count_lines_at_the_same_time(monkeypatch):
    monkeypatch.setattr(parts, "EVERY", 2)
    s, t = both("\n".join(map(str, range(400))).encode(), block=64)
    expected, lazy, before = s.split("\n"), t.split("\n"), sys.getswitchinterval()
    at = [n for n in range(len(s)) if s[n - 1 : n] == "\n"]
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            walked = list(pool.map(lambda n: (lazy[n], t._doc.newlines_before(at[n - 1])), list(range(1, 400)) * 2))
    finally:
        sys.setswitchinterval(before)
    assert walked == [(expected[n], n) for n in range(1, 400)] * 2
    assert list(lazy._marks) == list(range(200))


def test_a_text_has_a_hash_however_little_fits_into_one_str():
    one, two = (Text.from_bytes(b"abc" * 2000, str_max=limit) for limit in (5, 6))
    assert hash(one) == hash(two)
    assert one == two
    assert not one < two
    assert repr(one).startswith("<Text of 6000 bytes: 'abc")


def test_an_end_of_a_window_is_no_end_of_the_text(monkeypatch):
    for name, value in (("SPAN", 4), ("WINDOW_MIN", 3), ("WINDOW_MAX", 3)):
        monkeypatch.setattr(regex, name, value)
    s, t = both(b"ab\nabcd\nab\naaaaaaaaaaaaaaaaab\n" * 3)
    for pattern in (r"[a-d]+$", r"(?s)a.*d$", r"|a+", r"a*|b"):
        assert [m.span() for m in t.finditer(pattern)] == [m.span() for m in re.finditer(pattern, s)], pattern


def test_re_takes_a_text_and_other_doors_say_what_to_do(monkeypatch):
    for name in ("search", "match", "findall", "finditer", "fullmatch", "split", "sub", "subn"):
        monkeypatch.setattr(re, name, getattr(re, name))
    doors.open_re()
    doors.open_re()
    s, t = both(b"one two\nthree\n" * 9)
    for text in (s, t):
        assert re.search(r"th\w+", text).span() == (8, 13)
        assert re.match(re.compile("ONE", re.IGNORECASE), text).group() == "one"
        assert re.findall(r"^T\w+", text, re.MULTILINE | re.IGNORECASE) == ["three"] * 9
        assert re.findall(r"^t\w+", string=text, flags=re.MULTILINE) == ["three"] * 9
        assert [m.start() for m in re.finditer("two", text)][:2] == [4, 18]
        assert re.sub("o", "0", text, count=2)[:9] == "0ne tw0\nt"
        assert re.subn("o", "0", string=text)[1] == 18
        assert len(re.split(r"\n", text)) == 19
        assert re.fullmatch(r"[\w\s]+", text).end() == len(s)
    with pytest.raises(TooLarge, match="lines\\(\\)"):
        re.sub("o", "0", Text.from_bytes(b"one two\n" * 9, str_max=20))
    names = {"Text": Text, "context": t}
    for source in (
        "re.compile('a').search(context)",
        "json.loads(context)",
        "io.StringIO(context)",
        "''.join([context])",
    ):
        status, error = cells.run(1, f"import io, json, re\n{source}".encode(), names)
        assert status == "error"
        assert "TypeError" in error
        assert "context.search()" in error
    for source in ("raise TypeError('Text')\nclass Text: pass", "raise ValueError('Text')", "1 + 'a'"):
        assert ("hint" in cells.run(1, source.encode(), names)[1]) == source.startswith("raise T")
    assert "hint" not in cells.run(1, b"class Text: pass\nraise TypeError('Text')", names)[1]


@given(st.lists(st.lists(st.sampled_from([*WORDS[:8], "xxxx"]), max_size=9), min_size=1, max_size=4), st.data())
@settings(max_examples=300)
@example([["\u20ac", "x", "\ufffd", "\x00", "xxxx", "x"], ["xxxx", "\ufffd", "\u00e9", "\U0001f600"]], None)
def test_positions_known_beforehand_agree_with_those_that_are_counted(files, data):
    texts = ["".join(words).replace("\ufffd", "\x80") + "=" for words in files]
    starts, chars, raw = array("q", [0]), array("q", [0]), b""
    for text in texts:
        raw += b"".join(b"\x80" if char == "\x80" else char.encode() for char in text)
        starts.append(len(raw))
        chars.append(chars[-1] + len(text))
    asked = data.draw(st.lists(st.integers(0, chars[-1]), max_size=4)) if data else [13, 15, 9, 8, 7]
    doc = Document(BytesSource(raw), block=4, anchors=(starts, chars))
    for char in asked:
        at = utf8.byte_length(raw, char)
        assert doc.byte_at(char) == at
        assert doc.char_at(at) == char


def test_a_byte_order_mark_stays_as_a_character():
    s, t = both(b"\xef\xbb\xbfx")
    assert str(t) == s == "\ufeffx"


def test_needles_of_the_wrong_type_are_refused_as_str_refuses_them():
    t = Text.from_bytes(b"abc")
    for call in (lambda: 1 in t, lambda: t.find(b"a"), lambda: t.count(None), lambda: t.startswith(1), lambda: t["a"]):
        with pytest.raises(TypeError):
            call()
    assert t.find("\ud800") == -1
    assert "\ud800" not in t
