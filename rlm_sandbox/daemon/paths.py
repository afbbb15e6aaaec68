"""Where the daemon of a state folder listens, and how to reach a socket whose path is longer than the kernel allows.

A Unix socket's address holds 107 bytes, and state folders may be deep. Linux lets a socket be named through an open directory's
``/proc/self/fd`` entry, which is always short; so every bind and connect goes that way when it must.
"""

from __future__ import annotations

import contextlib
import os

TYPE_CHECKING = False  # as typing has it, see the package
if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_ADDRESS_MAX = 107


def run_folder(home: Path) -> Path:
    """Return the folder of socket, lock and log, making it private."""
    folder = home / "run"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def socket_path(home: Path) -> Path:
    """Return the control socket's path."""
    return home / "run" / "broker.sock"


def socket_name(home: str | Path) -> str:
    """As :func:`socket_path`, without the need of a path."""
    return os.path.join(home, "run", "broker.sock")  # noqa: PTH118 - on the way of every command


@contextlib.contextmanager
def address(path: str | Path) -> Iterator[str]:
    """Yield an address for ``path`` that is short enough."""
    if len(os.fsencode(path)) <= _ADDRESS_MAX:
        yield str(path)
        return
    folder_name, name = os.path.split(path)
    folder = os.open(folder_name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{name}"
    finally:
        os.close(folder)
