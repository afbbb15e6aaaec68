"""A recorded run, wherever it lies: in a session's folder, or unpacked from a bundle. What reports, comparisons and replays read."""

from __future__ import annotations

import json
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlm_sandbox.errors import NoSuchSession
from rlm_sandbox.record import bundle
from rlm_sandbox.session import journal, places
from rlm_sandbox.session.pack import NAME as PACK
from rlm_sandbox.session.pack import Pack
from rlm_sandbox.session.past import Past

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass
class Recording:
    """``read`` gives texts by digest and raises ``KeyError``; ``inputs`` is where unpacked inputs lie, by digest, None without."""

    past: Past
    pack: Pack
    name: str
    redacted: bool = False
    inputs: Path | None = None
    verified: dict[str, Any] = field(default_factory=dict)

    def read(self, digest: str) -> bytes:
        """Return a text."""
        return self.pack.get(digest)

    def text(self, digest: str | None) -> str | None:
        """Return a text as characters; None when it is not in the record."""
        if digest is None:
            return None
        try:
            return self.pack.get(digest).decode("utf-8", "replace")
        except KeyError:
            return None

    def variables(self, digest: str) -> list[dict[str, Any]]:
        """Return a cell's variables; none when they are not in the record."""
        try:
            loaded = json.loads(self.pack.get(digest))
        except (KeyError, ValueError, RecursionError):
            return []
        return [each for each in loaded if isinstance(each, dict)] if isinstance(loaded, list) else []


def folder_of(home: Path, session: str, named: str | None = None) -> Path:
    """Return a session's folder, in ``named`` if it is there. Raises :class:`NoSuchSession` when none has a journal."""
    folder = places.folder_of(home, session, journal.NAME, named)
    if folder is None:
        raise NoSuchSession(f"no session {session} is on record", hint="see rlm-sandbox history")
    return folder


@contextmanager
def of_session(folder: Path) -> Iterator[Recording]:
    """Open a session's record, which may be growing."""
    past = Past.of(journal.read(journal.lines(folder / journal.NAME), torn=True))
    if not (folder / PACK).exists():
        raise NoSuchSession(f"session {folder.name} recorded nothing", hint="run a cell first")
    pack = Pack(folder, write=False)
    try:
        yield Recording(past, pack, folder.name)
    finally:
        pack.close()


@contextmanager
def of_bundle(path: Path, *, scratch: Path, unpacked_max: int) -> Iterator[Recording]:
    """Verify a bundle and unpack it into a private folder below ``scratch``, which goes again at the end."""
    scratch.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bundle-", dir=scratch) as name:
        folder = Path(name)
        sink = bundle.Unpack(folder)
        try:
            facts = bundle.verify(path, unpacked_max=unpacked_max, sink=sink)
            yield Recording(
                facts.past,
                sink.pack,
                path.name,
                redacted=facts.redacted,
                inputs=sink.inputs if facts.input_included else None,
                verified=facts.document(path),
            )
        finally:
            sink.close()


@contextmanager
def opened(home: Path, what: str, *, unpacked_max: int, named: str | None = None) -> Iterator[Recording]:
    """Open a session by name, or a bundle by path: what is a file is a bundle. ``named`` is a further place of sessions."""
    path = Path(what)
    if path.is_file() or "/" in what:
        with of_bundle(path, scratch=home / "tmp", unpacked_max=unpacked_max) as recording:
            yield recording
    else:
        with of_session(folder_of(home, what, named)) as recording:
            yield recording
