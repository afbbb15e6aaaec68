"""One file that holds a run: written from a session's record, read with suspicion.

The content is described in docs/bundle.md. Everything in it hangs on the journal: its lines are chained, they name every text by digest, and
statement and summary are derived from it, so that a reader derives them again and compares. A bundle with a signature says who vouches for
it; one without says no more than that it is whole.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rlm_sandbox import __version__
from rlm_sandbox.errors import BundleError
from rlm_sandbox.record import archive, signing, statement, summary
from rlm_sandbox.record.archive import UNPACKED_MAX, damaged
from rlm_sandbox.session import journal
from rlm_sandbox.session import records as r
from rlm_sandbox.session.pack import BLOB_MAX, Pack
from rlm_sandbox.session.past import Past

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from rlm_sandbox.record.archive import Reading
    from rlm_sandbox.record.signing import Signature

BUNDLE_VERSION = 1
FORMAT = "rlm-sandbox-bundle"

JOURNAL_MAX = 128 * 1024 * 1024
"""Bytes: a call takes a kilobyte, so a hundred thousand of them."""

STATEMENT_MAX = 96 * 1024 * 1024
"""A call takes less of it than of the journal."""

SMALL_MAX = 8 * 1024 * 1024
PREFIX = 4 * summary.CODE_MAX + 8
"""Bytes of a text that are sure to hold what the summary shows of it."""


class Manifest(BaseModel):
    """``bundle.json``: what kind of bundle this is."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    format: Literal["rlm-sandbox-bundle"]
    version: int
    program: str = Field(max_length=64)
    redacted: bool
    input_included: bool
    source_head: r.Digest
    """Digest of the last line of the journal that this was made from."""

    def encode(self) -> bytes:
        """Return the file's bytes."""
        return json.dumps(self.model_dump(), indent=1).encode() + b"\n"


def manifest(*, redacted: bool, input_included: bool, source_head: str) -> Manifest:
    """Return the manifest of a bundle that this program writes."""
    return Manifest(
        format="rlm-sandbox-bundle",
        version=BUNDLE_VERSION,
        program=f"rlm-sandbox {__version__}",
        redacted=redacted,
        input_included=input_included,
        source_head=source_head,
    )


def texts_named(past: Past) -> set[str]:
    """Return the digests of all texts that a journal names."""
    names: set[str | None] = set()
    for cell in past.cells.values():
        names.add(cell.code)
        if cell.result is not None:
            final = cell.result.final
            names |= {cell.result.error, cell.result.stdout.text, cell.result.variables}
            names.add(final.text if final is not None else None)
        for call in cell.calls:
            asked = call.request
            names |= {asked.prompt, asked.system, asked.prefix, asked.schema_, call.answer, call.raw}
    if past.input is not None:
        names |= {past.input.manifest, past.input.index}
    return {name for name in names if name is not None}


def inputs_named(past: Past, read: Callable[[str], bytes]) -> dict[str, int]:
    """Return digest and size of every file of the input. Raises :class:`BundleError` on a manifest that makes no sense."""
    known = past.input
    if known is None or known.digest is None:
        return {}
    if known.manifest is None:
        return {known.digest: known.bytes}
    return {digest: size for _, size, digest in manifest_lines(read(known.manifest))}


def manifest_lines(raw: bytes) -> Iterator[tuple[str, int, str]]:
    """Yield ``(path, size, sha256)`` of a directory's manifest; paths stay below where they are put."""
    for line in raw.splitlines():
        try:
            entry = _Listed.model_validate_json(line)
        except ValidationError:
            raise damaged("the list of its input's files makes no sense") from None
        parts = entry.path.split("/")
        if any(part in {"", ".", ".."} or len(part.encode()) > 255 for part in parts) or "\0" in entry.path:  # noqa: PLR2004 - NAME_MAX
            raise damaged("the list of its input's files climbs out of its folder")
        yield entry.path, entry.bytes, entry.sha256


class _Listed(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    path: str = Field(max_length=4096)
    bytes: r.Count
    sha256: r.Digest


@dataclass
class Verified:
    """A bundle that holds together. ``signature`` is None when it has none."""

    past: Past
    redacted: bool
    input_included: bool
    program: str
    source_head: str
    digest: str
    signature: Signature | None = None
    size: int = 0

    def document(self, path: Path) -> dict[str, Any]:
        """Return what ``verify`` prints."""
        past = self.past
        return {
            "format_version": 1,
            "file": str(path),
            "ok": True,
            "bundle_sha256": self.digest,
            "bytes": self.size,
            "written_by": self.program,
            "redacted": self.redacted,
            "input_included": self.input_included,
            "session": past.latest.session if past.latest else None,
            "cells": len(past.cells),
            "calls": len(past.calls),
            "records": past.records,
            "journal_head": past.head,
            "input_sha256": past.input.digest if past.input else None,
            "final_sha256": past.final.digest if past.final else None,
            "signed_by": self.signature.key if self.signature else None,
            "signer": self.signature.signer if self.signature else None,
            "warnings": []
            if past.input is not None and past.input.digest is not None
            else ["the record does not say what the input was: a replay cannot compare it"],
        }


class Discard:
    """Takes the parts of a bundle and keeps none."""

    def journal(self, raw: bytes) -> None:
        """The whole journal, checked."""

    def text(self, raw: bytes) -> None:
        """A text, checked against its name."""

    def file(self, digest: str) -> IO[bytes] | None:
        """Return where a file of the input is to be written, if anywhere."""
        del digest
        return None


class Unpack(Discard):
    """Puts the parts into a private folder: ``journal.jsonl``, ``blobs.pack`` and ``input/<sha256>``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.pack = Pack(folder)
        self.inputs = folder / "input"
        self.inputs.mkdir(mode=0o700)

    def journal(self, raw: bytes) -> None:
        """Keep the journal."""
        (self._folder / journal.NAME).write_bytes(raw)

    def text(self, raw: bytes) -> None:
        """Keep a text."""
        self.pack.put(raw)

    def file(self, digest: str) -> IO[bytes] | None:
        """Keep a file of the input."""
        return (self.inputs / digest).open("xb")

    def close(self) -> None:
        """Close what is open; the folder is its owner's."""
        self.pack.close()


def verify(
    path: Path, *, unpacked_max: int = UNPACKED_MAX, signers: Path | None = None, sink: Discard | None = None
) -> Verified:
    """Check everything about a bundle; ``sink`` gets its parts on the way, and is to be thrown away when this raises.

    Raises:
        UsageError: there is no such file.
        BundleError: it is not whole, not consistent, too new, too large, or not signed by an allowed signer.
    """
    with archive.reading(path, unpacked_max=unpacked_max) as reading:
        verified = _Check(reading, signers, sink or Discard()).run()
    verified.size = path.stat().st_size
    return verified


@dataclass
class _Check:
    """One pass through a bundle."""

    reading: Reading
    signers: Path | None
    sink: Discard
    heads: dict[str, bytes] = field(default_factory=dict)
    """The beginnings of texts that the summary shows, and whole manifests."""
    seen: set[str] = field(default_factory=set)
    files: dict[str, int] = field(default_factory=dict)
    parts: dict[str, bytes] = field(default_factory=dict)

    def run(self) -> Verified:
        made: Manifest | None = None
        past: Past | None = None
        final: str | None = None
        journal_sha = ""
        for name, size in self.reading:
            folder, _, digest = name.partition("/")
            if name == "bundle.json":
                made = _manifest(self.reading.read(SMALL_MAX, name))
            elif made is None:
                raise damaged("it does not begin with bundle.json")
            elif name == "journal.jsonl":
                raw = self.reading.read(JOURNAL_MAX, name)
                past, journal_sha = Past.of(journal.read(_unambiguous(raw))), _sha(raw)
                self.sink.journal(raw)
            elif name == "final":
                final = self._sum(None)
            elif folder == "blobs" and past is not None:
                self._text(digest, past)
            elif folder == "input" and past is not None:
                self.files[digest] = size
                if self._sum(self.sink.file(digest)) != digest:
                    raise damaged("a file of its input is not what its name says")
            else:
                self.parts[name] = self.reading.read(STATEMENT_MAX if name == "statement.json" else SMALL_MAX, name)
        if made is None or past is None:
            raise damaged("it holds no journal")
        self._complete(past, made, final)
        signature = self._derived(past, made, journal_sha)
        return Verified(
            past, made.redacted, made.input_included, made.program, made.source_head, self.reading.digest, signature
        )

    def _sum(self, out: IO[bytes] | None) -> str:
        digest = hashlib.sha256()
        try:
            for data in self.reading.chunks():
                digest.update(data)
                if out is not None:
                    out.write(data)
        finally:
            if out is not None:
                out.close()
        return digest.hexdigest()

    def _text(self, digest: str, past: Past) -> None:
        if not self.heads:
            shown = {cell.code for cell in past.cells.values()}
            shown |= {cell.result.error for cell in past.cells.values() if cell.result and cell.result.error}
            self.heads = dict.fromkeys(shown, b"")
        raw = self.reading.read(BLOB_MAX, f"blobs/{digest}")
        if _sha(raw) != digest:
            raise damaged("a text is not what its name says")
        self.seen.add(digest)
        if digest in self.heads:
            self.heads[digest] = raw[:PREFIX]
        if past.input is not None and digest == past.input.manifest:
            self.parts["manifest"] = raw
        self.sink.text(raw)

    def _complete(self, past: Past, made: Manifest, final: str | None) -> None:
        """Everything that the journal names is there, and nothing else."""
        if self.seen != (set() if made.redacted else texts_named(past)):
            raise damaged("its texts are not those that its journal names")
        wanted = None if made.redacted or past.final is None else past.final.digest
        if final != wanted:
            raise damaged("its final answer is not the one that its journal names")
        expected: dict[str, int] = {}
        if made.input_included:
            expected = inputs_named(past, lambda _: self.parts.get("manifest", b""))
        if self.files != expected or (made.input_included and not expected):
            raise damaged("the input in it is not the one that its journal names")
        if past.input is not None and past.input.manifest is not None and past.input.manifest != past.input.digest:
            raise damaged("its journal contradicts itself about the input")
        if not made.redacted and made.source_head != past.head:
            raise damaged("its journal is not the one that it was made from")

    def _derived(self, past: Past, made: Manifest, journal_sha: str) -> Signature | None:
        """Statement and summary say what the journal says."""
        page = summary.build(past, self._shown)
        said = statement.build(
            past,
            journal_sha256=journal_sha,
            summary_sha256=_sha(page),
            manifest_sha256=_sha(made.encode()),
            redacted=made.redacted,
        )
        raw = statement.encode(said)
        if self.parts.get("SUMMARY.md") != page:
            raise damaged("its summary does not say what its journal says")
        if self.parts.get("statement.json") != raw:
            raise damaged("its statement does not say what its journal says")
        signature = self.parts.get("statement.json.sig")
        if signature is not None:
            return signing.check(raw, signature, self.signers)
        if self.signers is not None:
            raise BundleError("this bundle is refused: it is not signed", hint="ask for one written with --sign-key")
        return None

    def _shown(self, digest: str | None) -> str | None:
        if digest is None or digest not in self.seen:
            return None
        return self.heads[digest].decode("utf-8", "replace")


def _unambiguous(raw: bytes) -> Iterator[bytes]:
    """Yield the lines of a journal that are written as we write them: with a key twice, two readers could read two things."""
    for line in raw.splitlines(keepends=True):
        try:
            same = json.dumps(json.loads(line), separators=(",", ":")).encode() == line.rstrip(b"\n")
        except (ValueError, RecursionError):
            same = True  # what it is instead, its reader says
        if not same:
            raise damaged("a line of its journal is not written as this program writes it")
        yield line


def _manifest(raw: bytes) -> Manifest:
    try:
        form = json.loads(raw)
        version = form.get("version") if isinstance(form, dict) and form.get("format") == FORMAT else None
    except (ValueError, RecursionError):
        version = None
    if isinstance(version, int) and version > BUNDLE_VERSION:
        raise BundleError(
            f"this bundle is of version {version}, this program reads up to {BUNDLE_VERSION}", hint="update rlm-sandbox"
        )
    try:
        made = Manifest.model_validate_json(raw)
    except ValidationError:
        raise damaged("its bundle.json makes no sense") from None
    if made.version != BUNDLE_VERSION or made.encode() != raw:
        raise damaged("its bundle.json makes no sense")
    return made


def materialise(past: Past, inputs: Path, read: Callable[[str], bytes], target: Path) -> Path:
    """Lay out an unpacked input under ``target`` as it was and return its path. Nothing is written outside ``target``."""
    known = past.input
    target.mkdir(mode=0o700)
    if known is None or known.digest is None:
        raise BundleError("this bundle holds no input", hint="name it with --input")
    if known.manifest is None:
        place = target / "input"
        os.link(inputs / known.digest, place)
        place.chmod(0o444)
        return place
    try:
        for name, _, digest in manifest_lines(read(known.manifest)):
            place = target / name
            place.parent.mkdir(parents=True, exist_ok=True)
            os.link(inputs / digest, place)
    except (FileExistsError, NotADirectoryError, FileNotFoundError):
        raise damaged("the list of its input's files contradicts itself") from None
    return target


def _sha(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()
