"""The guest's file tree, made from the running interpreter: no registry, no network, no shell.

What goes in: the interpreter at /usr/local, its standard library with bytecode, the shared libraries both need, and the guest
package at /opt/rlm. What stays out: tests, GUI toolkits, installers, anything from site-packages, every other program.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING

import rlm_sandbox
from rlm_sandbox.container import closure, packages, precompile
from rlm_sandbox.container.archive import Layer
from rlm_sandbox.errors import ImageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

PREFIX = "usr/local"
GUEST_ROOT = "opt/rlm"
PACKAGE = Path(rlm_sandbox.__file__).parent
GUEST_PARTS = ("wire", "guest")

SKIPPED_FOLDERS = frozenset({
    "__pycache__", "site-packages", "dist-packages", "test", "tests", "idlelib", "idle_test", "tkinter", "turtledemo",
    "lib2to3", "ensurepip", "pydoc_data", "venv", "distutils",
})  # fmt: skip
"""Of the standard library: programs, tests and installers, none of which an analysis imports."""

SKIPPED_MODULES = ("_tkinter.", "_test", "_ctypes_test.", "xx", "_xx")
"""Prefixes of extension modules that only tests and GUIs load."""


def guest_files() -> dict[str, Path]:
    """Return the guest package's sources by their path below :data:`GUEST_ROOT`."""
    files = {"rlm_sandbox/__init__.py": PACKAGE / "__init__.py"}
    for part in GUEST_PARTS:
        for path in sorted((PACKAGE / part).rglob("*.py")):
            files[f"rlm_sandbox/{path.relative_to(PACKAGE).as_posix()}"] = path
    return files


_RECIPE = ("archive", "assemble", "closure", "dockerfile", "image", "offline", "packages", "precompile")
"""The modules that decide what is in an image besides the guest package."""


def guest_digest() -> str:
    """Return a hash of the guest package and of the recipe around it: an image with another one is stale."""
    total = hashlib.sha256()
    here = Path(__file__).parent
    recipe = {f"recipe/{name}": here / f"{name}.py" for name in _RECIPE}
    for name, path in {**guest_files(), **recipe}.items():
        content = path.read_bytes()
        total.update(f"{name}\0{len(content)}\0".encode() + content)
    return total.hexdigest()


def interpreter() -> Path:
    """Return the running interpreter's real file, outside any virtual environment."""
    return Path(os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable))


def version_name() -> str:
    """Return ``python3.11`` or the like."""
    return f"python{sys.version_info.major}.{sys.version_info.minor}"


def python_layer(scratch: Path) -> Layer:
    """Return interpreter, standard library and shared libraries; ``scratch`` keeps bytecode until it is written."""
    layer = Layer()
    name = version_name()
    binary = interpreter()
    loader = closure.loader_of(binary)
    layer.add(f"{PREFIX}/bin/{name}", binary, executable=True)
    layer.links |= {f"{PREFIX}/bin/python3": name, f"{PREFIX}/bin/python": name}
    stdlib = Path(sysconfig.get_path("stdlib"))
    sources: list[tuple[str, Path]] = []
    modules: list[Path] = []
    for path in _walk(stdlib):
        target = f"{PREFIX}/lib/{name}/{path.relative_to(stdlib).as_posix()}"
        if path.name.startswith("_sysconfigdata"):
            content = path.read_bytes().replace(sys.base_prefix.encode(), f"/{PREFIX}".encode())
            layer.add(target, content)
            continue
        layer.add(target, path)
        if path.suffix == ".py":
            sources.append((target, path))
        elif path.suffix == ".so":
            modules.append(path)
    add_libraries(layer, loader, [binary, *modules])
    add_bytecode(layer, sources, scratch)
    layer.folders |= {"tmp": 0o1777, "input": 0o755, "proc": 0o755, "sys": 0o755, "dev": 0o755, "etc": 0o755}
    layer.folders[f"{PREFIX}/lib/{name}/site-packages"] = 0o755
    for alias in (f"{name}/dist-packages", "python3/dist-packages"):  # where Debian's interpreter looks
        layer.links[f"{PREFIX}/lib/{alias}"] = f"/{PREFIX}/lib/{name}/site-packages"
    layer.add("etc/passwd", b"nobody:x:65534:65534:nobody:/tmp:/nonexistent\n")
    layer.add("etc/group", b"nogroup:x:65534:\n")
    return layer


def package_layer(wheels: Iterable[Path], scratch: Path, python: Layer) -> Layer:
    """Return the content of ``wheels`` as site-packages, with bytecode and the shared libraries ``python`` does not have."""
    layer = Layer()
    site = f"{PREFIX}/lib/{version_name()}/site-packages"
    tree = scratch / "site-packages"
    for wheel in sorted(wheels):
        packages.unpack(wheel, tree)
    sources: list[tuple[str, Path]] = []
    modules: list[Path] = []
    for path in sorted(tree.rglob("*")):
        if not path.is_file():
            continue
        target = f"{site}/{path.relative_to(tree).as_posix()}"
        layer.add(target, path)
        if path.suffix == ".py":
            sources.append((target, path))
        elif ".so" in path.suffixes:
            modules.append(path)
    add_libraries(layer, closure.loader_of(interpreter()), [interpreter(), *modules], bundled=tree, known=python)
    add_bytecode(layer, sources, scratch)
    return layer


def guest_layer(scratch: Path) -> Layer:
    """Return the guest package with bytecode, and the path file by which any interpreter in the image finds it."""
    layer = Layer()
    sources = [(f"{GUEST_ROOT}/{name}", path) for name, path in guest_files().items()]
    for target, path in sources:
        layer.add(target, path)
    add_bytecode(layer, sources, scratch)
    layer.add(f"{PREFIX}/lib/{version_name()}/site-packages/rlm-guest.pth", f"/{GUEST_ROOT}\n".encode())
    return layer


def _walk(stdlib: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(stdlib):
        folders[:] = sorted(name for name in folders if name not in SKIPPED_FOLDERS and not name.startswith("config-"))
        for name in sorted(files):
            if name.endswith((".py", ".so")) and not name.startswith(SKIPPED_MODULES):
                yield Path(folder, name)


def add_libraries(
    layer: Layer, loader: str, binaries: Iterable[Path], *, bundled: Path | None = None, known: Layer | None = None
) -> None:
    """Add what ``binaries`` need, all in the C library's folder, where the loader looks without being told.

    Left out is what lies below ``bundled`` (a wheel finds its own libraries) and what the layer ``known`` has.
    """
    found = closure.libraries(loader, binaries)
    if "libc.so.6" not in found:
        raise ImageError(
            "the interpreter does not use the GNU C library", hint="build with a Dockerfile: --from-base IMAGE"
        )
    home = found["libc.so.6"].parent
    if known is None:
        layer.add(loader, Path(os.path.realpath(loader)), executable=True)
    for soname, path in found.items():
        target = f"{home}/{soname}"
        if bundled is not None and path.is_relative_to(bundled):
            continue
        if known is None or target.lstrip("/") not in known.files:
            layer.add(target, Path(os.path.realpath(path)), executable=True)


def add_bytecode(layer: Layer, sources: list[tuple[str, Path]], scratch: Path) -> None:
    """Compile ``sources`` (path in the image, file) in order, and add the results where the interpreter looks for them."""
    tag = sys.implementation.cache_tag
    wanted: list[tuple[str, Path]] = []
    lines: list[str] = []
    for number, (target, path) in enumerate(sources):
        folder, _, name = target.rpartition("/")
        output = scratch / f"{len(layer.files)}-{number}.pyc"
        lines.append(f"{path}\t{output}\t/{target}")
        wanted.append((f"{folder}/__pycache__/{name.removesuffix('.py')}.{tag}.pyc", output))
    done = subprocess.run(  # noqa: S603 - the running interpreter, on its own library
        [str(interpreter()), "-P", "-s", "-S", precompile.__file__],
        input="\n".join(lines) + "\n", capture_output=True, text=True, check=False, timeout=600,
        env={"PYTHONHASHSEED": "0", "LC_ALL": "C.UTF-8"},
    )  # fmt: skip
    if done.returncode != 0:
        raise ImageError(f"compiling the guest's modules failed: {done.stderr.strip()[-300:]}")
    for target, output in wanted:
        if output.exists():
            layer.add(target, output)
