"""The generated log: the same every time, and holding exactly what its sidecar says."""

import pytest

from rlm_sandbox.demo.incidents import INCIDENTS
from rlm_sandbox.demo.loggen import FULL_SIZE, MEGABYTE, generate, main, read_truth

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    path = tmp_path_factory.mktemp("demo") / "services.log"
    generate(path, size=4 * MEGABYTE, seed=3)
    return path


def test_every_incident_stands_in_the_log_as_often_as_the_sidecar_says(log):
    lines = log.read_text(encoding="utf-8").splitlines()
    for item in read_truth(log):
        assert sum(item.signature in line for line in lines) == item.count >= 2, item.id


def test_the_same_seed_and_size_give_the_same_bytes_and_another_seed_gives_others(log, tmp_path):
    again, other = tmp_path / "again.log", tmp_path / "other.log"
    generate(again, size=4 * MEGABYTE, seed=3)
    generate(other, size=4 * MEGABYTE, seed=4)
    assert again.read_bytes() == log.read_bytes() != other.read_bytes()


def test_the_size_is_close_to_what_was_asked_for(log):
    assert log.stat().st_size == pytest.approx(4 * MEGABYTE, rel=0.05)


def test_a_full_size_log_would_hold_a_dozen_incidents_at_their_stated_counts():
    assert len(INCIDENTS) == len({item.signature for item in INCIDENTS}) == 12
    assert FULL_SIZE == 200 * MEGABYTE


def test_near_misses_stand_between_the_incidents(log):
    text = log.read_text(encoding="utf-8")
    for harmless in ("error=0 ", "no errors", "failed over successfully", "/assets/error-page.css", '"errors":0'):
        assert harmless in text


def test_lines_of_one_record_stay_together(log):
    lines = log.read_text(encoding="utf-8").splitlines()
    heads = [number for number, line in enumerate(lines) if "Payment gateway did not answer" in line]
    assert heads
    for number in heads:
        assert lines[number + 1] == "java.net.SocketTimeoutException: Read timed out"
        assert lines[number + 5] == "\t... 38 more"


def test_the_module_writes_the_log_named_on_its_command_line(tmp_path, monkeypatch):
    path = tmp_path / "new folder" / "small.log"
    monkeypatch.setattr("sys.argv", ["loggen", str(path), "--size-mb", "1", "--seed", "5"])
    main()
    assert path.stat().st_size > MEGABYTE / 2
    assert len(read_truth(path)) == 12
