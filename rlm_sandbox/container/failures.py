"""The one boundary between the engine's failures and ours: whose fault was it, and what to do about it.

The engine reports everything as text. This table reads the texts that matter and answers one question first: did the caller
ask for something impossible (a path that is not there, an unknown runtime: ``UsageError``, ``InputError``, ``ImageError``), or
did the engine fail (``EngineError``)? What no row knows is the engine's failure, quoted. Tests hold real, captured texts.
"""

from __future__ import annotations

import errno
import re
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import docker.errors
import requests.exceptions
import urllib3.exceptions

from rlm_sandbox.errors import EngineError, ImageError, InputError, PrerequisiteError, RLMError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

FOREIGN: tuple[type[BaseException], ...] = (
    docker.errors.DockerException,
    requests.exceptions.RequestException,
    urllib3.exceptions.HTTPError,
    OSError,
    EOFError,
)
"""What docker-py and the sockets below it raise."""

TEXT_MAX = 400
"""Characters of the engine's own words in a message: one line, long enough for a runtime's error chain."""


@dataclass(frozen=True)
class Row:
    """A known text: the error that it means, the message (``{0}`` is the first group) and the fix."""

    pattern: re.Pattern[str]
    error: type[RLMError]
    message: str
    hint: str


def _row(pattern: str, error: type[RLMError], message: str, hint: str) -> Row:
    return Row(re.compile(pattern, re.IGNORECASE | re.DOTALL), error, message, hint)


SANDBOX_HINT = (
    "this shell's own sandbox blocks Unix sockets: in Claude Code set "
    '"sandbox": {"excludedCommands": ["rlm-sandbox *"]} in settings.json and use plain calls (-f FILE, no heredoc)'
)

ROWS: tuple[Row, ...] = (
    _row(
        r"(?:bind )?(?:source path|mount source path)[^:]*does not exist:?\s*(\S.*)?$",
        InputError,
        "the input is not visible to the engine: {0}",
        "with a remote engine or Docker Desktop the path must exist, and be shared, on the engine's side",
    ),
    _row(
        r"mounts denied|is not shared from the host",
        InputError,
        "the engine may not mount the input's folder",
        "share the folder in Docker Desktop (Settings > Resources > File sharing), or copy the input to a shared one",
    ),
    _row(
        r"no such image:?\s*(\S+)|(?:pull access denied for|unable to find image) '?([^\s,']+)",
        ImageError,
        "the image {0} is not on this engine",
        "run: rlm-sandbox image build",
    ),
    _row(
        r"unknown or invalid runtime name:?\s*(\S+)|unknown runtime specified\s*(\S+)|runtime \"?(\S+?)\"? is not (?:installed|found)",
        PrerequisiteError,
        "the engine has no runtime named {0}",
        "install it and register it with the engine, or leave --runtime out; nothing weaker is used in its place",
    ),
    _row(
        r"range of cpus is from ([\d.]+ to [\d.]+)",
        UsageError,
        "the engine allows CPU limits from {0}",
        "pass --cpus within that range",
    ),
    _row(
        r"minimum memory limit (?:allowed|can not be less than)[^\d]*(\d+\w+)",
        UsageError,
        "the memory limit is below the engine's minimum of {0}",
        "pass a larger --memory",
    ),
    _row(
        r"no space left on device|not enough space",
        EngineError,
        "the engine's disk is full",
        "free space where the engine keeps its data (docker system df, docker system prune)",
    ),
    _row(
        r"seccomp (?:profiles are|is) not (?:supported|enabled)|seccomp: config provided but seccomp not supported",
        EngineError,
        "this engine cannot apply seccomp profiles",
        "use an engine with seccomp: sessions do not start without it",
    ),
    _row(
        r"(?:cgroup|controller).*(?:not (?:mounted|available|delegated|found))|cgroups: cannot find",
        EngineError,
        "the engine cannot set resource limits (cgroup controllers are missing)",
        "with a rootless engine delegate the cpu, memory and pids controllers to your user (cgroup v2)",
    ),
    _row(
        r"trying to mount a directory onto a file|error mounting .*: not a directory",
        InputError,
        "the input changed its type while the session started",
        "start again once nothing replaces it, or use --snapshot",
    ),
    _row(
        r'error mounting "([^"]+)".*permission denied',
        InputError,
        "the engine's user may not reach {0}",
        "an engine in a user namespace needs execute permission for others on every folder above it, or use --snapshot",
    ),
    _row(
        r'exec: "([^"]+)": (?:stat|executable file not found|no such file)',
        ImageError,
        "the image lacks the program {0}",
        "run: rlm-sandbox image build",
    ),
    _row(
        r"no such container",
        EngineError,
        "the container is gone: something removed it",
        "start again; if it repeats, look for a clean-up job on this engine (docker events)",
    ),
    _row(
        r"failed to resolve '([^']+)'|name or service not known|temporary failure in name resolution",
        EngineError,
        "the engine's host name cannot be resolved: {0}",
        "check DOCKER_HOST or the Docker context",
    ),
    _row(
        r"client version \S+ is too (?:old|new)",
        EngineError,
        "the engine and this client speak different API versions",
        "upgrade the older of the two: engine 20.10 (API 1.41) is the oldest that is supported",
    ),
)

_ERRNOS: dict[int, tuple[str, str]] = {
    errno.EPERM: ("connecting to the engine's socket is not permitted", SANDBOX_HINT),
    errno.EACCES: (
        "no permission on the engine's socket",
        "add yourself to the docker group (sudo usermod -aG docker $USER, then log in again), or use a rootless engine",
    ),
    errno.ENOENT: (
        "no Docker engine is running here (its socket does not exist)",
        "start Docker, set DOCKER_HOST, or run: make setup",
    ),
    errno.ECONNREFUSED: (
        "no Docker engine answers on its socket",
        "start Docker (systemctl start docker, or Docker Desktop), or run: make setup",
    ),
}


_UNKNOWN_HINT = "see: rlm-sandbox doctor"


def one_line(text: str) -> str:
    """Return the engine's words as one bounded, printable line."""
    clean = "".join(char if char.isprintable() else " " for char in text)
    clean = " ".join(clean.split())
    return clean if len(clean) <= TEXT_MAX else clean[: TEXT_MAX - 1] + "\N{HORIZONTAL ELLIPSIS}"


def explain(text: str, doing: str) -> RLMError:
    """Return the error that the engine's words mean."""
    line = one_line(text)
    for row in ROWS:
        if found := row.pattern.search(line):
            what = next((group for group in found.groups() if group), "").strip()
            return row.error(row.message.format(what or "(unnamed)"), hint=row.hint)
    return EngineError(f"the engine failed to {doing}: {line}", hint=_UNKNOWN_HINT)


def translate(error: BaseException, doing: str) -> RLMError:
    """Return our error for one of :data:`FOREIGN`. ``doing`` completes "failed to ...", as in "start the container"."""
    if isinstance(error, docker.errors.APIError):
        return explain(str(error.explanation or error), doing)
    root = _os_error(error)
    if root is not None and root.errno in _ERRNOS:
        message, hint = _ERRNOS[root.errno]
        return EngineError(message, hint=hint)
    known = explain(str(error), doing)
    if type(known) is EngineError and known.hint == _UNKNOWN_HINT and _is_timeout(error):
        return EngineError(
            f"the engine did not answer in time (to {doing})", hint="look at its load and logs; restart it if it hangs"
        )
    return known


@contextmanager
def boundary(doing: str) -> Iterator[None]:
    """Translate what the engine's client raises inside."""
    try:
        yield
    except FOREIGN as exc:
        raise translate(exc, doing) from exc


def is_gone(error: BaseException) -> bool:
    """Whether the engine says that the container is not there any more, or is just going."""
    if isinstance(error, docker.errors.NotFound):
        return True
    text = str(getattr(error, "explanation", "") or error).lower()
    return isinstance(error, docker.errors.APIError) and (
        "no such container" in text or "is already in progress" in text or "is not running" in text
    )


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Walk causes, contexts and arguments: urllib3 keeps the real error in ``args``."""
    seen: set[int] = set()
    queue: list[object] = [error]
    while queue:
        item = queue.pop(0)
        if not isinstance(item, BaseException) or id(item) in seen:
            continue
        seen.add(id(item))
        yield item
        queue += [*item.args, item.__cause__, item.__context__, getattr(item, "reason", None)]


def _os_error(error: BaseException) -> OSError | None:
    """Return the system's own error at the bottom, not requests' subclasses of ``OSError`` on the way."""
    for item in _chain(error):
        if (
            isinstance(item, OSError)
            and item.errno is not None
            and not isinstance(item, requests.exceptions.RequestException)
        ):
            return item
    return None


def _is_timeout(error: BaseException) -> bool:
    """A connection that cannot be made is a kind of time-out to urllib3, but not to us."""
    kinds = (TimeoutError, requests.exceptions.Timeout, urllib3.exceptions.TimeoutError)
    unmade = urllib3.exceptions.NewConnectionError
    return any(isinstance(item, kinds) and not isinstance(item, unmade) for item in _chain(error))
