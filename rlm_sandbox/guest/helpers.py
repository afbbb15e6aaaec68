"""The names that code in a cell reads its input through: ``context``, ``context_files``, ``files`` and the helpers.

Building them costs nothing that grows with a file: a small input is read into a plain ``str``, a larger one is a lazy
``Text``. Both go through the same decoding, so a program sees the same characters either way. Every helper takes a
``str``, a ``Text`` or the path of a file of the input, and works on ``context`` without one.
"""

from __future__ import annotations

import operator
import os
import random
import re
from typing import TYPE_CHECKING, Any, Self

from rlm_sandbox.guest import chunks, doors, grep, parts, scan, utf8
from rlm_sandbox.guest.document import Document
from rlm_sandbox.guest.encoding import as_utf8
from rlm_sandbox.guest.errors import InputChanged
from rlm_sandbox.guest.files import Entry, Files, Index, OneFile
from rlm_sandbox.guest.source import BytesSource, Changes, FileSource, Source
from rlm_sandbox.guest.text import Text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rlm_sandbox.guest.archives import Archive

_input: list[tuple[Source, Changes]] = []

# Characters that peek shows by default: some twenty lines.
PEEK = 2000

LAZY = (grep.Grep, chunks.Chunks, parts.Parts, parts.PartsView)
"""The sequences that helpers and texts give. They are no lists, and mean what lists mean."""


def build(config_input: dict[str, Any], *, str_max: int, piece_max: int = 0) -> dict[str, object]:
    """Return the names for a session's input.

    ``config_input`` is ``{"kind": "file"|"directory", "path", "index", "name"}`` with paths inside the container;
    ``str_max`` is the size in bytes up to which texts are plain strings, ``piece_max`` that of what a lazy text gives as one
    ``str`` (never less than ``str_max``).
    """
    make = _directory if config_input["kind"] == "directory" else _file
    helpers, source, changes = make(config_input, str_max, max(str_max, piece_max))
    if isinstance(helpers.context, Text):
        doors.open_re()
    _input[:] = [(source, changes)]
    return {
        "context": helpers.context,
        "context_files": helpers.context_files,
        "files": helpers.files,
        "Text": Text,
        **{name: getattr(helpers, name) for name in NAMES},
    }


def warnings() -> list[str]:
    """Return what changed about the input since the last call, one sentence each, with the word "changed"."""
    notes: list[str] = []
    for source, changes in _input:
        source.check()
        notes += changes.take()
    return notes


def _file(config: dict[str, Any], str_max: int, piece_max: int) -> tuple[Helpers, Source, Changes]:
    name, changes = str(config["name"]), Changes()
    raw = FileSource(config["path"], changes, name=name)
    source = as_utf8(raw)
    whole = _whole(source, str_max)
    if whole is not None:
        entry = {"path": name, "start": 0, "end": len(whole), "chars": len(whole)}
        return Helpers(whole, [entry], OneFile(name, whole, raw), piece_max), source, changes
    text = Text(Document(source, str_max=piece_max))
    return Helpers(text, [Entry(name, text)], OneFile(name, text, raw), piece_max), source, changes


def _directory(config: dict[str, Any], str_max: int, piece_max: int) -> tuple[Helpers, Source, Changes]:
    root, changes = str(config["path"]), Changes()
    index = Index.load(config["index"]) if config.get("index") else Index.walk(root)
    doc, source = index.document(root, changes, piece_max)
    whole = _whole(source, str_max)
    context = Text(doc) if whole is None else whole
    return Helpers(context, index.spans(), Files(index, source, str_max, piece_max), piece_max), source, changes


def _whole(source: Source, str_max: int) -> str | None:
    """Return the whole text if it is small. If it changes at this moment, reading it lazily tells the cell so."""
    if source.size > str_max:
        return None
    try:
        return utf8.decode(source.read(0, source.size))
    except InputChanged:
        return None


class Helpers:
    """The helper functions of one session, bound to its input."""

    def __init__(
        self, context: str | Text, context_files: list[dict[str, Any]], files: Files | OneFile, piece_max: int
    ) -> None:
        self.context = context
        self.context_files = context_files
        self.files = files
        self._piece_max = piece_max

    def _text(self, text: object) -> str | Text:
        """Resolve what a helper was given: nothing is the context, a path of the input is that file."""
        if text is None:
            return self.context
        if isinstance(text, Text):
            return text
        if isinstance(text, os.PathLike):
            return self.files[os.fspath(text)]
        if not isinstance(text, str):
            raise TypeError(f"expected a str, a Text or the path of a file of the input, not {type(text).__name__}")
        return self.files.get(text, text)

    def _lazy(self, text: object) -> Text:
        resolved = self._text(text)
        if isinstance(resolved, Text):
            return resolved
        return Text(Document(BytesSource(resolved.encode("utf-8", "replace")), str_max=self._piece_max))

    def grep(
        self,
        pattern: str | re.Pattern[str],
        text: str | Text | os.PathLike[str] | None = None,
        *,
        flags: int = 0,
        ignore_case: bool = False,
        fixed: bool = False,
        context: int = 0,
        max_count: int | None = None,
        invert: bool = False,
    ) -> grep.Grep:
        """Return the lines in which ``re.search(pattern, line)`` finds something, as a list-like of ``str``.

        Each has ``.text``, ``.line`` (from 1), ``.offset`` (where the line begins, in characters), ``.start`` and
        ``.end`` (of the hit), ``.match``, and ``.before`` and ``.after`` (``context`` lines each). ``fixed`` takes the
        pattern literally, ``invert`` returns the other lines, ``max_count`` stops after so many. Lines end at newlines.
        """
        return grep.grep(
            self._lazy(text), pattern, flags=flags, ignore_case=ignore_case, fixed=fixed, context=context,
            max_count=max_count, invert=invert,
        )  # fmt: skip

    def lines(
        self, text: str | Text | os.PathLike[str] | None = None, start: int = 1, stop: int | None = None
    ) -> Iterator[str | Text]:
        r"""Iterate over lines number ``start`` up to, not including, ``stop``, counted from 1 as ``grep`` does.

        Lines end at ``\n`` or ``\r\n``, which they do not contain.
        """
        if start < 1 or (stop is not None and stop < start):
            raise ValueError("lines are counted from 1, and stop is not before start")
        return self._iterate(self._lazy(text), start, stop)

    def _iterate(self, lazy: Text, start: int, stop: int | None) -> Iterator[str | Text]:
        doc, low, high = lazy._doc, lazy._start, lazy._stop  # noqa: SLF001 - one family
        if start > 1:
            low = doc.after_newline(doc.newlines_before(low) + start - 1)
            if low < 0 or low >= high:
                return
        for number, line in enumerate(scan.lines(doc, low, high), start=start):
            if stop is not None and number >= stop:
                return
            yield line

    def chunks(
        self,
        *args: Any,
        size: int | None = None,
        overlap: int = 0,
        by: str | re.Pattern[str] = "chars",
        text: str | Text | os.PathLike[str] | None = None,
    ) -> chunks.Chunks:
        """``chunks(size, overlap=0, by="chars", text=None)``: cut a text into strings with ``.start .end .index``.

        ``by`` says what ``size`` and ``overlap`` count: ``chars``, ``tokens`` (estimated, four characters each),
        ``lines``, ``paragraphs``, ``files``, or sections, each beginning where a compiled pattern matches. A text may
        also come first: ``chunks(text, size)``.
        """
        rest = list(args)
        if rest and not hasattr(rest[0], "__index__"):
            text = rest.pop(0)
        given = dict(zip(("size", "overlap", "by", "text"), rest, strict=False))
        size, overlap = given.get("size", size), given.get("overlap", overlap)
        by, text = given.get("by", by), given.get("text", text)
        if size is None:
            raise TypeError("chunks() needs a size: chunks(size, overlap=0, by='chars', text=None)")
        return chunks.Chunks(self._text(text), size, overlap, by, self._spans(text) if by == "files" else [])

    def _spans(self, text: object) -> list[dict[str, Any]]:
        if text is not None and text is not self.context:
            raise ValueError("by='files' cuts the context; give no text")
        return self.context_files

    def peek(self, n: Any = PEEK, text: Any = None) -> str:
        """Return a few facts about a text, its first ``n // 2`` characters and its last. A text may also come first: ``peek(text, n)``."""
        if isinstance(n, (str, Text, os.PathLike)):
            n, text = (PEEK if text is None else text), n
        try:
            n = operator.index(n)
        except TypeError:
            raise TypeError(f"peek(n=2000, text=None) takes a number of characters, not {type(n).__name__}") from None
        if n < 0:
            raise ValueError("n is not negative")
        resolved = self._text(text)
        size = f"{len(resolved)} characters" if isinstance(resolved, str) else f"{resolved.nbytes} bytes"
        lines = [f"{size}, {len(self.files)} file{'' if len(self.files) == 1 else 's'}"] if text is None else [size]
        head = str(resolved[: n - n // 2])
        tail = str(resolved[-(n // 2) :]) if n // 2 else ""
        if not resolved[n : n + 1]:
            return "\n".join([*lines, "--- text ---", str(resolved)])
        return "\n".join([*lines, f"--- first {len(head)} ---", head, f"--- last {len(tail)} ---", tail])

    def sample(
        self, n: int, by: str = "lines", seed: int = 0, text: str | Text | os.PathLike[str] | None = None
    ) -> list[Line]:
        """Return ``n`` random lines in their order, each a ``str`` with ``.line`` and ``.offset``; the same for one seed.

        Counts the lines first, once per text.
        """
        if n < 0 or by != "lines":
            raise ValueError("sample(n, by='lines') takes a number of lines that is not negative")
        lazy = self._lazy(text)
        doc, low, high = lazy._doc, lazy._start, lazy._stop  # noqa: SLF001 - one family
        if low >= high:
            return []
        first = doc.newlines_before(low)
        total = doc.newlines_before(high) - first + (doc.read(high - 1, high) != b"\n")
        chosen = sorted(random.Random(seed).sample(range(total), min(n, total)))  # noqa: S311 - a sample, not a secret
        found = []
        for number in chosen:
            at = low if number == 0 else doc.after_newline(first + number)
            line = next(scan.lines(doc, at, high))
            found.append(Line(str(line), number + 1, doc.char_at(at) - lazy._first()))  # noqa: SLF001 - one family
        return found

    def open_archive(self, path: str | os.PathLike[str] | None = None, *, limit: int | None = None) -> Archive:
        """Return the members of an archive among the input (by default the input itself) as a mapping of texts.

        Opens zip, tar, gz, bz2, xz, and zst in the ``data`` image or with Python 3.14. A member that expands to more than ``limit`` bytes
        (256 MiB) raises ``TooLarge``.
        """
        from rlm_sandbox.guest import archives  # noqa: PLC0415 - few sessions need it, and it imports much

        if path is None and len(self.files) != 1:
            raise TypeError("open_archive() needs a path: the input has more than one file")
        name = next(iter(self.files)) if path is None else os.fspath(path)
        most = archives.MEMBER_MAX if limit is None else limit
        return archives.open_archive(self.files.raw(name), name, str_max=self._piece_max, limit=most)

    def document_text(self, path: str | os.PathLike[str] | None = None) -> str:
        """Return the text of a PDF (each page after a line ``======== PAGE: n ========``) or DOCX among the input, by default the input itself.

        The ``data`` image has the libraries for it; others raise an ``RLMError`` that says so.
        """
        from rlm_sandbox.guest import papers  # noqa: PLC0415 - few sessions need it

        if path is None and len(self.files) != 1:
            raise TypeError("document_text() needs a path: the input has more than one file")
        name = next(iter(self.files)) if path is None else os.fspath(path)
        return papers.text_of(self.files.raw(name), name)

    def search(self, pattern: str | re.Pattern[str], text: str | Text | None = None, flags: int = 0) -> Any:
        """``re.search`` that also takes a ``Text``, and the context by default."""
        resolved = self._text(text)
        return resolved.search(pattern, flags) if isinstance(resolved, Text) else re.search(pattern, resolved, flags)

    def finditer(self, pattern: str | re.Pattern[str], text: str | Text | None = None, flags: int = 0) -> Iterator[Any]:
        """``re.finditer`` that also takes a ``Text``, and the context by default."""
        resolved = self._text(text)
        found = (
            resolved.finditer(pattern, flags) if isinstance(resolved, Text) else re.finditer(pattern, resolved, flags)
        )
        yield from found

    def findall(self, pattern: str | re.Pattern[str], text: str | Text | None = None, flags: int = 0) -> list[Any]:
        """``re.findall`` that also takes a ``Text``, and the context by default."""
        resolved = self._text(text)
        return resolved.findall(pattern, flags) if isinstance(resolved, Text) else re.findall(pattern, resolved, flags)


class Line(str):  # noqa: SLOT000 - carries its place
    """A line with its place: number ``line`` from 1, beginning at character ``offset``."""

    line: int
    offset: int

    def __new__(cls, value: str, line: int, offset: int) -> Self:
        """Attach the place to the text."""
        self = super().__new__(cls, value)
        self.line, self.offset = line, offset
        return self


NAMES = ("grep", "lines", "chunks", "peek", "sample", "search", "finditer", "findall", "open_archive", "document_text")
