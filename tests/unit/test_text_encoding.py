"""Files in UTF-16 and UTF-32 read as the text they hold, wherever a block ends."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlm_sandbox.guest.document import Document
from rlm_sandbox.guest.encoding import Transcoded, as_utf8, detect
from rlm_sandbox.guest.source import BytesSource
from rlm_sandbox.guest.text import Text

pytestmark = pytest.mark.unit

units = st.lists(
    st.sampled_from(
        [b"a\0", b"\0a", b"\n\0", b"\x3d\xd8", b"\x00\xde", b"\xd8\x3d", b"\xde\x00", b"\xac\x20", b"x", b"\xff\xfe"]
    ),
    max_size=40,
).map(b"".join)


@given(units, st.sampled_from(["utf-16-le", "utf-16-be"]), st.integers(2, 12))
@settings(deadline=None, max_examples=500)
def test_a_utf_16_file_is_the_text_python_decodes_from_it(data, name, block):
    mark = b"\xff\xfe" if name == "utf-16-le" else b"\xfe\xff"
    expected = (mark + data).decode("utf-16", "replace")
    source = Transcoded(BytesSource(mark + data), name, block=block)
    text = Text(Document(source, block=5))
    assert str(text) == expected
    assert len(text) == len(expected)
    assert list(text.split("\n")) == expected.split("\n")
    assert text[3:-3] == expected[3:-3]
    assert text.find("a", 5) == expected.find("a", 5)


words = st.lists(
    st.sampled_from([b"a\0\0\0", b"\0\0\0a", b"\n\0\0\0", b"\0\xf6\1\0", b"\0\1\xf6\0", b"\0\xd8\0\0", b"\0\0\xd8\0", b"x"]),
    max_size=30,
).map(b"".join)  # fmt: skip


@given(words, st.sampled_from(["utf-32-le", "utf-32-be"]), st.integers(2, 20))
@settings(deadline=None, max_examples=300)
def test_a_utf_32_file_is_the_text_python_decodes_from_it(data, name, block):
    data = (b"\xff\xfe\0\0" if name == "utf-32-le" else b"\0\0\xfe\xff") + data
    assert detect(data) == name
    expected = data.decode("utf-32", "replace")
    text = Text(Document(Transcoded(BytesSource(data), name, block=block), block=5))
    assert str(text) == expected
    assert len(text) == len(expected)
    assert text[2:-2] == expected[2:-2]


def test_only_a_mark_makes_a_file_utf_16():
    assert detect(b"\xff\xfea\0") == "utf-16-le"
    assert detect(b"\xfe\xff\0a") == "utf-16-be"
    assert detect(b"\xff\xfe\0\0a\0\0\0") == "utf-32-le"
    for head in (b"", b"\xff", b"\0\0\xfe", b"\xef\xbb\xbfx", b"a\0b\0", b"\xfe\xfe"):
        assert detect(head) is None
        source = BytesSource(head)
        assert as_utf8(source) is source
