"""The output of a cell: the same whatever its chunking, bounded in memory and on disk, escape-free."""

import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlm_sandbox.sanitize import visible
from rlm_sandbox.session.spool import Spool

pytestmark = pytest.mark.unit

PIECES = st.lists(
    st.one_of(
        st.binary(max_size=40),
        st.sampled_from([b"\r", b"\n", b"\r\n", b"\x1b[31m", "é€\U0001f600\u202e".encode(), b"x" * 300]),
    ),
    max_size=12,
)


def spooled(folder, pieces, **limits):
    spool = Spool(folder / "out.txt", **{"shown_max": 100, "file_max": 1 << 20, **limits})
    for piece in pieces:
        spool.feed(piece)
    spool.close()
    return spool


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("spool")


@given(pieces=PIECES, limit=st.integers(0, 120))
def test_chunking_makes_no_difference(folder, pieces, limit):
    whole = b"".join(pieces)
    results = []
    for cut in ([whole], pieces, [bytes([byte]) for byte in whole]):
        spool = spooled(folder, cut)
        text, truncated, path = spool.shown(limit)
        results.append((text, truncated, path, spool.chars, spool.dropped))
        if truncated:
            results[-1] += ((folder / "out.txt").read_bytes(),)
    assert results[0] == results[1] == results[2]


@given(pieces=PIECES, limit=st.integers(0, 120))
def test_what_is_shown_is_head_and_tail_of_the_whole(folder, pieces, limit):
    whole = visible(b"".join(pieces).decode("utf-8", "replace"))
    spool = spooled(folder, pieces)
    text, truncated, path = spool.shown(limit)
    limit = min(limit, 100)
    assert truncated == (len(whole) > limit)
    if not truncated:
        assert (text, path) == (whole, None)
        return
    front, back = (limit + 1) // 2, limit - (limit + 1) // 2
    mark = f"\n[... {len(whole) - limit} characters not shown ...]\n"
    assert text == whole[:front] + mark + (whole[-back:] if back else "")
    with open(path, encoding="utf-8", newline="") as file:  # noqa: PTH123 - Path.read_text takes no newline in 3.11
        assert file.read() == whole


@given(pieces=PIECES, cap=st.integers(0, 500))
def test_the_file_never_exceeds_its_cap_and_what_is_lost_is_counted(folder, pieces, cap):
    path = folder / "out.txt"
    path.unlink(missing_ok=True)
    spool = spooled(folder, pieces, shown_max=10, file_max=cap)
    whole = visible(b"".join(pieces).decode("utf-8", "replace")).encode()
    if path.exists():
        kept = path.read_bytes()
        assert whole.startswith(kept)
        assert len(kept) <= cap
        assert spool.dropped == len(whole) - len(kept)


def test_showing_in_the_middle_disturbs_nothing(folder):
    spool = Spool(folder / "out.txt", shown_max=50, file_max=1 << 20)
    spool.feed(b"a" * 30)
    assert spool.shown(10)[1] is True
    spool.feed(b"b" * 70)
    assert spool.shown(50)[0].startswith("a" * 25)
    spool.close()
    assert (folder / "out.txt").read_text() == "a" * 30 + "b" * 70
    assert spool.shown(50)[2] == str(folder / "out.txt")


def test_a_gigabyte_costs_no_memory(folder):
    spool = Spool(folder / "out.txt", shown_max=2048, file_max=1 << 16)
    block = b"z" * 65536
    for _ in range(512):
        spool.feed(block)
    assert len(spool._tail) <= 2048
    assert sum(map(len, spool._head)) <= 2048
    spool.close()
    assert (folder / "out.txt").stat().st_size == 1 << 16
    assert spool.chars == 512 << 16


def test_the_file_is_private_and_never_written_through_a_link(folder, tmp_path):
    spooled(tmp_path, [b"x" * 500])
    assert stat.S_IMODE((tmp_path / "out.txt").stat().st_mode) == 0o600
    (tmp_path / "target").touch()
    (tmp_path / "link").symlink_to(tmp_path / "target")
    spool = Spool(tmp_path / "link", shown_max=10, file_max=100)
    with pytest.raises(OSError, match=r"symbolic links|Too many"):
        spool.feed(b"x" * 50)
    assert (tmp_path / "target").read_bytes() == b""
