"""Which bytes of an input are compared with what a guest on another machine sees, and what is said when they are not all of them."""

import hashlib

import pytest

from rlm_sandbox.container import input_sample
from rlm_sandbox.container.admission import admit
from rlm_sandbox.container.input_sample import RANGE_BYTES, RANGES, note_unproven, sample_of
from rlm_sandbox.errors import InputError
from rlm_sandbox.session.fingerprint import Fingerprint, Pace, take
from rlm_sandbox.wire.frames import FrameDecoder
from rlm_sandbox.wire.messages import SAMPLE_MAX, Hello, parser

pytestmark = pytest.mark.unit


@pytest.fixture
def admitted(tmp_path):
    path = tmp_path / "a.log"
    path.write_bytes(bytes(range(256)) * 4096)
    path.chmod(0o644)
    taken = admit(path, stage_dir=tmp_path / "stage")
    yield taken
    taken.close()


def test_of_a_long_input_the_ends_and_places_between_that_nobody_can_guess(admitted, monkeypatch):
    monkeypatch.setattr(input_sample, "WHOLE_MAX", 1024)
    monkeypatch.setattr(input_sample, "RANGE_BYTES", 512)
    first, second = sample_of(admitted), sample_of(admitted)
    size = admitted.identity.size
    assert not first.whole
    assert first.ranges[0] == (0, 512)
    assert first.ranges[-1] == (size - 512, 512)
    assert first.ranges != second.ranges
    data = admitted.path.read_bytes()
    assert first.digest == hashlib.sha256(b"".join(data[at : at + n] for at, n in first.ranges)).hexdigest()


def test_on_this_machine_a_start_reads_no_more_than_the_ranges(admitted, monkeypatch):
    monkeypatch.setattr(input_sample, "RANGE_BYTES", 512)
    sample = sample_of(admitted, local=True)
    assert not sample.whole
    assert sum(length for _, length in sample.ranges) == RANGES * 512


def test_a_hello_has_room_for_every_sample():
    assert 2 * RANGES <= SAMPLE_MAX
    assert RANGES * RANGE_BYTES <= 4 * 1024 * 1024
    message = Hello(2, "s", 1, 1, 1, [2**63 - 1] * SAMPLE_MAX)
    decoder = FrameDecoder()
    decoder.feed(message.encode())
    assert parser((Hello,))(*decoder.next_frame()) == message


def test_a_file_that_was_compared_whole_is_proven_and_a_sampled_one_has_no_digest(admitted, monkeypatch):
    assert note_unproven(admitted, sample_of(admitted)) == []
    assert take(admitted, Pace(gentle=False)).digest is not None
    monkeypatch.setattr(input_sample, "WHOLE_MAX", 1024)
    monkeypatch.setattr(input_sample, "RANGE_BYTES", 512)
    (warning,) = note_unproven(admitted, sample_of(admitted))
    assert "another machine" in warning
    assert "no digest" in warning
    assert take(admitted, Pace(gentle=False)) == Fingerprint(None, admitted.total_bytes)


@pytest.mark.parametrize(("mode", "proven"), [("auto", True), ("bind", False)])
def test_of_a_directory_the_list_of_files_is_compared(tmp_path, mode, proven):
    folder = tmp_path / "in"
    folder.mkdir(mode=0o755)
    (folder / "a.txt").write_text("one")
    (folder / "a.txt").chmod(0o644)
    admitted = admit(folder, mode=mode, stage_dir=tmp_path / "stage")
    try:
        index = (tmp_path / "stage" / "index.jsonl").read_bytes()
        sample = sample_of(admitted)
        assert sample.digest == hashlib.sha256(index).hexdigest()
        assert (note_unproven(admitted, sample) == []) == proven
        assert admitted.unproven != proven
    finally:
        admitted.close()


def test_an_input_that_is_gone_is_one_line(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.txt").write_text("one")
    admitted = admit(folder, stage_dir=tmp_path / "stage")
    (tmp_path / "stage" / "index.jsonl").unlink()
    with pytest.raises(InputError, match="cannot be read"):
        sample_of(admitted)
    admitted.close()
