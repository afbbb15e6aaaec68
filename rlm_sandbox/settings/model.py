"""Settings of a session and the host's policy, validated.

Precedence of settings: command-line flag, the caller's ``RLM_*`` variable, ``config.toml`` in the state folder, default.
The policy is not a setting: it is read from ``/etc/rlm-sandbox/policy.toml`` and ``policy.toml`` in the state folder, the stricter value wins,
and nothing a caller says can exceed it.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from rlm_sandbox.errors import PolicyError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

SYSTEM_POLICY = Path("/etc/rlm-sandbox/policy.toml")

_SIZE = re.compile(r"(\d+)\s*([kmgt]?)i?b?", re.IGNORECASE)
_FACTOR = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}


def parse_size(value: object) -> object:
    """Turn ``"2g"``, ``"512 MiB"`` or a number of bytes into bytes."""
    if isinstance(value, str) and (match := _SIZE.fullmatch(value.strip())):
        return int(match[1]) * _FACTOR[match[2].lower()]
    return value


Size = Annotated[int, BeforeValidator(parse_size), Field(ge=0)]
Seconds = Annotated[float, Field(gt=0, le=30 * 86400, allow_inf_nan=False)]


_PATHS = {"script", "gguf", "session_dir"}


def _comma_list(value: object) -> object:
    return tuple(item.strip() for item in value.split(",") if item.strip()) if isinstance(value, str) else value


class Settings(BaseSettings):
    """Everything a session can be told, with defaults. Sizes are bytes, times are seconds, money is USD."""

    model_config = SettingsConfigDict(env_prefix="RLM_", extra="ignore", frozen=True, env_ignore_empty=True)

    provider: str | None = None
    sub_model: str | None = None
    allow_model: Annotated[tuple[str, ...], BeforeValidator(_comma_list)] = ()
    sub_max_tokens: int = Field(4096, ge=1, le=2**31 - 1)
    budget_limit: int = Field(100, ge=0, le=2**53)
    token_limit: int | None = Field(None, ge=0, le=2**53)
    token_warning: int | None = Field(None, ge=0, le=2**53)
    cost_limit: float | None = Field(None, ge=0, le=1e9, allow_inf_nan=False)
    time_limit: Seconds | None = None
    concurrency: int = Field(20, ge=1, le=1000)
    call_deadline: Seconds = 600.0
    cache_scope: str | None = Field(None, max_length=128)

    image: str = "base"
    runtime: str | None = None
    memory: Size = 2 * 2**30
    cpus: float | None = Field(None, gt=0, le=1024)
    pids: int = Field(640, ge=16, le=32768)
    tmpfs: Size | None = None
    """Scratch space, which counts as memory and bounds one file too; None is 256 MiB, or an eighth of the memory where that is less."""
    tmpfs_files: int = Field(16384, ge=64, le=2**20)
    shm: Size = 64 * 2**20
    open_files: int = Field(1024, ge=64, le=2**20)
    cell_timeout: Seconds = 600.0
    idle_timeout: Seconds = 3600.0

    stdout_max: int = Field(2048, ge=0, le=10**7)
    output_max: Size = 64 * 2**20
    """Bytes of one cell's output that are kept on disk; the rest is counted and dropped."""
    context_prefix_len: int = Field(800, ge=0, le=10**6)
    max_per_file_bytes: Size = 4 * 2**20
    context_str_max: Size = 64 * 2**20
    session_dir: Path | None = None
    script: Path | None = None
    gguf: Path | None = None
    openai_fast: str | None = None
    clock: Literal["real", "frozen"] = "real"
    """``frozen``: in cells it is always the moment at which the session was first started."""

    _client: ClassVar[Mapping[str, str]] = {}

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what the caller passed: flags and its environment come in one mapping (see :func:`load`)."""
        del settings_cls, env_settings, dotenv_settings, file_secret_settings
        return (init_settings,)


class _ClientEnvironment(EnvSettingsSource):
    """Reads ``RLM_*`` from a mapping that a client sent instead of from this process."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        self._variables = {name.lower(): value for name, value in variables.items()}
        super().__init__(Settings)

    def _load_env_vars(self) -> Mapping[str, str | None]:
        return {name: value for name, value in self._variables.items() if value}

    def prepare_field_value(self, field_name: str, field: Any, value: Any, value_is_complex: bool) -> Any:
        """Keep strings as they are: no setting is written as JSON."""
        del field_name, field, value_is_complex
        return value


def load(flags: Mapping[str, Any], environment: Mapping[str, str], home: Path) -> Settings:
    """Merge and validate. Raises :class:`UsageError` naming the first setting that makes no sense."""
    values: dict[str, Any] = _read_toml(home / "config.toml")
    for name in _PATHS & values.keys():
        values[name] = home / Path(str(values[name])).expanduser()
    unknown = values.keys() - Settings.model_fields.keys()
    if unknown:
        raise UsageError(
            f"config.toml: unknown setting {min(unknown)!r}",
            hint=f"settings are: {', '.join(sorted(Settings.model_fields))}",
        )
    if strange := flags.keys() - Settings.model_fields.keys():
        raise UsageError(f"there is no option {min(strange)!r}", hint="see rlm-sandbox start --help")
    values.update(_ClientEnvironment(environment)())
    values.update({name: value for name, value in flags.items() if value is not None})
    try:
        return Settings(**values)
    except ValidationError as exc:
        first = exc.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        what = (
            "is no size such as 512m or 2g" if _is_size(name) and "parsing" in first["type"] else first["msg"].lower()
        )
        raise UsageError(
            f"{name}: {what} (got {str(first.get('input'))[:80]!r})",
            hint=f"set {_flag(name)} or RLM_{name.upper()} to a valid value",
        ) from exc


def _is_size(name: str) -> bool:
    field = Settings.model_fields.get(name)
    return field is not None and any(getattr(part, "func", None) is parse_size for part in field.metadata)


class HostPolicy(BaseModel):
    """What no flag, variable or cell can exceed. Every field may be left out; sizes are bytes, times seconds, money USD."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    models: Annotated[tuple[str, ...] | None, BeforeValidator(_comma_list)] = None
    providers: Annotated[tuple[str, ...] | None, BeforeValidator(_comma_list)] = None
    runtimes: Annotated[tuple[str, ...] | None, BeforeValidator(_comma_list)] = None
    max_prompt_bytes: Size = 8 * 2**20
    max_tokens: int = Field(64_000, ge=1)
    max_calls: int | None = Field(None, ge=0)
    max_cost: float | None = Field(None, ge=0, le=1e9, allow_inf_nan=False)
    daily_cost: float | None = Field(None, ge=0, le=1e9, allow_inf_nan=False)
    calls_per_second: float | None = Field(None, gt=0, allow_inf_nan=False)
    max_concurrency: int = Field(64, ge=1)
    max_sessions: int = Field(50, ge=1)
    max_memory: Size | None = None
    max_cpus: float | None = Field(None, gt=0, allow_inf_nan=False)
    max_pids: int | None = Field(None, ge=16)
    max_tmpfs: Size | None = None
    max_tmpfs_files: int | None = Field(None, ge=64)
    max_shm: Size | None = None
    max_open_files: int | None = Field(None, ge=64)
    max_output: Size | None = None
    max_cell_timeout: Seconds = 7200.0
    max_session_time: Seconds | None = None
    secrets: Literal["off", "refuse", "redact"] = "off"
    cache_max: Size = 2 * 2**30
    """Bytes on disk of all kept answers; the ones used longest ago go first."""
    cache_days: float = Field(30, gt=0, le=36500)
    """How long an answer is kept that nobody asks for again."""
    allow_bind: bool = True


_STRICTER_IS_LESS = (
    "max_prompt_bytes", "max_tokens", "max_calls", "max_cost", "daily_cost", "calls_per_second", "max_concurrency",
    "max_sessions", "max_memory", "max_cpus", "max_pids", "max_tmpfs", "max_tmpfs_files", "max_shm", "max_open_files",
    "max_output", "max_cell_timeout", "max_session_time", "cache_max", "cache_days",
)  # fmt: skip
_SECRETS_ORDER = ("off", "redact", "refuse")


def load_policy(home: Path, system: Path = SYSTEM_POLICY) -> HostPolicy:
    """Read both policy files and keep the stricter of each value. Raises :class:`UsageError` on a file that cannot be understood."""
    merged: dict[str, Any] = {}
    for path in (system, home / "policy.toml"):
        values = _read_toml(path)
        try:
            given = HostPolicy(**values)
        except ValidationError as exc:
            first = exc.errors()[0]
            raise UsageError(
                f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}",
                hint="correct the policy file; nothing starts with a policy that cannot be understood",
            ) from exc
        for name in values:
            merged[name] = _stricter(name, merged.get(name), getattr(given, name))
    return HostPolicy(**merged)


def _stricter(name: str, one: Any, other: Any) -> Any:
    if one is None or other is None:
        return other if one is None else one
    if name in _STRICTER_IS_LESS:
        return min(one, other)
    if name == "secrets":
        return max(one, other, key=_SECRETS_ORDER.index)
    if name == "allow_bind":
        return one and other
    return tuple(item for item in one if item in other)


def load_prices(home: Path) -> dict[str, Any] | None:
    """Return ``prices.toml`` of the state folder, the prices of private models, or None (see docs/providers.md for its form)."""
    return _read_toml(home / "prices.toml") or None


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        if path.exists() and not path.is_file():
            raise UsageError(
                f"{path}: is no file", hint="correct the file or remove it"
            )  # reading a FIFO would not end
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as exc:
        if path.is_symlink():  # somebody meant a file to be there: without it, what it forbids would be allowed
            raise UsageError(f"{path}: leads nowhere", hint="correct the link or remove it") from exc
        return {}
    except (OSError, ValueError) as exc:
        raise UsageError(f"{path}: cannot be read: {exc}", hint="correct the file or remove it") from exc


def _flag(name: str) -> str:
    return _FLAGS.get(name, f"--{name.replace('_', '-')}")


_FLAGS = {"budget_limit": "--budget", "sub_model": "--model"}

DEFAULT_RUNTIME = "runc"
"""What engines use when nobody names a runtime; a policy that lists runtimes lists it or forbids it."""

_CAPPED = (
    ("memory", "max_memory"),
    ("cpus", "max_cpus"),
    ("pids", "max_pids"),
    ("tmpfs", "max_tmpfs"),
    ("tmpfs_files", "max_tmpfs_files"),
    ("shm", "max_shm"),
    ("open_files", "max_open_files"),
    ("output_max", "max_output"),
    ("cell_timeout", "max_cell_timeout"),
    ("time_limit", "max_session_time"),
    ("budget_limit", "max_calls"),
    ("cost_limit", "max_cost"),
)
"""Settings and the policy that bounds each."""

_USUAL = {"cpus": 2.0, "tmpfs": 256 * 2**20}
"""What a setting that nobody named comes to where its default is None."""


def within(settings: Settings, policy: HostPolicy) -> Settings:
    """Return the settings with what nobody asked for lowered to the policy; what somebody asked for, :func:`check` has refused."""
    lowered = {}
    for name, cap in _CAPPED:
        value, allowed = getattr(settings, name), getattr(policy, cap)
        usual = _USUAL.get(name) if value is None else value
        if allowed is not None and (usual is None or usual > allowed):
            lowered[name] = allowed
    return settings.model_copy(update=lowered) if lowered else settings


def check(settings: Settings, policy: HostPolicy, *, bind: bool = False) -> None:
    """Raise :class:`PolicyError` for the first setting that somebody named and the policy forbids."""
    for name, cap in _CAPPED:
        asked, allowed = getattr(settings, name), getattr(policy, cap)
        if name in settings.model_fields_set and asked is not None and allowed is not None and asked > allowed:
            flag = _flag(name)
            raise PolicyError(
                f"{flag} {asked} is over the host's policy of {allowed}", hint=f"use {flag} {allowed} or less"
            )
    listed = (
        ("--provider", settings.provider, policy.providers),
        ("--runtime", settings.runtime or DEFAULT_RUNTIME, policy.runtimes),
    )
    for flag, chosen, names in listed:
        if chosen is not None and names is not None and chosen not in names:
            raise PolicyError(
                f"{flag} {chosen} is not allowed by the host's policy", hint=f"allowed: {', '.join(names)}"
            )
    if bind and not policy.allow_bind:
        raise PolicyError(
            "--bind is not allowed by the host's policy", hint="leave --bind out: the directory is then staged"
        )
