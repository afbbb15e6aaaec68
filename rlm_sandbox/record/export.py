"""Writing a bundle from a session's record.

Nothing is written that holds a key: every byte that would go in is searched for the credentials that the writer knows, and one hit stops the
export. A redacted bundle holds digests, sizes, times and prices, and no text at all.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlm_sandbox.errors import BundleError, PolicyError, UsageError
from rlm_sandbox.record import archive, bundle, redaction, signing, statement, summary
from rlm_sandbox.record.archive import Entry
from rlm_sandbox.session import journal
from rlm_sandbox.session.pack import Pack
from rlm_sandbox.session.past import Past

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

SECRET_MIN = 8
"""Characters: shorter "keys" are dummies for local servers, and would be found everywhere."""

_CHUNK = 4 * 1024 * 1024


@dataclass(frozen=True)
class Options:
    """``source`` is where the input lies now (a file, or a tree); ``secrets`` are what must not be in the bundle."""

    redact: bool = False
    include_input: bool = False
    source: Path | None = None
    sign_key: Path | None = None
    secrets: Sequence[bytes] = ()


@dataclass(frozen=True)
class Exported:
    """A written bundle."""

    path: Path
    size: int
    sha256: str
    past: Past


def export(folder: Path, target: Path, options: Options) -> Exported:
    """Write the bundle of the session in ``folder``; blocks.

    Raises:
        BundleError: the record is damaged or incomplete.
        PolicyError: a credential is in it.
        UsageError: the input is not what it was, or the target cannot be written.
    """
    if options.redact and options.include_input:
        raise UsageError("--redact and --include-input exclude each other", hint="choose one")
    raw = b"".join(line for line in journal.lines(folder / journal.NAME) if line.endswith(b"\n"))
    past = Past.of(journal.read(raw.splitlines(keepends=True)))
    if past.latest is None:
        raise BundleError(f"session {folder.name} recorded nothing", hint="run a cell first")
    pack = Pack(folder, write=False)
    try:
        entries = _entries(folder, raw, past, pack, options)
        size, digest = archive.write(target, entries)
    finally:
        pack.close()
    return Exported(target, size, digest, past)


def _entries(folder: Path, raw: bytes, past: Past, pack: Pack, options: Options) -> list[Entry]:
    source_head, texts = past.head, sorted(bundle.texts_named(past))
    if options.redact:
        raw = b"".join(redaction.journal(raw.splitlines(keepends=True)))
        past = Past.of(journal.read(raw.splitlines(keepends=True)))
        texts = []
    missing = [digest for digest in texts if digest not in pack]
    if missing:
        raise BundleError(f"{len(missing)} texts of the record are missing", hint="the session's folder was changed")

    def text(digest: str | None) -> str | None:
        return None if digest is None or options.redact else pack.get(digest).decode("utf-8", "replace")

    page = summary.build(past, text)
    made = bundle.manifest(redacted=options.redact, input_included=options.include_input, source_head=source_head)
    said = statement.encode(
        statement.build(
            past,
            journal_sha256=_sha(raw),
            summary_sha256=_sha(page),
            manifest_sha256=_sha(made.encode()),
            redacted=options.redact,
        )
    )
    entries = [Entry("bundle.json", made.encode()), Entry("SUMMARY.md", page), Entry("statement.json", said)]
    if options.sign_key is not None:
        entries.append(Entry("statement.json.sig", signing.sign(said, options.sign_key)))
    entries.append(Entry("journal.jsonl", raw))
    if past.final is not None and not options.redact:
        entries.append(_final(folder, past, pack))
    entries += [Entry(f"blobs/{digest}", pack.get(digest)) for digest in texts]
    if options.include_input:
        entries += _inputs(past, pack.get, options.source)
    _search(entries, [secret for secret in options.secrets if len(secret) >= SECRET_MIN])
    return entries


def _final(folder: Path, past: Past, pack: Pack) -> Entry:
    final = past.final
    assert final is not None  # noqa: S101 - the caller looked
    if final.text is not None:
        return Entry("final", pack.get(final.text))
    path = folder / "final.txt"
    if not path.is_file() or path.stat().st_size != final.bytes or _sha_file(path) != final.digest:
        raise BundleError("the final answer was too large for the record and is no longer there", hint="run it again")
    return Entry("final", path=path, length=final.bytes)


def _inputs(past: Past, read: Callable[[str], bytes], source: Path | None) -> list[Entry]:
    """Return the entries of the input's files, each checked to be what the record says."""
    known = past.input
    if known is None or known.digest is None:
        raise UsageError(
            "what the input was is not on record, so it cannot be included", hint="leave --include-input out"
        )
    if source is None:
        raise UsageError("the input is no longer there", hint="leave --include-input out")
    found: dict[str, Entry] = {}
    if known.manifest is None:
        found[known.digest] = _file(source, known.bytes, known.digest)
    else:
        for name, size, digest in bundle.manifest_lines(read(known.manifest)):
            if digest not in found:
                found[digest] = _file(source / name, size, digest)
    return [found[digest] for digest in sorted(found)]


def _file(path: Path, size: int, digest: str) -> Entry:
    try:
        same = path.stat().st_size == size and _sha_file(path) == digest
    except OSError:
        same = False
    if not same:
        raise UsageError("the input is not what it was when the session read it", hint="leave --include-input out")
    return Entry(f"input/{digest}", path=path, length=size)


def _search(entries: Iterable[Entry], secrets: Sequence[bytes]) -> None:
    """Refuse what holds a credential."""
    for entry in entries if secrets else ():
        before = b""
        for piece in _pieces(entry):
            data = before + piece
            if any(secret in data for secret in secrets):
                raise PolicyError(
                    f"a credential of this machine is in the record ({entry.name}); nothing was written",
                    hint="export with --redact, and replace that key: cells have seen it",
                )
            before = data[-max(map(len, secrets)) :]


def _pieces(entry: Entry) -> Iterable[bytes]:
    if entry.path is None:
        yield entry.data
        return
    with entry.path.open("rb") as file:
        while data := file.read(_CHUNK):
            yield data


def _sha(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()


def _sha_file(path: Path) -> str:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
