"""Archives among the input: members as texts, limits that hold whatever the archive says, and broken ones."""

import bz2
import gzip
import io
import lzma
import sys
import tarfile
import types
import zipfile
from concurrent.futures import ThreadPoolExecutor

import pytest
import zstandard

from rlm_sandbox.guest import archives, helpers
from rlm_sandbox.guest.errors import RLMError, TooLarge
from rlm_sandbox.guest.text import Text

pytestmark = pytest.mark.component

MANY = {f"{n}": f"{n} " * 3000 for n in range(60)}
MEMBERS = {"a.txt": "hello \u00e9\n", "../../etc/passwd": "only a name", "deep/b.log": "ERROR x\n" * 5000}


def opened(tmp_path, data, name="input.bin", str_max=1000, **options):
    path = tmp_path / "archive"
    path.write_bytes(data)
    names = helpers.build({"kind": "file", "path": str(path), "index": None, "name": name}, str_max=str_max)
    return names["open_archive"](**options)


def tar_bytes(members=MEMBERS, mode="w"):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as bundle:
        for name, text in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(text.encode())
            bundle.addfile(info, io.BytesIO(text.encode()))
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        bundle.addfile(link)
    return out.getvalue()


def zip_bytes(members=MEMBERS, compression=zipfile.ZIP_DEFLATED):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as bundle:
        for name, text in members.items():
            bundle.writestr(name, text)
        bundle.mkdir("folder")
    return out.getvalue()


@pytest.mark.parametrize("spool", [archives.SPOOL, 10])
@pytest.mark.parametrize(
    "data",
    [
        tar_bytes(),
        tar_bytes(mode="w:gz"),
        tar_bytes(mode="w:bz2"),
        tar_bytes(mode="w:xz"),
        zip_bytes(),
        zip_bytes(compression=0),
    ],
    ids=["tar", "tar.gz", "tar.bz2", "tar.xz", "zip", "stored zip"],
)
def test_members_are_texts_under_the_names_they_have(tmp_path, monkeypatch, data, spool):
    monkeypatch.setattr(archives, "SPOOL", spool)
    archive = opened(tmp_path, data)
    assert list(archive) == list(MEMBERS)
    assert {
        name: str(text[:60_000]) if isinstance(text, str) else "".join(text) for name, text in archive.items()
    } == MEMBERS
    assert isinstance(archive["deep/b.log"], Text)
    assert archive["deep/b.log"].count("ERROR") == 5000
    assert "link" not in archive
    with pytest.raises(KeyError):
        archive["nothing"]


@pytest.mark.parametrize(
    "data", [tar_bytes(MANY), tar_bytes(MANY, mode="w:gz"), zip_bytes(MANY)], ids=["tar", "tar.gz", "zip"]
)
def test_threads_may_read_members_at_the_same_time(tmp_path, data):
    archive = opened(tmp_path, data, str_max=1 << 20)
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            assert dict(zip(MANY, pool.map(archive.__getitem__, MANY), strict=True)) == MANY
    finally:
        sys.setswitchinterval(before)


@pytest.mark.parametrize(("compress", "suffix"), [(gzip.compress, "gz"), (bz2.compress, "bz2"), (lzma.compress, "xz")])
def test_a_compressed_file_is_an_archive_of_one(tmp_path, compress, suffix):
    archive = opened(tmp_path, compress(b"line\n" * 10), name=f"logs/app.log.{suffix}")
    assert dict(archive) == {"app.log": "line\n" * 10}


def test_zst_is_read_by_what_the_image_has(tmp_path, monkeypatch):
    data = zstandard.compress(tar_bytes())
    for name in ("pyarrow", "compression.zstd"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(RLMError, match="--image data"):
        opened(tmp_path, data)
    arrow = types.ModuleType("pyarrow")
    arrow.CompressedInputStream = lambda file, _: zstandard.ZstdDecompressor().stream_reader(
        file, read_across_frames=True, closefd=False
    )
    monkeypatch.setitem(sys.modules, "pyarrow", arrow)
    archive = opened(tmp_path, data)
    for name in reversed(MEMBERS):  # backwards, so that the stream has to begin again
        assert "".join(archive[name]) == MEMBERS[name]
    assert dict(opened(tmp_path, zstandard.compress(b"line\n"), name="app.log.zst")) == {"app.log": "line\n"}
    with pytest.raises(TooLarge, match="limit="):
        opened(tmp_path, zstandard.compress(b"0" * 100_000), name="b.zst", limit=10_000)["b"]


def test_an_encrypted_member_is_called_that(tmp_path):
    data = bytearray(zip_bytes({"secret.txt": "x"}))
    for signature, field in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(signature) + field] |= 1
    with pytest.raises(RLMError, match=r"secret\.txt is encrypted"):
        opened(tmp_path, bytes(data))["secret.txt"]


def test_what_expands_beyond_the_limit_is_refused_whatever_it_claims(tmp_path, monkeypatch):
    bomb = gzip.compress(b"\0" * 5_000_000)
    with pytest.raises(TooLarge, match="limit="):
        opened(tmp_path, bomb, name="b.gz", limit=1_000_000)["b"]
    data = bytearray(zip_bytes({"big": "x" * 100_000}))
    for signature, field in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):  # claim a size of one byte
        at = data.index(signature) + field
        data[at : at + 4] = (1).to_bytes(4, "little")
    with pytest.raises(RLMError):
        opened(tmp_path, bytes(data), limit=10_000)["big"] * 2
    monkeypatch.setattr(archives, "STREAM_MAX", 50_000)
    with pytest.raises(TooLarge):
        opened(tmp_path, tar_bytes({"zeros": "0" * 200_000, "next": "x"}, mode="w:gz"))
    monkeypatch.setattr(archives, "MEMBERS_MAX", 2)
    with pytest.raises(TooLarge, match="members"):
        opened(tmp_path, zip_bytes())
    with pytest.raises(TooLarge, match="members"):
        opened(tmp_path, tar_bytes())


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"plain text",
        b"PK\x03\x04 no zip",
        b"\x1f\x8b no gzip",
        zip_bytes()[:300],
        gzip.compress(b"x" * 9999)[:20],
        b"\xfd7zXZ\0...",
    ],
)
def test_a_broken_archive_is_one_kind_of_error(tmp_path, data):
    with pytest.raises(RLMError):
        dict(opened(tmp_path, data))


def test_a_damaged_member_does_not_hide_the_others(tmp_path):
    data = bytearray(zip_bytes({"bad": "x" * 50, "good": "y" * 50}, compression=0))
    data[data.index(b"xxxx")] ^= 1
    archive = opened(tmp_path, bytes(data))
    with pytest.raises(RLMError, match="bad"):
        archive["bad"]
    assert archive["good"] == "y" * 50
