"""Answer questions over inputs too large for a model, with code that runs locked down and sub-LLM calls under a hard budget."""

from __future__ import annotations

TYPE_CHECKING = False  # as typing has it: importing that would cost every command 4 ms
if TYPE_CHECKING:
    from typing import Any

    from rlm_sandbox.api import AsyncSession, Session

__version__ = "0.1.0"
__all__ = ["AsyncSession", "Session", "__version__"]


def __getattr__(name: str) -> Any:
    """Import the API when it is used: the command line and the guest do without it."""
    if name in {"AsyncSession", "Session"}:
        from rlm_sandbox import api  # noqa: PLC0415 - see above

        return getattr(api, name)
    raise AttributeError(name)
