"""Bundles: whole or refused. What goes in comes out, and whatever else a file may hold gets one line and nothing written."""

import concurrent.futures
import contextlib
import hashlib
import io
import json
import os
import random
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
import zstandard

from rlm_sandbox.errors import BundleError, PolicyError, UsageError
from rlm_sandbox.record import archive, bundle, redaction, statement
from rlm_sandbox.record.archive import Entry
from rlm_sandbox.record.export import Options, export
from rlm_sandbox.record.recording import of_bundle, of_session
from rlm_sandbox.session import journal as journals
from tests.support.recorded import INPUT, SECRET, Payer, record_run, start_body

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return record_run(tmp_path_factory.mktemp("session"))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("input") / "app.log"
    path.write_bytes(INPUT)
    return path


@pytest.fixture(scope="module")
def made(folder, source, tmp_path_factory):
    target = tmp_path_factory.mktemp("bundle") / "run.rlm"
    export(folder, target, Options(include_input=True, source=source))
    return target


def unpacked(path):
    """Read a bundle with other programs' code: zstandard and tarfile as they are."""
    with path.open("rb") as file, zstandard.ZstdDecompressor().stream_reader(file) as stream:
        raw = io.BytesIO(stream.read())
    with tarfile.open(fileobj=raw) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar.getmembers()}


def repacked(path, target, change):
    """Write a bundle with other content and a right sum; ``change`` edits a dict of its files."""
    files = unpacked(path)
    change(files)
    archive.write(target, [Entry(name, data) for name, data in files.items()])
    return target


def refused(path, **options):
    with pytest.raises(BundleError) as caught:
        bundle.verify(path, **options)
    assert "\n" not in caught.value.message
    assert caught.value.hint
    return caught.value.message


def test_a_bundle_verifies_and_says_what_is_in_it(made, folder):
    found = bundle.verify(made)
    said = found.document(made)
    assert (said["cells"], said["calls"], said["session"]) == (2, 3, "s1")
    assert said["final_sha256"] == hashlib.sha256(b"the final answer").hexdigest()
    assert said["input_sha256"] == hashlib.sha256(INPUT).hexdigest()
    assert said["bundle_sha256"] == hashlib.sha256(made.read_bytes()).hexdigest()
    assert (
        said["journal_head"] == hashlib.sha256((folder / "journal.jsonl").read_bytes().splitlines(True)[-1]).hexdigest()
    )


def test_the_same_record_makes_the_same_bytes(made, folder, source, tmp_path):
    export(folder, tmp_path / "again", Options(include_input=True, source=source))
    assert (tmp_path / "again").read_bytes() == made.read_bytes()


def test_other_programs_can_unpack_it(made):
    files = unpacked(made)
    assert files["final"] == b"the final answer"
    assert files[f"input/{hashlib.sha256(INPUT).hexdigest()}"] == INPUT
    assert all(
        hashlib.sha256(data).hexdigest() == name[6:] for name, data in files.items() if name.startswith("blobs/")
    )
    assert "Cell 1: ok" in files["SUMMARY.md"].decode()


def test_what_is_unpacked_is_the_record_again(made, folder, tmp_path):
    with of_bundle(made, scratch=tmp_path, unpacked_max=2**30) as there, of_session(folder) as here:
        assert there.past.head == here.past.head
        assert [call.digest for call in there.past.calls] == [call.digest for call in here.past.calls]
        assert all(there.read(name) == here.read(name) for name in bundle.texts_named(here.past))
        put = bundle.materialise(there.past, there.inputs, there.read, tmp_path / "put")
        assert put.read_bytes() == INPUT
    assert [path.name for path in tmp_path.iterdir()] == ["put"]


def test_flipping_any_bit_of_any_byte_is_noticed(made, tmp_path):
    whole = made.read_bytes()
    target = tmp_path / "flipped"
    chance = random.Random(1)
    for at in range(len(whole)):
        changed = bytearray(whole)
        changed[at] ^= 1 << chance.randrange(8)
        target.write_bytes(changed)
        refused(target)


def test_cut_or_lengthened_anywhere_it_is_refused(made, tmp_path):
    whole = made.read_bytes()
    target = tmp_path / "cut"
    for size in [*range(0, len(whole), 97), len(whole) - 1]:
        target.write_bytes(whole[:size])
        refused(target)
    for more in (b"\0", whole, b"\x5b\x2a\x4d\x18\0\0\0\0"):
        target.write_bytes(whole + more)
        refused(target)


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04" + bytes(100), b"hello", bytes(1000), b"\x28\xb5\x2f\xfd"])
def test_what_is_no_bundle_is_refused(tmp_path, data):
    path = tmp_path / "file"
    path.write_bytes(data)
    assert "bundle" in refused(path)


def test_a_file_that_is_not_there_is_the_callers_mistake(tmp_path):
    with pytest.raises(UsageError):
        bundle.verify(tmp_path / "nothing")
    with pytest.raises(UsageError):
        bundle.verify(tmp_path)


def drop(name):
    return lambda files: files.pop(name)


def put(name, data):
    return lambda files: files.update({name: data})


def edit(name, old, new):
    return lambda files: files.update({name: files[name].replace(old, new)})


def first(prefix):
    return lambda files: next(name for name in files if name.startswith(prefix))


CHANGES = {
    "no journal": drop("journal.jsonl"),
    "no manifest": drop("bundle.json"),
    "no statement": drop("statement.json"),
    "no summary": drop("SUMMARY.md"),
    "no final": drop("final"),
    "another final": put("final", b"another answer"),
    "a text too few": lambda files: files.pop(first("blobs/")(files)),
    "no input though it says so": lambda files: files.pop(first("input/")(files)),
    "another text under the name": lambda files: files.update({first("blobs/")(files): b"forged"}),
    "another input under the name": lambda files: files.update({first("input/")(files): b"forged input!!"}),
    "a statement that lies": edit("statement.json", b'"ordinal": 0', b'"ordinal": 7'),
    "a summary that lies": edit("SUMMARY.md", b"Cell 1: ok", b"Cell 1: no"),
    "a manifest that lies about the input": edit("bundle.json", b'"input_included": true', b'"input_included": false'),
    "a manifest that lies about redaction": edit("bundle.json", b'"redacted": false', b'"redacted": true'),
    "a manifest with more in it": edit("bundle.json", b'"version": 1', b'"version": 1, "x": 1'),
    "a manifest that lies about its program": edit("bundle.json", b'"program": "rlm', b'"program": "RLM'),
    "a manifest nested deeply": put("bundle.json", b"[" * 100_000),
    "a journal line too few": lambda files: files.update({"journal.jsonl": b"".join(files["journal.jsonl"].splitlines(True)[:-1])}),
    "a changed journal line": edit("journal.jsonl", b'"elapsed_ms":40', b'"elapsed_ms":41'),
    "an empty journal": put("journal.jsonl", b""),
    "a signature that is none": put("statement.json.sig", b"-----BEGIN SSH SIGNATURE-----\nAAAA\n-----END SSH SIGNATURE-----\n"),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_bundle_that_contradicts_itself_is_refused_though_its_sum_is_right(made, tmp_path, change):
    order = ["bundle.json", "SUMMARY.md", "statement.json", "statement.json.sig", "journal.jsonl", "final"]

    def sorted_change(files):
        change(files)
        names = sorted(files, key=lambda name: (order.index(name) if name in order else 99, name))
        for name in names:
            files[name] = files.pop(name)

    refused(repacked(made, tmp_path / "lie", sorted_change))


def rechained(lines):
    """Return records as a journal with a right chain."""
    before, out = journals.GENESIS, []
    for number, record in enumerate(lines):
        line = json.dumps({**record, "seq": number, "prev": before}, separators=(",", ":")).encode() + b"\n"
        before = hashlib.sha256(line).hexdigest()
        out.append(line)
    return b"".join(out)


def test_a_journal_that_was_forged_and_chained_anew_does_not_fit_the_rest(made, tmp_path):
    def forge(files):
        records = [json.loads(line) for line in files["journal.jsonl"].splitlines()]
        for record in records:
            if record["kind"] == "call" and record["answer"]:
                record["answer"] = hashlib.sha256(b"forged").hexdigest()
        files["journal.jsonl"] = rechained(records)

    refused(repacked(made, tmp_path / "forged", forge))


@pytest.mark.parametrize(
    "written", [lambda line: line.replace(b'"v":2', b'"v":1,"v":2'), lambda line: line.replace(b":", b": ", 1)]
)
def test_a_journal_that_two_readers_could_read_differently_is_refused(tmp_path, written):
    record_run(tmp_path)
    before, out = journals.GENESIS, b""
    for line in (tmp_path / "journal.jsonl").read_bytes().splitlines(keepends=True):
        prev = json.loads(line)["prev"].encode()
        changed = written(line.replace(prev, before.encode()))
        before, out = hashlib.sha256(changed).hexdigest(), out + changed
    (tmp_path / "journal.jsonl").write_bytes(out)
    export(tmp_path, tmp_path / "run.rlm", Options())
    assert "not written as" in refused(tmp_path / "run.rlm")


def test_a_newer_version_says_that_it_is_newer(made, tmp_path):
    newer = repacked(made, tmp_path / "newer", edit("bundle.json", b'"version": 1', b'"version": 2'))
    assert "version 2" in refused(newer)
    newer = repacked(made, tmp_path / "newer", edit("journal.jsonl", b'"v":2', b'"v":3'))
    assert "version 3" in refused(newer)


def with_tar(target, members, *, size=None, checksum=True):
    """Write a file with a right sum around any tar."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for info, data in members:
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    body = raw.getvalue()[: sum(512 + -(-len(data) // 512) * 512 for _, data in members)] + bytes(1024)
    return with_frame(target, zstandard.ZstdCompressor(write_checksum=checksum).compress(body))


def with_frame(target, frame):
    target.write_bytes(
        frame + archive._TRAILER.pack(archive._SKIPPABLE, 40, archive._MARK, hashlib.sha256(frame).digest())
    )
    return target


def member(name, **changes):
    info = tarfile.TarInfo(name)
    info.mode = 0o644
    for field, value in changes.items():
        setattr(info, field, value)
    return info


@pytest.mark.parametrize(
    "info",
    [
        member("../../outside"),
        member("/etc/cron.d/x"),
        member("blobs/../../x"),
        member("input/" + "A" * 64),
        member("blobs/" + "a" * 63),
        member("final", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        member("final", type=tarfile.LNKTYPE, linkname="/etc/passwd"),
        member("final", type=tarfile.CHRTYPE),
        member("final", type=tarfile.DIRTYPE),
        member("final", mtime=5),
        member("final", mode=0o4755),
        member("final", uid=1),
        member("final", uname="root"),
        member("x" * 300),
    ],
    ids=lambda info: f"{info.name[:20]}-{info.type.decode()}-{info.mtime}-{info.mode:o}-{info.uid}{info.uname}",
)
def test_nothing_but_the_known_names_is_unpacked(made, tmp_path, info):
    manifest = unpacked(made)["bundle.json"]
    path = with_tar(tmp_path / "climbing", [(member("bundle.json"), manifest), (info, b"")])
    inner = tmp_path / "scratch"
    with pytest.raises(BundleError), of_bundle(path, scratch=inner, unpacked_max=2**30):
        pass
    assert sorted(found.name for found in tmp_path.iterdir()) == ["climbing", "scratch"]
    assert list(inner.iterdir()) == []


def test_nothing_but_a_regular_file_is_read_or_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("/dev/null")
    for name in ("pipe", "folder", "link"):
        before = (tmp_path / name).lstat()
        with pytest.raises(UsageError):
            archive.write(tmp_path / name, [Entry("final", b"x")])
        assert (tmp_path / name).lstat().st_ino == before.st_ino
        with pytest.raises(UsageError):
            bundle.verify(tmp_path / name)
    with pytest.raises(UsageError):
        bundle.verify(Path("/proc/self/mem"))


@pytest.mark.parametrize("name", ["x" * 255, "x" * 256, "no/folder"])
def test_a_name_that_cannot_be_written_is_the_callers_mistake(tmp_path, name):
    with contextlib.nullcontext() if len(name) == 255 else pytest.raises(UsageError):
        archive.write(tmp_path / name, [Entry("final", b"x")])
    assert len(list(tmp_path.iterdir())) == (len(name) == 255)


def test_two_exports_to_one_name_do_not_mix(tmp_path):
    entries = [[Entry("bundle.json", bytes([number]) * 3_000_000)] for number in range(8)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        sums = list(pool.map(lambda each: archive.write(tmp_path / "run.rlm", each)[1], entries))
    assert hashlib.sha256((tmp_path / "run.rlm").read_bytes()).hexdigest() in sums
    assert list(tmp_path.iterdir()) == [tmp_path / "run.rlm"]


def test_doubled_files_are_refused(made, tmp_path):
    manifest = unpacked(made)["bundle.json"]
    path = with_tar(tmp_path / "double", [(member("bundle.json"), manifest)] * 2)
    assert "doubled" in refused(path)


def bomb(said, blocks):
    """Return a zstd frame of ``blocks`` times 128 KiB of zeros, made by hand; its header says ``said`` bytes."""
    block = (128 * 1024 << 3 | 1 << 1).to_bytes(3, "little") + b"\0"
    last = (128 * 1024 << 3 | 1 << 1 | 1).to_bytes(3, "little") + b"\0"
    return b"\x28\xb5\x2f\xfd\xc0\x38" + said.to_bytes(8, "little") + block * (blocks - 1) + last


def test_a_bomb_is_refused_before_it_goes_off(tmp_path):
    size = 100 * 2**30
    frame = bomb(size, size // 2**17)
    assert len(frame) < 4 * 2**20
    assert str(size) in refused(with_frame(tmp_path / "bomb", frame))
    assert refused(with_frame(tmp_path / "liar", bomb(2**20, size // 2**17)))
    assert refused(with_frame(tmp_path / "zeros", bomb(2**30, 2**13)))


def test_a_frame_that_does_not_say_its_size_is_refused(tmp_path):
    frame = zstandard.ZstdCompressor(write_content_size=False).compress(os.urandom(2**12))
    assert "does not say" in refused(with_frame(tmp_path / "unsaid", frame))


def test_a_large_bundle_needs_leave(made):
    with pytest.raises(BundleError) as caught:
        bundle.verify(made, unpacked_max=1000)
    assert "--max-size" in caught.value.hint


def test_two_frames_are_refused(tmp_path):
    frame = zstandard.ZstdCompressor().compress(os.urandom(1024))
    assert "behind its content" in refused(with_frame(tmp_path / "two", frame + frame))


def test_a_manifest_of_files_cannot_climb_out(tmp_path):
    for path in ("../x", "/x", "a/../b", "a//b", "", ".", "a\0b", "x" * 300):
        line = json.dumps({"path": path, "bytes": 1, "sha256": "0" * 64}).encode()
        with pytest.raises(BundleError):
            list(bundle.manifest_lines(line))


def test_a_redacted_bundle_holds_no_text_of_the_run(tmp_path):
    word = "sentinelword"
    payer = Payer(lambda prompt: f"{word} answer")
    prompts = [f"{word} prompt", f"fail {word}", f"fail by {word} model"]
    cells = [(f"x = llm_query('{word}')", prompts, f"{word} out", f"{word} final".encode())]
    start = start_body(question=f"{word}?", settings={"image": word, "cache_scope": word, "memory": 5})
    start["input"] = {**start["input"], "display": f"/data/{word}.log", "glob": word}
    start["go"] = {**start["go"], "input": {"name": word, "path": f"/input/{word}"}}
    folder = record_run(tmp_path, cells=cells, payer=payer, start=start)
    export(folder, tmp_path / "open", Options())
    export(folder, tmp_path / "closed", Options(redact=True))
    assert any(word.encode() in data for data in unpacked(tmp_path / "open").values())
    for name, data in unpacked(tmp_path / "closed").items():
        assert word.encode() not in data, name
        assert word not in name
    found = bundle.verify(tmp_path / "closed")
    assert (found.redacted, len(found.past.calls)) == (True, 3)
    assert [call.usage for call in found.past.calls if call.usage] == [[10, 5, 0, 0]]


@pytest.mark.parametrize(
    ("asked", "used", "outcome", "shown"),
    [
        (None, "m-1", "answered", (None, "m-1")),
        ("m-2", "m-2-2026-08-06", "answered", ("m-2", "m-2-2026-08-06")),
        ("a customer's name", "a customer's name", "failed", (redaction.GONE, redaction.GONE)),
        ("m-1secret", "m-1secret", "failed", (redaction.GONE, redaction.GONE)),
        (None, "m-1 and what a provider adds", "answered", (None, redaction.GONE)),
    ],
)
def test_a_redacted_record_names_only_models_that_somebody_outside_chose(tmp_path, asked, used, outcome, shown):
    record_run(tmp_path, start=start_body(settings={"allow_model": ["m-2"]}))
    records = [json.loads(line) for line in (tmp_path / "journal.jsonl").read_bytes().splitlines()]
    call = next(record for record in records if record["kind"] == "call")
    call["request"]["model"], call["model"], call["outcome"] = asked, used, outcome
    call["request_id"], call["stop_reason"] = "req_01-a", "some text of the answer"
    hidden = [json.loads(line) for line in redaction.journal(rechained(records).splitlines())]
    found = next(record for record in hidden if record["kind"] == "call")
    assert (found["request"]["model"], found["model"]) == shown
    assert (found["request_id"], found["stop_reason"]) == ("req_01-a", redaction.GONE)


@pytest.mark.parametrize("where", ["code", "prompt", "answer", "output", "final", "question"])
def test_a_key_in_the_record_stops_the_export(tmp_path, where):
    text = {
        name: f"x {SECRET} x" if name == where else name for name in ("code", "prompt", "answer", "output", "final")
    }
    folder = record_run(
        tmp_path,
        cells=[(text["code"], [text["prompt"]], text["output"], text["final"].encode())],
        payer=Payer(lambda _: text["answer"]),
        start=start_body(question=SECRET if where == "question" else None),
    )
    with pytest.raises(PolicyError) as caught:
        export(folder, tmp_path / "out", Options(secrets=[b"short", SECRET.encode()]))
    assert SECRET not in caught.value.message
    assert not (tmp_path / "out").exists()
    export(folder, tmp_path / "out", Options(redact=True, secrets=[SECRET.encode()]))


def test_an_input_that_changed_is_not_included(folder, tmp_path):
    changed = tmp_path / "app.log"
    changed.write_bytes(INPUT.upper())
    with pytest.raises(UsageError, match="not what it was"):
        export(folder, tmp_path / "out", Options(include_input=True, source=changed))
    assert not (tmp_path / "out").exists()


def test_the_statement_is_in_toto_and_names_the_answer(made):
    said = json.loads(unpacked(made)["statement.json"])
    assert said["_type"] == "https://in-toto.io/Statement/v1"
    assert said["predicateType"] == statement.PREDICATE_TYPE
    assert said["subject"][0] == {
        "name": "final",
        "digest": {"sha256": hashlib.sha256(b"the final answer").hexdigest()},
    }
    assert said["predicate"]["input"]["sha256"] == hashlib.sha256(INPUT).hexdigest()
    assert [call["outcome"] for call in said["predicate"]["calls"]].count("failed") == 1


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    assert shutil.which("ssh-keygen"), "OpenSSH's client is part of the set-up"
    folder = tmp_path_factory.mktemp("keys")
    for name in ("mine", "other"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", folder / name], check=True)
    (folder / "signers").write_text("me@example.org " + (folder / "mine.pub").read_text())
    return folder


def test_a_signature_is_checked_against_allowed_signers(folder, keys, tmp_path):
    signed, forged = tmp_path / "signed", tmp_path / "forged"
    export(folder, signed, Options(sign_key=keys / "mine"))
    export(folder, forged, Options(sign_key=keys / "other"))
    found = bundle.verify(signed, signers=keys / "signers").signature
    assert found.signer == "me@example.org"
    assert found.key.startswith("SHA256:")
    assert bundle.verify(signed).signature.signer is None
    assert "no allowed signer" in refused(forged, signers=keys / "signers")


def test_an_unsigned_bundle_is_refused_where_signers_are_named(made, keys):
    assert "not signed" in refused(made, signers=keys / "signers")


def test_the_signature_of_another_run_does_not_fit(folder, keys, made, tmp_path):
    export(folder, tmp_path / "signed", Options(sign_key=keys / "mine", redact=True))
    signature = unpacked(tmp_path / "signed")["statement.json.sig"]

    def steal(files):
        rest = {
            name: files.pop(name) for name in list(files) if name not in {"bundle.json", "SUMMARY.md", "statement.json"}
        }
        files.update({"statement.json.sig": signature, **rest})

    assert "signature" in refused(repacked(made, tmp_path / "stolen", steal))
