"""What kinds of files an input holds, by the endings of their names: enough for a model to choose how to read them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

SHOWN = 12
"""Kinds in a summary, largest first; the rest are added up as ``other``. A start's document is read by a model every time."""

OTHER = "other"

_ENDINGS = {
    "C": "c h", "C++": "cc cpp cxx hh hpp hxx", "C#": "cs", "CSS": "css less scss", "CSV": "csv tsv", "Clojure": "clj cljs",
    "Dart": "dart", "Elixir": "ex exs", "Erlang": "erl hrl", "Go": "go", "HTML": "html htm", "Haskell": "hs", "INI": "ini cfg conf toml properties",
    "JSON": "json", "JSON lines": "jsonl ndjson", "Java": "java", "JavaScript": "js cjs mjs jsx", "Jupyter": "ipynb", "Kotlin": "kt kts",
    "Lua": "lua", "Markdown": "md markdown", "Notes": "txt text rst adoc org", "Objective-C": "m mm", "PDF": "pdf", "PHP": "php", "Parquet": "parquet",
    "Perl": "pl pm", "Protobuf": "proto", "Python": "py pyi", "R": "r", "Ruby": "rb", "Rust": "rs", "SQL": "sql", "Scala": "scala",
    "Shell": "sh bash zsh fish", "Svelte": "svelte", "Swift": "swift", "TypeScript": "ts cts mts tsx", "Vue": "vue", "Word": "docx",
    "XML": "xml xsd xsl svg", "YAML": "yaml yml", "Zig": "zig", "archive": "zip tar gz tgz bz2 xz zst", "log": "log",
}  # fmt: skip
_BY_ENDING = {ending: name for name, endings in _ENDINGS.items() for ending in endings.split()}
_BY_NAME = {
    "makefile": "Make",
    "dockerfile": "Docker",
    "cmakelists.txt": "CMake",
    "license": "Notes",
    "readme": "Notes",
}


def language_of(path: str) -> str:
    """Return the kind of a file; :data:`OTHER` when its name does not tell."""
    name = path.rpartition("/")[2].lower()
    return _BY_NAME.get(name) or _BY_ENDING.get(name.rpartition(".")[2] if "." in name else "", OTHER)


@dataclass
class Languages:
    """Counts files and bytes of each kind."""

    _counts: dict[str, tuple[int, int]] = field(default_factory=dict)

    def add(self, path: str, size: int) -> None:
        """Count one file of ``size`` bytes."""
        name = language_of(path)
        files, total = self._counts.get(name, (0, 0))
        self._counts[name] = files + 1, total + size

    def summary(self) -> list[dict[str, Any]]:
        """Return ``{language, files, bytes}`` of each, largest first and :data:`OTHER` last."""
        known = sorted(((n, c) for n, c in self._counts.items() if n != OTHER), key=lambda each: (-each[1][1], each[0]))
        rest = [counts for _, counts in known[SHOWN:]] + ([self._counts[OTHER]] if OTHER in self._counts else [])
        rows = [{"language": name, "files": files, "bytes": total} for name, (files, total) in known[:SHOWN]]
        if rest:
            rows.append({"language": OTHER, "files": sum(f for f, _ in rest), "bytes": sum(t for _, t in rest)})
        return rows
