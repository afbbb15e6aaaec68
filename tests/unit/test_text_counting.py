"""What the host counts before a session and what the guest reads in it are the same text."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlm_sandbox.container.reading import Counter
from rlm_sandbox.guest.document import Document
from rlm_sandbox.guest.encoding import as_utf8
from rlm_sandbox.guest.source import BytesSource
from rlm_sandbox.guest.text import Text

pytestmark = pytest.mark.unit

BYTES = [
    b"a",
    b"\n",
    b"\0",
    b"\xff\xfe",
    b"\xff\xfe\0\0",
    b"\0\0\xfe\xff",
    b"\x00\xf6\x01\x00",
    b"\xfe\xff",
    b"\xd8\x3d",
    b"\x00\xde",
    "\u00e9\U0001f600".encode(),
    b"\x80",
    b"\r\n",
]


@given(st.lists(st.sampled_from(BYTES), max_size=40).map(b"".join), st.integers(1, 9))
@settings(deadline=None, max_examples=400)
def test_the_host_counts_the_characters_and_lines_that_the_guest_will_read(data, piece):
    counter = Counter(10)
    for at in range(0, len(data), piece):
        counter.feed(data[at : at + piece])
    counter.feed(b"", final=True)
    doc = Document(as_utf8(BytesSource(data)), block=7)
    text = Text(doc)
    assert counter.chars == len(text)
    assert counter.newlines == text.count("\n")
    assert counter.utf8_bytes == doc.size
    assert counter.prefix == text[:10]
