"""The only reader of the environment, in two rooms.

This one is light, because every command passes through it: where state lives, and what of the caller's environment goes
along with a request. :mod:`rlm_sandbox.settings.model` holds the validated settings and is loaded by the broker daemon, which never looks at
its own environment for them: a session's settings and keys are those of its own ``start``.
"""

from __future__ import annotations

import os
import stat
import sys

from rlm_sandbox.errors import PrerequisiteError

TYPE_CHECKING = False  # as typing has it, see the package
if TYPE_CHECKING:
    from pathlib import Path

CREDENTIAL_VARIABLES = (
    "ANTHROPIC_API_KEY",
    "ANTHROPIC_BASE_URL",
    "OPENAI_API_KEY",
    "OPENAI_BASE_URL",
    "LLM_API_KEY",
    "LLM_BASE_URL",
    "LLM_PROVIDER",
)
"""Sent to the broker with ``start`` and kept in its memory only."""

ENGINE_VARIABLES = ("DOCKER_HOST", "DOCKER_CONTEXT", "DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH")
"""What names an engine; sent with every request that needs one."""

_ENGINE_FOLDERS = ("DOCKER_CONFIG", "XDG_RUNTIME_DIR")

_PATH_VARIABLES = ("RLM_SCRIPT", "RLM_GGUF", "RLM_SESSION_DIR", "RLM_CA_FILE")

_PROCESS_VARIABLES = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "USER", "VIRTUAL_ENV", "SSL_CERT_FILE", "PIP_CERT")


def home_folder() -> str:
    """Return the folder of all state: ``RLM_SANDBOX_HOME``, else the platform's state folder. Text, for want of 4 ms."""
    named = os.environ.get("RLM_SANDBOX_HOME")
    if named:
        named = os.path.expanduser(named)  # noqa: PTH111 - without pathlib
        return named if os.path.isabs(named) else os.path.join(os.getcwd(), named)  # noqa: PTH109, PTH117, PTH118 - likewise
    if sys.platform.startswith("linux"):
        # What platformdirs answers on Linux, without its 15 ms of import on the path of every command.
        base = os.environ.get("XDG_STATE_HOME") or os.path.join(os.path.expanduser("~"), ".local", "state")  # noqa: PTH118, PTH111 - without pathlib
        return os.path.join(base, "rlm-sandbox")  # noqa: PTH118 - without pathlib
    import platformdirs  # noqa: PLC0415 - see above

    return platformdirs.user_state_dir("rlm-sandbox", appauthor=False)


def home() -> Path:
    """As :func:`home_folder`, as a path."""
    return _path(home_folder())


def _path(text: str) -> Path:
    from pathlib import Path  # noqa: PLC0415 - the commands that cells are run with do without

    return Path(text)


def private_home(path: Path) -> None:
    """Make the folder of all state and keep it to this user. Raises :class:`PrerequisiteError` where that cannot be.

    A folder that is there already is closed to others too, unless it is plainly not ours to close: ``/tmp``, another user's.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.stat()
        if found.st_uid != os.getuid() or found.st_mode & stat.S_ISVTX:
            raise PrerequisiteError(
                f"the state folder {path} is shared with others", hint="set RLM_SANDBOX_HOME to a folder of your own"
            )
        if stat.S_IMODE(found.st_mode) != stat.S_IRWXU:
            path.chmod(stat.S_IRWXU)
    except OSError as exc:
        raise PrerequisiteError(
            f"the state folder {path} cannot be used: {exc.strerror}",
            hint="set RLM_SANDBOX_HOME to a folder you may write",
        ) from exc


def client_environment() -> dict[str, str]:
    """Return what ``start`` sends along: ``RLM_*`` settings and the providers' variables, empty ones left out.

    Relative paths are made absolute here, because the daemon stands in another folder.
    """
    sent = {
        name: value
        for name, value in os.environ.items()
        if value and (name.startswith("RLM_") or name in CREDENTIAL_VARIABLES)
    }
    return {name: absolute(value) if name in _PATH_VARIABLES else value for name, value in sent.items()}


def absolute(path: str) -> str:
    """Return a path that means the same in any folder."""
    return os.path.abspath(os.path.expanduser(path))  # noqa: PTH100, PTH111 - keeps undecodable bytes and links


def claude_folder() -> Path:
    """Return the folder in which Claude Code keeps a user's settings and skills."""
    return _path(os.environ.get("CLAUDE_CONFIG_DIR") or "~/.claude").expanduser().absolute()


def data_folder() -> Path:
    """Return the folder for what is installed for this user, as ``install.sh`` uses it."""
    base = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    return _path(base).expanduser().absolute() / "rlm-sandbox"


def session_root() -> str | None:
    """Return where ``RLM_SESSION_DIR`` puts session folders, if it is set: their answers are looked for there."""
    value = os.environ.get("RLM_SESSION_DIR")
    return absolute(value) if value else None


def engine_variables() -> dict[str, str]:
    """Return which engine the caller means: each ``start`` uses its own, whatever the daemon was started with."""
    return {name: os.environ[name] for name in ENGINE_VARIABLES if os.environ.get(name)}


def stdout_max() -> int | None:
    """Return ``RLM_STDOUT_MAX`` of this command's environment: rlm-skill reads it at every ``exec``. More than there can be is all."""
    value = os.environ.get("RLM_STDOUT_MAX", "")
    if not (value.isascii() and value.isdigit()):
        return None
    return min(int(value[:20]), _STDOUT_MAX)


_STDOUT_MAX = 2**53
"""What a document can say; the daemon shows less of it anyway."""

_WAIT_MAX = 30 * 86400.0


def stdout_default(form: str) -> int | None:
    """Return how much of a cell's output a form of document asks for where nobody set ``RLM_STDOUT_MAX``.

    A model reads text, and one that has to ask again pays for the whole conversation once more; beside 6,000 characters the rest of a document
    of 8,000 finds room.
    """
    return 6000 if form == "text" else None


def default_wait() -> float:
    """Return seconds that ``exec`` waits for a cell: ``RLM_WAIT``, else 100, below the 120 s after which a caller's shell tool gives up."""
    try:
        given = float(os.environ.get("RLM_WAIT", ""))
    except ValueError:
        return 100.0
    return max(0.0, min(given, _WAIT_MAX)) if given == given else 100.0  # noqa: PLR0124 - NaN alone differs from itself


def daemon_environment() -> dict[str, str]:
    """Return the environment for a broker daemon: what finding programs and the engine takes, and no key."""
    kept = {
        name: os.environ[name]
        for name in (*_PROCESS_VARIABLES, *ENGINE_VARIABLES, *_ENGINE_FOLDERS)
        if name in os.environ
    }
    kept.update({name: value for name, value in os.environ.items() if name.startswith("PIP_")})
    kept["RLM_SANDBOX_HOME"] = str(home())
    kept["PYTHONUNBUFFERED"] = "1"
    return kept


def engine_host() -> str | None:
    """Return ``DOCKER_HOST`` if it names an engine other than the default."""
    return os.environ.get("DOCKER_HOST") or None


def colour_allowed() -> bool:
    """Tell whether decorations are welcome at all (NO_COLOR, TERM=dumb)."""
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
