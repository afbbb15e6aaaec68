"""Compile modules to bytecode that is valid without looking at the source; run as a program of its own.

An image's root is read-only, so what is not compiled at build time is compiled at every start. Bytecode depends on the state of the
process that compiles (interned strings, the hash seed), so a fresh interpreter with a fixed seed does it, in a given order: the same
sources give the same bytes. Standard input: lines of ``source <TAB> output <TAB> path to record``.
"""

from __future__ import annotations

import py_compile
import sys


def main() -> int:
    """Compile each line's source; a source that does not compile (a template, a bad example) is left as source."""
    for line in sys.stdin:
        source, output, recorded = line.rstrip("\n").split("\t")
        try:
            py_compile.compile(
                source,
                cfile=output,
                dfile=recorded,
                doraise=True,
                invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
            )
        except py_compile.PyCompileError as exc:
            sys.stderr.write(f"{source}: {exc.exc_type_name}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
