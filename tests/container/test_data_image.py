"""Data work in the ``data`` image, as a user does it: a gigabyte of CSV and of JSON lines in a session of one gigabyte of memory, and documents."""

import io
import json
import os
import zipfile

import pytest
import zstandard

from rlm_sandbox import Session

pytestmark = pytest.mark.container

MIB = 2**20
SIZE = int(os.environ.get("DATA_TEST_MIB", "1024")) * MIB
"""A gigabyte takes about half a minute for both files together; what is held in memory must not depend on it."""

ROWS = 200_000
"""Of the block that is repeated."""

BAD_EVERY = 1000
"""Rows with an amount that is no number."""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("data")
        folder.chmod(0o755)
        patch.setenv("RLM_SANDBOX_HOME", str(folder / "home"))
        yield folder


def repeated(path, head, block):
    """Write ``head`` once and ``block`` until ``SIZE`` is reached; return how often."""
    times = -(-SIZE // len(block))
    with path.open("wb") as out:
        out.write(head)
        for _ in range(times):
            out.write(block)
    path.chmod(0o644)
    return times


def amount(number):
    return "n/a" if number % BAD_EVERY == 0 else str(number % 97)


def region(number):
    return ("north", "south", "east", "west")[number % 4]


EXPECTED = {
    name: sum(n % 97 for n in range(ROWS) if n % BAD_EVERY and region(n) == name) for name in map(region, range(4))
}


def facts(session, code):
    """Run a cell that prints one JSON document last."""
    done = session.exec(code, timeout=300, wait=320, stdout_max=20_000)
    assert done.status == "ok", done.error or done.stdout
    return json.loads(done.stdout.splitlines()[-1])


def started(path, **options):
    return Session(path, image="data", memory="1g", provider="scripted", in_process=True, **options)


PROFILE = """
import duckdb, json
db = duckdb.connect()
db.execute("SET memory_limit = '500MB'; SET threads = 2; SET preserve_insertion_order = false; SET temp_directory = '/tmp'")
rows = "{reader}"
[(count, bad)] = db.execute(f"SELECT count(*), count(*) FILTER (try_cast(amount AS BIGINT) IS NULL) FROM {{rows}}").fetchall()
[kinds] = db.execute(f"SELECT count(DISTINCT region), min(id), max(id) FROM {{rows}}").fetchall()
print(json.dumps({{"count": count, "bad": bad, "kinds": kinds}}))
"""

TRANSFORM = """
totals = f"SELECT region, sum(try_cast(amount AS BIGINT)) AS total FROM {rows} GROUP BY region"
db.execute(f"COPY ({totals}) TO '/tmp/totals.parquet' (FORMAT parquet)")
import polars, pyarrow.parquet
table = pyarrow.parquet.read_table("/tmp/totals.parquet")
totals = dict(polars.from_arrow(table).sort("region").iter_rows())
print(json.dumps({name: int(total) for name, total in totals.items()}))
"""

USED = """
status = dict(line.split(":", 1) for line in open("/proc/self/status") if ":" in line)
print(json.dumps({"peak_kib": int(status["VmHWM"].split()[0])}))
"""


def profile_transform_and_validate(path, reader, times):
    with started(path) as session:
        found = facts(session, PROFILE.format(reader=reader.format(f"/input/{path.name}")))
        assert found == {"count": times * ROWS, "bad": times * ROWS // BAD_EVERY, "kinds": [4, 0, ROWS - 1]}
        assert facts(session, TRANSFORM) == {name: times * total for name, total in EXPECTED.items()}
        assert facts(session, USED)["peak_kib"] < 1024 * 1024


def test_a_csv_file_is_profiled_transformed_and_validated_in_a_gigabyte_of_memory(home):
    path = home / "sales.csv"
    block = "".join(
        f"{n},{region(n)},{amount(n)},some words that make a row as long as rows are\n" for n in range(ROWS)
    )
    times = repeated(path, b"id,region,amount,note\n", block.encode())
    profile_transform_and_validate(path, "read_csv('{}', types={{'amount': 'VARCHAR'}})", times)


def test_a_json_lines_file_is_profiled_transformed_and_validated_in_a_gigabyte_of_memory(home):
    path = home / "sales.jsonl"
    rows = ({"id": n, "region": region(n), "amount": amount(n), "note": "some words"} for n in range(ROWS))
    times = repeated(path, b"", "".join(json.dumps(row) + "\n" for row in rows).encode())
    columns = "columns={{'id': 'BIGINT', 'region': 'VARCHAR', 'amount': 'VARCHAR'}}"
    profile_transform_and_validate(path, "read_ndjson('{}', " + columns + ")", times)


LIBRARIES = """
import json, duckdb, numpy, pandas, polars, pyarrow, pyarrow.compute, pyarrow.csv
table = pyarrow.csv.read_csv("/input/small.csv")
frame = pandas.read_csv("/input/small.csv")
lazy = polars.scan_csv("/input/small.csv").filter(polars.col("n") > 1).select(polars.col("n").sum()).collect()
print(json.dumps({
    "numpy": float(numpy.linalg.norm(frame["n"].to_numpy())),
    "pandas": frame.groupby("k")["n"].sum().to_dict(),
    "polars": lazy.item(),
    "pyarrow": pyarrow.compute.sum(table["n"]).as_py(),
    "duckdb": float(duckdb.execute("SELECT sum(n) FROM frame").fetchall()[0][0]),
}))
"""


def test_every_library_reads_the_input(home):
    path = home / "small.csv"
    path.write_text("k,n\na,3\nb,4\n")
    path.chmod(0o644)
    with started(path) as session:
        assert facts(session, LIBRARIES) == {
            "numpy": 5.0, "pandas": {"a": 3, "b": 4}, "polars": 7, "pyarrow": 7, "duckdb": 7.0,
        }  # fmt: skip


def test_a_zst_file_is_opened_a_truncated_one_is_an_error_and_a_bomb_is_stopped(home):
    folder = home / "packed"
    folder.mkdir()
    whole = zstandard.compress(b"first\n" + os.urandom(300_000))
    for name, data in {
        "app.log.zst": whole,
        "cut.zst": whole[:-1000],
        "bomb.zst": zstandard.compress(bytes(MIB) * 90),
    }.items():
        (folder / name).write_bytes(data)
    code = """
import json
found = {}
for path in files:
    try:
        found[path] = [(name, text[:5]) for name, text in open_archive(path, limit=80_000_000).items()]
    except RLMError as error:
        found[path] = type(error).__name__
print(json.dumps(found))
"""
    with started(folder) as session:
        found = facts(session, code)
    assert found == {"app.log.zst": [["app.log", "first"]], "cut.zst": "RLMError", "bomb.zst": "TooLarge"}


def pdf(*pages):
    """Return a PDF made by hand, one line of text a page."""
    kids = " ".join(f"{4 + 2 * n} 0 R" for n in range(len(pages)))
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for n, text in enumerate(pages):
        drawn = f"BT /F1 12 Tf 72 720 Td ({text}) Tj ET"
        page = f"/Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents {5 + 2 * n} 0 R"
        objects.append(f"<< {page} /Resources << /Font << /F1 3 0 R >> >> >>")
        objects.append(f"<< /Length {len(drawn)} >>\nstream\n{drawn}\nendstream")
    out, offsets = "%PDF-1.4\n", []
    for number, each in enumerate(objects, start=1):
        offsets.append(len(out))
        out += f"{number} 0 obj\n{each}\nendobj\n"
    table = "".join(f"{offset:010} 00000 n \n" for offset in offsets)
    size = len(objects) + 1
    end = f"xref\n0 {size}\n0000000000 65535 f \n{table}trailer\n<< /Size {size} /Root 1 0 R >>\nstartxref\n{len(out)}\n%%EOF\n"
    return (out + end).encode("latin-1")


WORD = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
PACKAGE = "http://schemas.openxmlformats.org/package/2006"
OFFICE = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
DOCX_TYPE = "application/vnd.openxmlformats-officedocument.wordprocessingml.document.main+xml"


def docx(paragraph, cells):
    """Return a Word document made by hand: a paragraph and a table of one row."""
    row = "".join(f"<w:tc><w:p><w:r><w:t>{cell}</w:t></w:r></w:p></w:tc>" for cell in cells)
    grid = "<w:tblPr/><w:tblGrid>" + "<w:gridCol/>" * len(cells) + "</w:tblGrid>"
    body = f"<w:p><w:r><w:t>{paragraph}</w:t></w:r></w:p><w:tbl>{grid}<w:tr>{row}</w:tr></w:tbl><w:sectPr/>"
    parts = {
        "[Content_Types].xml": f'<Types xmlns="{PACKAGE}/content-types"><Default Extension="rels" '
        'ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
        f'<Override PartName="/word/document.xml" ContentType="{DOCX_TYPE}"/></Types>',
        "_rels/.rels": f'<Relationships xmlns="{PACKAGE}/relationships"><Relationship Id="r1" '
        f'Type="{OFFICE}/officeDocument" Target="word/document.xml"/></Relationships>',
        "word/document.xml": f'<w:document xmlns:w="{WORD}"><w:body>{body}</w:body></w:document>',
    }
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w") as bundle:
        for name, content in parts.items():
            bundle.writestr(name, content)
    return raw.getvalue()


def test_the_text_of_pdf_and_word_documents_is_read_and_what_is_broken_is_one_error(home):
    folder = home / "papers"
    folder.mkdir()
    (folder / "report.pdf").write_bytes(pdf("first page", "second page"))
    (folder / "letter.docx").write_bytes(docx("Dear reader", ["left", "right"]))
    (folder / "broken.pdf").write_bytes(b"%PDF-1.4\nnot much else")
    with started(folder) as session:
        assert {each.language for each in session.started.languages} == {"PDF", "Word"}
        found = facts(
            session,
            "import json\n"
            "texts = {name: document_text(name) for name in ('report.pdf', 'letter.docx')}\n"
            "try:\n    document_text('broken.pdf')\n"
            "except RLMError as error:\n    texts['broken'] = str(error)\n"
            "print(json.dumps(texts))",
        )
    first, _, second = found["report.pdf"].partition("======== PAGE: 2 ========")
    assert first.startswith("======== PAGE: 1 ========\nfirst page")
    assert second.strip() == "second page"
    assert found["letter.docx"] == "Dear reader\nleft\tright\n"
    assert "broken.pdf cannot be read" in found["broken"]


def test_the_base_image_says_where_documents_can_be_read(home):
    path = home / "report.pdf"
    path.write_bytes(pdf("a page"))
    path.chmod(0o644)
    with Session(path, provider="scripted", in_process=True) as session:
        done = session.exec("document_text()")
    assert done.status == "error"
    assert "--image data" in done.error
