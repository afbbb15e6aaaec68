"""Inputs far larger than the memory of the container: the size is not noticed, neither at the start nor in what a cell holds."""

import json

import pytest

from rlm_sandbox import Session

pytestmark = pytest.mark.container

GIB = 2**30
BLOCK = b"".join(b"2026-03-14T00:00:%02d service[%d]: request %d done\n" % (n % 60, n % 7, n) for n in range(20_000))
NEEDLE = b"NEEDLE in this line\n"
FILES = 20_000


@pytest.fixture
def folder(tmp_path_factory, monkeypatch):
    made = tmp_path_factory.mktemp("large")
    made.chmod(0o755)
    monkeypatch.setenv("RLM_SANDBOX_HOME", str(made / "home"))
    return made


def facts(session, code):
    done = session.exec(code, timeout=250, wait=270)
    assert done.status == "ok", done.error
    return json.loads(done.stdout)


def test_ten_gibibytes_are_counted_sliced_and_mapped_in_a_container_of_512_mebibytes(folder):
    path = folder / "ten.log"
    places = [0, 5 * GIB, 10 * GIB - len(BLOCK) - len(NEEDLE)]
    with path.open("wb") as out:  # real lines at both ends and in the middle, a hole between: what reads it cannot tell
        for place in places:
            out.seek(place)
            out.write(BLOCK)
            out.write(NEEDLE)
    path.chmod(0o644)
    assert path.stat().st_size == 10 * GIB
    with Session(path, provider="scripted", in_process=True, memory="512m") as session:
        assert session.started.context_total_bytes == 10 * GIB
        found = facts(
            session,
            "import json\n"
            "tail = context[-20:]\n"
            "mapped = sum(chunk.count('NEEDLE') for chunk in chunks(8_000_000))\n"
            "print(json.dumps([context.count('NEEDLE'), tail, mapped, len(context)]))",
        )
    assert found == [3, NEEDLE.decode(), 3, 10 * GIB]


def test_twenty_thousand_files_are_staged_and_read_by_path(folder):
    root = folder / "tree"
    for number in range(FILES):
        if number % 200 == 0:
            (root / f"d{number // 200:03}").mkdir(parents=True)
        (root / f"d{number // 200:03}" / f"f{number:05}.py").write_bytes(b"value = %d\n" % number)
    with Session(root, provider="scripted", in_process=True, memory="512m") as session:
        assert session.started.file_count == FILES
        assert [(each.language, each.files) for each in session.started.languages] == [("Python", FILES)]
        found = facts(
            session,
            "import json\n"
            "print(json.dumps([len(files), len(context_files), str(files['d099/f19999.py']), len(grep(r'= 1999\\d$'))]))",
        )
    assert found == [FILES, FILES, "value = 19999\n", 10]
