"""The bound of a normalised text: never too low for any character or order, close in ordinary text, linear in time."""

import asyncio
import random
import sys
import time
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlm_sandbox.broker import text_size
from rlm_sandbox.broker.text_size import BROKEN_BYTES, SLICE_CHARS, TextSizes, normalized_bytes_bound

pytestmark = pytest.mark.unit

TOUCHY = [
    char
    for char in map(chr, range(sys.maxunicode + 1))
    if unicodedata.decomposition(char) or unicodedata.combining(char)
]
"""Every character that normalising can change or move, but for Hangul syllables, which fall apart and compose again."""

JAMO = [chr(code) for code in range(0x1100, 0x1200)]


def needed(text):
    return max(len(text.encode()), len(unicodedata.normalize("NFKC", text).encode()))


def test_no_character_alone_is_underestimated():
    for char in [*TOUCHY, *map(chr, range(0xAC00, 0xD7A4))]:
        assert normalized_bytes_bound(char) >= needed(char), hex(ord(char))


def test_no_character_falls_apart_into_more_than_is_allowed_for():
    for char in TOUCHY:
        if unicodedata.combining(unicodedata.normalize("NFKD", char)[0]):
            continue
        whole = unicodedata.normalize("NFKC", char)
        for mark in ("\u0323", "\u0301", "\u0345", "\u3099", "\u05b0"):
            apart = unicodedata.normalize("NFKC", char + mark)
            assert len(apart.encode()) <= len(whole.encode()) + len(mark.encode()) + BROKEN_BYTES, hex(ord(char))


@given(st.text(st.one_of(st.sampled_from(TOUCHY), st.sampled_from(JAMO), st.characters(codec="utf-8")), max_size=60))
def test_no_text_is_underestimated(text):
    assert normalized_bytes_bound(text) >= needed(text)


def test_no_cut_between_two_pieces_costs_a_byte(monkeypatch):
    monkeypatch.setattr(text_size, "SLICE_CHARS", 3)
    dice = random.Random(7)
    for _ in range(3000):
        text = "".join(dice.choice(TOUCHY) for _ in range(dice.randrange(12)))
        assert normalized_bytes_bound(text) >= needed(text), ascii(text)


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize(
    "text",
    [
        "Les \xe9l\xe8ves fran\xe7ais \xe9taient d\xe9j\xe0 pr\xeats",
        "\u0e44\u0e17\u0e22\u0e40\u0e1b\u0e47\u0e19\u0e20\u0e32\u0e29\u0e32",
        "\ud55c\uad6d\uc5b4 \ub85c\uadf8 \ud30c\uc77c",
        "\u30b3\u30f3\u30d4\u30e5\u30fc\u30bf\u3067\u3059\u304c\u3001\u3058\u3083\u306a\u3044",
        "Ti\u1ebfng Vi\u1ec7t c\xf3 d\u1ea5u",
        "\u05d1\u05bc\u05b0\u05e8\u05b5\u05d0\u05e9\u05c1\u05b4\u05d9\u05ea",
        "\u041e\u0448\u0438\u0431\u043a\u0430 \u0444\u0430\u0439\u043b\u0430",
    ],
)
def test_ordinary_text_is_bounded_closely(text, form):
    written = unicodedata.normalize(form, text)
    assert normalized_bytes_bound(written) <= 1.05 * max(len(written.encode()), needed(written))


def test_marks_in_falling_order_cost_as_much_as_any_other_text():
    """A text for which normalising takes a time that grows with the square of its length. CPU time, as a ratio in one run."""
    marks = sorted((char for char in TOUCHY if unicodedata.combining(char)), key=unicodedata.combining, reverse=True)
    normalized_bytes_bound(marks[0])  # makes the table

    def cost(text):
        began = time.thread_time()
        normalized_bytes_bound(text)
        return time.thread_time() - began

    size = 64 * SLICE_CHARS
    hostile = ("".join(marks) * (size // len(marks) + 1))[:size]
    plain = min(cost("\u0436" * size) for _ in range(3))
    assert min(cost(hostile) for _ in range(3)) < 100 * plain


async def test_a_text_that_calls_share_is_measured_once(monkeypatch):
    measured = []
    monkeypatch.setattr(
        text_size, "normalized_bytes_bound", lambda text: measured.append(text) or normalized_bytes_bound(text)
    )
    sizes, text = TextSizes(), "\u0436" * 300_000
    first, *others = await asyncio.gather(*(sizes.bound(text, "digest") for _ in range(20)))
    assert first >= 600_000
    assert set(others) == {first}
    pieces = len(measured)
    assert "".join(measured) == text
    assert await asyncio.gather(*(sizes.bound(text, "digest") for _ in range(50))) == [first] * 50
    assert len(measured) == pieces
    await sizes.bound(text, None)
    assert len(measured) == 2 * pieces


async def test_the_loop_goes_on_while_a_long_text_is_measured(monkeypatch):
    """The thread may not even begin before the loop has gone round: the measuring waits for the loop, not the loop for it."""
    turned = asyncio.Event()
    loop = asyncio.get_running_loop()

    def measure(text):
        asyncio.run_coroutine_threadsafe(turned.wait(), loop).result(30)
        return len(text)

    monkeypatch.setattr(text_size, "normalized_bytes_bound", measure)
    task = asyncio.create_task(TextSizes().bound("\u0436" * 100_000, None))
    await asyncio.sleep(0)
    turned.set()
    assert await task >= 100_000
