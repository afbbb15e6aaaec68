"""A journal may say anything that has its shape: it is refused, or every form of it can be made, and nothing else happens."""

import contextlib
import hashlib
import json
import shutil

import pytest

from rlm_sandbox.errors import BundleError
from rlm_sandbox.record import reports, statement, summary
from rlm_sandbox.record.diff import compare
from rlm_sandbox.record.recording import of_session
from rlm_sandbox.session import journal as journals
from rlm_sandbox.session.past import Past
from rlm_sandbox.session.replay import Rehearsal
from tests.support.recorded import record_run

pytestmark = pytest.mark.unit

ODD = (
    None,
    True,
    0,
    1,
    -1,
    2**40,
    2**63,
    1.5,
    "",
    "x" * 500,
    "\ud800",
    "<b>",
    [],
    [1, 1, 1],
    {},
    {"a": {"b": [None]}},
    "0" * 64,
)


def rechained(records):
    """Return records as the lines of a journal with a right chain."""
    before, out = journals.GENESIS, []
    for number, record in enumerate(records):
        line = json.dumps({**record, "seq": number, "prev": before}, separators=(",", ":")).encode() + b"\n"
        before = hashlib.sha256(line).hexdigest()
        out.append(line)
    return b"".join(out)


def paths(value, at=()):
    """Yield the way to every value in a JSON document."""
    for key, inner in value.items() if isinstance(value, dict) else ():
        yield (*at, key)
        yield from paths(inner, (*at, key))


def put(record, path, value):
    changed = json.loads(json.dumps(record))
    inner = changed
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return changed


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return record_run(tmp_path_factory.mktemp("original"))


def look_at(folder):
    """Make everything that can be made of a record."""
    with of_session(folder) as run:
        for kind in reports.KINDS:
            reports.make(run, kind)
        compare(run, run)
        page = summary.build(run.past, run.text)
        statement.encode(
            statement.build(
                run.past,
                journal_sha256="",
                summary_sha256=hashlib.sha256(page).hexdigest(),
                manifest_sha256="",
                redacted=False,
            )
        )
        run.past.cut_off()
        if run.past.latest is not None:
            Rehearsal(dict(run.past.latest.go)).go(b"{}")


def look_at_or_refuse(folder):
    """Tell whether a record was read; a refusal of the documented kind is the only other outcome."""
    with contextlib.suppress(BundleError):
        look_at(folder)
        return True
    return False


@pytest.mark.parametrize("kind", ["start", "input", "restored", "cell", "call", "budget", "result", "end"])
def test_no_value_of_any_field_breaks_a_reader(original, tmp_path, kind):
    shutil.copy(original / "blobs.pack", tmp_path / "blobs.pack")
    records = [json.loads(line) for line in (original / "journal.jsonl").read_bytes().splitlines()]
    accepted = 0
    for number, record in enumerate(records):
        if record["kind"] != kind:
            continue
        for path in paths(record):
            for value in ODD:
                if path[-1] in {"seq", "prev"}:
                    continue
                forged = [*records[:number], put(record, path, value), *records[number + 1 :]]
                with contextlib.suppress(UnicodeEncodeError):
                    (tmp_path / "journal.jsonl").write_bytes(rechained(forged))
                accepted += look_at_or_refuse(tmp_path)
        break
    assert accepted > 0


def test_records_in_any_order_and_number_are_read_or_refused(original, tmp_path):
    shutil.copy(original / "blobs.pack", tmp_path / "blobs.pack")
    records = [json.loads(line) for line in (original / "journal.jsonl").read_bytes().splitlines()]
    for order in (records[::-1], records[1:], records * 2, [r for r in records if r["kind"] != "cell"], records[:1]):
        (tmp_path / "journal.jsonl").write_bytes(rechained(order))
        look_at(tmp_path)
        Past.of(journals.read(journals.lines(tmp_path / "journal.jsonl")))
