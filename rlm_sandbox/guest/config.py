"""The kernel's settings, parsed from the payload of ``Go``. The agent passes the bytes on without reading them."""

from __future__ import annotations

import json
from typing import Any


class Config:
    """What a kernel knows of its session. Missing keys get defaults, so that an older host can start a newer image.

    ``window`` is how many asks may be outstanding at once, ``max_prompt_bytes`` the size over which a prompt is refused
    here already (the host enforces it again), ``input`` what :func:`rlm_sandbox.guest.helpers.build` is given.
    """

    def __init__(self, raw: dict[str, Any]) -> None:
        self.session = str(raw.get("session", ""))
        self.input: dict[str, Any] = raw.get("input") or {}
        self.str_max = int(raw.get("str_max", 64 * 1024 * 1024))
        self.concurrency = int(raw.get("concurrency", 20))
        self.window = max(1, int(raw.get("window", 256)))
        self.max_prompt_bytes = int(raw.get("max_prompt_bytes", 16 * 1024 * 1024))
        self.seed = int(raw.get("seed", 0))
        self.clock = str(raw.get("clock", "real"))
        self.epoch = int(raw.get("epoch", 0))


def parse(payload: bytes) -> Config:
    """Parse the payload of ``Go``; raises ``ValueError`` when it is not a JSON object."""
    raw = json.loads(payload.decode("utf-8")) if payload else {}
    if not isinstance(raw, dict):
        msg = "the settings of a kernel are a JSON object"
        raise ValueError(msg)  # noqa: TRY004 - malformed data, not a wrong argument
    return Config(raw)
