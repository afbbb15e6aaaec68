"""The text in a PDF or a Word document, by maintained libraries, where the image has them (``data`` does, ``base`` does not).

A document is hostile input to a parser, as an archive is: it is opened in here, where a parser that is misled can reach nothing. Pages are
set apart by a line of their own, so that an answer can name the page it rests on.
"""

from __future__ import annotations

import importlib
import logging
import zipfile
import zlib
from typing import TYPE_CHECKING, Any

from rlm_sandbox.guest.archives import seekable
from rlm_sandbox.guest.errors import RLMError, TooLarge

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType

    from rlm_sandbox.guest.source import Source

TEXT_MAX = 64 * 1024 * 1024
"""Characters: a book has one million. Beyond it something expands that should not."""

EXPANDED_MAX = 256 * 1024 * 1024
"""Bytes that the parts of a Word document may expand to, as for a member of an archive."""

_HEAD = 1024
"""Bytes in which a PDF's mark stands: programs put lines of their own in front of it."""

_BROKEN = (
    zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError, LookupError, ValueError, TypeError, AttributeError,
    ArithmeticError, AssertionError,
)  # fmt: skip


def text_of(source: Source, name: str) -> str:
    """Return the text of a document; what it is, its bytes say.

    Raises:
        RLMError: it is neither PDF nor DOCX, is damaged or encrypted, or the image has no library for it.
        TooLarge: its text, or what it expands to, is over a limit.
    """
    head = source.read(0, min(source.size, _HEAD))
    if b"%PDF-" in head:
        return _collected(_pages, _library("pypdf", "PDF"), source, name)
    if head.startswith(b"PK\x03\x04") and _is_word(source, name):
        return _collected(_blocks, _library("docx", "DOCX"), source, name)
    raise RLMError(f"{name} is neither PDF nor DOCX", "read it as text: files[path]; or open_archive(path)")


def _library(module: str, kind: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise RLMError(
            f"this image cannot read {kind}", "start the session with --image data, which has pypdf and python-docx"
        ) from None


def _collected(
    parts: Callable[[ModuleType, Any], Iterator[str]], library: ModuleType, source: Source, name: str
) -> str:
    foreign = getattr(getattr(library, "errors", None), "PyPdfError", ValueError)
    try:
        kept, size = [], 0
        for part in parts(library, seekable(source)):
            size += len(part)
            if size > TEXT_MAX:
                raise TooLarge(f"{name} holds more than {TEXT_MAX} characters of text")
            kept.append(part)
    except RLMError:
        raise
    except (*_BROKEN, foreign) as exc:
        raise RLMError(
            f"{name} cannot be read: {type(exc).__name__}: {exc}"[:500], "it is damaged or encrypted"
        ) from exc
    return "".join(kept)


def _pages(library: ModuleType, file: Any) -> Iterator[str]:
    logging.getLogger("pypdf").setLevel(logging.ERROR)  # it tells of every flaw it could make up for
    reader = library.PdfReader(file)
    if reader.is_encrypted and not reader.decrypt(""):
        raise RLMError("the document is encrypted", "a password is needed, which this tool does not take")
    for number, page in enumerate(reader.pages, start=1):
        yield f"{'' if number == 1 else chr(10) * 2}======== PAGE: {number} ========\n{page.extract_text().strip()}\n"


def _blocks(library: ModuleType, file: Any) -> Iterator[str]:
    """Yield paragraphs, and rows of tables with tabs between their cells, in their order."""
    for block in library.Document(file).iter_inner_content():
        if hasattr(block, "rows"):
            for row in block.rows:
                yield "\t".join(cell.text.replace("\n", " ") for cell in row.cells) + "\n"
        else:
            yield block.text + "\n"


def _is_word(source: Source, name: str) -> bool:
    """Tell a Word document from other zip files, and refuse one that expands too far, before a library sees it."""
    try:
        with zipfile.ZipFile(seekable(source)) as bundle:
            infos = bundle.infolist()
    except _BROKEN as exc:
        raise RLMError(f"{name} cannot be read: {exc}"[:500], "it is damaged") from exc
    if not any(info.filename == "word/document.xml" for info in infos):
        return False
    expanded = sum(info.file_size for info in infos)
    if expanded > EXPANDED_MAX:
        raise TooLarge(f"{name} expands to {expanded} bytes, more than {EXPANDED_MAX}")
    return True
