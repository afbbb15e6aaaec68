"""What the guest is told: the agent's limits in the hello, the kernel's settings in the go."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

from rlm_sandbox.session.asks import WINDOW
from rlm_sandbox.wire import PROTOCOL_VERSION
from rlm_sandbox.wire.messages import Hello

if TYPE_CHECKING:
    from rlm_sandbox.container.admission import Admitted
    from rlm_sandbox.container.input_sample import InputSample
    from rlm_sandbox.session.records import Start
    from rlm_sandbox.settings.model import HostPolicy, Settings

GRACE_MS = 3000
"""How long an interrupted cell may take to unwind before its interpreter is killed: several hundred times what unwinding costs."""

LIFETIME_MS = 7 * 86400 * 1000
"""A week: the longest that a container lives if every other limit was off and the host forgot it."""


def hello(session: str, settings: Settings, sample: InputSample | None = None) -> Hello:
    """Return the first message of the channel; ``sample`` is what the guest is to hash of the input."""
    lifetime = (
        LIFETIME_MS if settings.time_limit is None else min(LIFETIME_MS, round(settings.time_limit * 1000) + 60_000)
    )
    return Hello(
        protocol=PROTOCOL_VERSION,
        session=session,
        grace_ms=GRACE_MS,
        lifetime_ms=lifetime,
        output_max=settings.output_max,
        sample=[] if sample is None else sample.numbers,
    )


def go_payload(
    session: str, settings: Settings, admitted: Admitted, policy: HostPolicy, first: Start | None = None
) -> bytes:
    """Return the kernel's settings as JSON (see ``guest/config.py``). A reopened session keeps the clock of its ``first`` start."""
    # A str needs up to four bytes a character and is copied by careless code, so the plain-str limit follows the memory.
    str_max = min(settings.context_str_max, settings.memory // 16)
    return json.dumps(
        {
            "session": session,
            "input": admitted.config,
            "str_max": str_max,
            "concurrency": settings.concurrency,
            "window": WINDOW,
            "max_prompt_bytes": policy.max_prompt_bytes,
            "seed": 0,
            "clock": settings.clock,
            "epoch": int(time.time()) if first is None else first.go.get("epoch", int(time.time())),
        }
    ).encode()
