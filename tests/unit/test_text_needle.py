"""The fast search for a literal finds what ``bytes.find`` finds, by whichever of its ways."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlm_sandbox.guest import needle as needle_module
from rlm_sandbox.guest.needle import Needle

pytestmark = pytest.mark.unit


@given(
    st.lists(st.text("abc\n", max_size=40), min_size=1, max_size=5),
    st.text("abc", min_size=1, max_size=4),
    st.sampled_from([0, 1, 500]),
    st.sampled_from([0, 4000]),
    st.integers(0, 50),
)
@settings(deadline=None, max_examples=500)
def test_a_needle_is_found_and_counted_as_bytes_would(blocks, word, rare, seldom, start):
    before = needle_module._RARE, needle_module._SELDOM
    needle_module._RARE, needle_module._SELDOM = rare, seldom
    try:
        needle = Needle(word.encode())
        for text in blocks:
            block = text.encode()
            assert needle.find(block) == block.find(word.encode())
            assert needle.find(block, start) == block.find(word.encode(), start)
            assert needle.count(block) == block.count(word.encode())
    finally:
        needle_module._RARE, needle_module._SELDOM = before


def test_an_empty_needle_is_nowhere():
    assert Needle(b"").find(b"abc") == -1
    assert Needle(b"").count(b"abc") == 0


def test_bytes_of_every_value_are_found_by_the_c_library():
    block = bytes(range(256)) * 4
    for at in (0, 1, 200, 255):
        word = block[at : at + 3]
        assert needle_module.memmem(block, word, 0) == block.find(word)
        assert needle_module.memmem(block, word, at + 1) == block.find(word, at + 1)
    assert needle_module.memmem(block, b"absent", 0) == -1
    assert needle_module.memmem(block, b"\x00", len(block)) == -1
    assert needle_module.memmem(block, b"\x00", len(block) + 10) == -1
