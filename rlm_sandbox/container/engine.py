"""A connection to one Docker engine, and what is known about it.

docker-py is synchronous: everything here blocks, and callers on an event loop go through ``asyncio.to_thread``. The data path of a
session does not pass through it (see :mod:`rlm_sandbox.container.attach`). The user's Docker configuration is read for nothing
but the context's address: its proxy settings, which can carry credentials, never reach a container.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import docker
import docker.context
import docker.errors
import docker.tls

from rlm_sandbox.container.failures import boundary
from rlm_sandbox.container.tunnel import Tunnel
from rlm_sandbox.errors import EngineError, RLMError

DEFAULT_HOST = "unix:///var/run/docker.sock"

TIMEOUT = 30.0
"""Seconds for one API call. Creating a container on a busy host takes up to a few; no call should take ten."""

SLOW_TIMEOUT = 900.0
"""Seconds for calls that move an image: 500 MB on a slow disk take minutes."""

MIN_API = (1, 41)
"""Engine 20.10, the oldest with private cgroup namespaces."""


@dataclass(frozen=True)
class Tls:
    """Files of a TCP engine's mutual TLS, as in ``DOCKER_CERT_PATH``."""

    ca: str
    cert: str
    key: str


@dataclass(frozen=True)
class EngineInfo:
    """Facts about an engine. ``cgroup`` is 1 or 2; ``local`` means that its paths are this process's paths."""

    version: str
    api: str
    cgroup: int
    rootless: bool
    seccomp: bool
    security_options: tuple[str, ...]
    runtimes: tuple[str, ...]
    default_runtime: str
    os: str
    arch: str
    name: str
    kernel: str
    cpus: int
    memory: int
    local: bool
    desktop: bool
    host: str

    @property
    def remapped(self) -> bool:
        """Whether the users in a container are others on the host, of which there are few."""
        return self.rootless or any("name=userns" in option for option in self.security_options)


class Engine:
    """An engine that answered. Thread-safe as far as docker-py is: calls share one connection pool."""

    def __init__(self, host: str, tls: Tls | None = None) -> None:
        self.host = host
        self.tls = tls
        self._tunnel = Tunnel(host) if host.startswith("ssh://") else None
        self.address = self._tunnel.host if self._tunnel else host
        """Where to connect: the end of the tunnel for an engine over ssh, else ``host`` itself."""
        self._info: EngineInfo | None = None
        self.api: Any = self._client(TIMEOUT)

    @classmethod
    def connect(cls, host: str | None = None, *, context: str | None = None, tls: Tls | None = None) -> Engine:
        """Connect to ``host`` (as in ``DOCKER_HOST``), else to ``context``, else to the current context.

        Raises:
            EngineError: nothing answers, or access is denied; the hint says which fix applies.
        """
        engine = cls(host or context_host(context), tls)
        api = tuple(int(part) for part in engine.api_version.split("."))
        if api < MIN_API:
            raise EngineError(
                f"the engine speaks API {engine.api_version}, older than {MIN_API[0]}.{MIN_API[1]}",
                hint="upgrade Docker to 20.10 or later",
            )
        return engine

    def _client(self, timeout: float) -> docker.APIClient:
        tls: docker.tls.TLSConfig | bool = False
        if self.tls is not None:
            tls = docker.tls.TLSConfig(client_cert=(self.tls.cert, self.tls.key), ca_cert=self.tls.ca, verify=True)
        with boundary("answer"):
            try:
                client = docker.APIClient(base_url=self.address, version="auto", timeout=int(timeout), tls=tls)
            except (KeyError, TypeError, ValueError) as exc:
                raise _no_engine(self.host) from exc
        client.trust_env = False
        return client

    @cached_property
    def slow(self) -> Any:
        """A second client for calls that take minutes."""
        return self._client(SLOW_TIMEOUT)

    @property
    def api_version(self) -> str:
        """The negotiated API version, as in URLs."""
        return str(self.api.api_version)

    def ping(self) -> None:
        """Raise :class:`EngineError` when the engine does not answer."""
        with boundary("answer"):
            self.api.ping()

    def alive(self) -> bool:
        """Tell whether the engine answers."""
        try:
            self.ping()
        except RLMError:
            return False
        return True

    def info(self, *, fresh: bool = False) -> EngineInfo:
        """Return the engine's facts, asked once unless ``fresh``."""
        if fresh or self._info is None:
            self._info = self._ask_info()
        return self._info

    def _ask_info(self) -> EngineInfo:
        with boundary("describe itself"):
            try:
                data: dict[str, Any] = dict(self.api.info())
            except (TypeError, ValueError) as exc:
                raise _no_engine(self.host) from exc
        options = tuple(str(item) for item in data.get("SecurityOptions") or ())
        return EngineInfo(
            version=str(data.get("ServerVersion", "")),
            api=self.api_version,
            cgroup=int(data.get("CgroupVersion") or 1),
            rootless=any("name=rootless" in item for item in options),
            seccomp=any("name=seccomp" in item for item in options),
            security_options=options,
            runtimes=tuple(sorted(data.get("Runtimes") or {})),
            default_runtime=str(data.get("DefaultRuntime", "")),
            os=str(data.get("OSType", "")),
            arch=str(data.get("Architecture", "")),
            name=str(data.get("OperatingSystem", "")),
            kernel=str(data.get("KernelVersion", "")),
            cpus=int(data.get("NCPU") or 1),
            memory=int(data.get("MemTotal") or 0),
            local=self._is_local(data),
            desktop="docker desktop" in str(data.get("OperatingSystem", "")).lower(),
            host=self.host,
        )

    def _is_local(self, data: dict[str, Any]) -> bool:
        """A Unix socket may lead into a virtual machine; the same kernel and host name means the same files."""
        return (
            self.host.startswith(("unix://", "http+unix://"))
            and data.get("KernelVersion") == platform.release()
            and data.get("Name") == platform.node()
        )

    def close(self) -> None:
        """Close pooled connections."""
        self.api.close()
        if "slow" in self.__dict__:
            self.slow.close()
        if self._tunnel is not None:
            self._tunnel.close()


def _no_engine(host: str) -> EngineError:
    return EngineError(f"what answers at {host} is no Docker engine", hint="check DOCKER_HOST or the Docker context")


def context_host(name: str | None) -> str:
    """Return the address of a Docker context, of the current one for ``None``."""
    try:
        context = (
            docker.context.ContextAPI.get_context(name) if name else docker.context.ContextAPI.get_current_context()
        )
    except (docker.errors.DockerException, OSError, ValueError, KeyError) as exc:
        raise EngineError(
            f"the Docker context {name or '(current)'} cannot be read", hint="run: docker context ls"
        ) from exc
    if context is None:
        if name:
            raise EngineError(f"there is no Docker context named {name}", hint="run: docker context ls")
        return DEFAULT_HOST
    host = str(context.Host or DEFAULT_HOST)
    return host.replace("http+unix://", "unix://", 1)
