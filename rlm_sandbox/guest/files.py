"""The files of the input: where each lies in ``context``, and each as a text of its own.

A directory is read as one text, every file behind a line ``======== FILE: path (n chars) ========``. Its index comes
with it, so building these tables opens no file.
"""

from __future__ import annotations

import json
import os
from array import array
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from rlm_sandbox.guest import utf8
from rlm_sandbox.guest.document import Document
from rlm_sandbox.guest.encoding import MARK, Transcoded, as_utf8, detect
from rlm_sandbox.guest.source import Changes, ConcatSource, FileSource, SliceSource
from rlm_sandbox.guest.text import Text

if TYPE_CHECKING:
    from rlm_sandbox.guest.source import Source


class Entry(dict[str, Any]):
    """The entry of a single large file in ``context_files``: its length is counted when it is asked for."""

    def __init__(self, path: str, text: Text) -> None:
        super().__init__(path=path, start=0)
        self._text = text

    def _fill(self) -> None:
        if not super().__contains__("chars"):
            self["end"] = self["chars"] = len(self._text)

    def __missing__(self, key: str) -> Any:
        if key in ("end", "chars"):
            self._fill()
            return super().__getitem__(key)
        raise KeyError(key)

    def __contains__(self, key: object) -> bool:
        return key in ("end", "chars") or super().__contains__(key)

    def get(self, key: str, default: Any = None) -> Any:
        """Return a value, counting if it takes that."""
        return self[key] if key in self else default  # noqa: SIM401 - this is get

    def __iter__(self) -> Iterator[str]:
        self._fill()
        return super().__iter__()

    def __len__(self) -> int:
        self._fill()
        return super().__len__()

    def __eq__(self, other: object) -> bool:
        self._fill()
        return super().__eq__(other)

    __hash__ = None  # as a dict

    def copy(self) -> dict[str, Any]:
        """Return a plain ``dict`` of it."""
        self._fill()
        return dict(self)

    def __or__(self, other: Any) -> Any:
        return self.copy() | other

    def __ror__(self, other: Any) -> Any:
        return other | self.copy()

    def keys(self) -> Any:
        """Return the keys."""
        self._fill()
        return super().keys()

    def values(self) -> Any:
        """Return the values."""
        self._fill()
        return super().values()

    def items(self) -> Any:
        """Return the items."""
        self._fill()
        return super().items()

    def __repr__(self) -> str:
        self._fill()
        return super().__repr__()


class Index:
    """Paths, sizes in bytes and lengths in characters of a directory's files, in the order of the context."""

    def __init__(
        self, paths: list[str], sizes: array[int], chars: array[int], encodings: dict[int, str] | None = None
    ) -> None:
        self.paths = paths
        self.sizes = sizes
        self.chars = chars
        self._encodings = encodings or {}
        self.number = {path: i for i, path in enumerate(paths)}

    @classmethod
    def load(cls, path: str) -> Index:
        """Read ``index.jsonl``: one ``{"path", "bytes", "chars"}`` per line.

        A file in UTF-16 or UTF-32 has ``"encoding"`` (``"utf-16-le"``, ...) as well, and ``"utf8_bytes"``.
        """
        encodings: dict[int, str] = {}
        paths: list[str] = []
        sizes, chars = array("q"), array("q")
        with open(path, encoding="utf-8") as file:  # noqa: PTH123 - the guest uses plain paths
            for line in file:
                row = json.loads(line)
                if row.get("encoding"):
                    encodings[len(paths)] = row["encoding"]
                paths.append(row["path"])
                sizes.append(row.get("utf8_bytes", row["bytes"]))
                chars.append(row["chars"])
        return cls(paths, sizes, chars, encodings)

    @classmethod
    def walk(cls, root: str) -> Index:
        """Make an index by reading every file below ``root``, for a directory that came without one."""
        paths = []
        for folder, folders, names in os.walk(root):
            folders.sort()
            for name in names:
                path = os.path.join(folder, name)  # noqa: PTH118 - plain paths
                if os.path.isfile(path) and not os.path.islink(path):  # noqa: PTH113, PTH114 - plain paths
                    paths.append(os.path.relpath(path, root))
        paths.sort()
        sizes, chars, encodings = array("q"), array("q"), {}
        for i, path in enumerate(paths):
            file = FileSource(f"{root}/{path}", Changes())
            if encoding := detect(file.read(0, min(MARK, file.size))):
                encodings[i] = encoding
            doc = Document(as_utf8(file))
            sizes.append(doc.size)
            chars.append(doc.total_chars())
        return cls(paths, sizes, chars, encodings)

    def adapt(self, i: int, source: FileSource) -> Source:
        """Show a file as the index has it."""
        name = self._encodings.get(i)
        return Transcoded(source, name) if name else source

    def header(self, i: int) -> str:
        """Return the line in front of file ``i``, with the empty line that sets it off from the file before."""
        return f"{'' if i == 0 else chr(10) * 2}======== FILE: {self.paths[i]} ({self.chars[i]} chars) ========\n"

    def spans(self) -> list[dict[str, Any]]:
        """Return ``context_files``: one ``{path, start, end, chars}`` per file, in characters of the context."""
        spans, at = [], 0
        for i, (path, chars) in enumerate(zip(self.paths, self.chars, strict=True)):
            at += len(self.header(i))
            spans.append({"path": path, "start": at, "end": at + chars, "chars": chars})
            at += chars
        return spans

    def document(self, root: str, changes: Changes, str_max: int) -> tuple[Document, ConcatSource]:
        """Return the whole directory as one document, and its source."""
        source = ConcatSource(root, self.paths, self.sizes, self, changes, self.adapt)
        starts, chars, at = array("q", [0]), array("q", [0]), 0
        for i, start in enumerate(source.starts):
            at += len(self.header(i))
            starts.append(start)
            chars.append(at)
            at += self.chars[i]
        starts.append(source.size)
        chars.append(at)
        return Document(source, str_max=str_max, anchors=(starts, chars)), source


class Files(Mapping[str, "str | Text"]):
    """Texts by relative path, read when they are asked for: a ``str``, or a ``Text`` if the file is large."""

    def __init__(self, index: Index, source: ConcatSource, str_max: int, piece_max: int) -> None:
        self._index = index
        self._source = source
        self._str_max = str_max
        self._piece_max = piece_max

    def __getitem__(self, path: str) -> str | Text:
        i = self._index.number[path]
        start, size = self._source.starts[i], self._index.sizes[i]
        if size <= self._str_max:
            return utf8.decode(self._source.read(start, start + size))
        source: Source = SliceSource(self._source, start, start + size)
        return Text(Document(source, str_max=self._piece_max))

    def raw(self, path: str) -> Source:
        """Return the bytes of a file as they lie on disk."""
        return self._source.raw(self._index.number[path])

    def __contains__(self, path: object) -> bool:
        return path in self._index.number

    def __iter__(self) -> Iterator[str]:
        return iter(self._index.paths)

    def __len__(self) -> int:
        return len(self._index.paths)

    def __repr__(self) -> str:
        return f"<{len(self)} files: {', '.join(map(repr, self._index.paths[:5]))}{', ...' if len(self) > 5 else ''}>"  # noqa: PLR2004 - as above


class OneFile(Mapping[str, "str | Text"]):
    """The mapping for an input that is one file: its name, and the context itself."""

    def __init__(self, name: str, text: str | Text, source: Source) -> None:
        self._name = name
        self._text = text
        self._source = source

    def raw(self, path: str) -> Source:
        """Return the bytes of the file as they lie on disk."""
        if path != self._name:
            raise KeyError(path)
        return self._source

    def __getitem__(self, path: str) -> str | Text:
        if path != self._name:
            raise KeyError(path)
        return self._text

    def __iter__(self) -> Iterator[str]:
        yield self._name

    def __len__(self) -> int:
        return 1

    def __repr__(self) -> str:
        return f"<1 file: {self._name!r}>"
