"""The names that a cell finds before it made any: the context and its helpers, the calls, the errors.

They live in the ``__main__`` module, as names that cells make do: functions of a cell can then be pickled by
reference, which process pools need.
"""

from __future__ import annotations

import builtins
import sys
import types
from typing import TYPE_CHECKING, Any

from rlm_sandbox.guest import api, errors, helpers, notes

if TYPE_CHECKING:
    from rlm_sandbox.guest.config import Config

# Characters that a slice, a chunk or a line of a lazy text may have and still be a ``str``, however little ``context`` itself
# may be to be one. A sixteenth of the smallest container's memory is more.
PIECE_MAX = 1024 * 1024

API = ("llm_query", "llm_query_batch", "llm_query_batched", "budget", "FINAL", "FINAL_VAR", "SHOW_VARS")
ERRORS = (
    "RLMError",
    "BudgetExceeded",
    "ProviderError",
    "PolicyError",
    "DeadlineError",
    "HostError",
    "BatchError",
    "InputChanged",
    "TooLarge",
    "Truncated",
)


def build(config: Config) -> types.ModuleType:
    """Return a fresh ``__main__`` with every documented name in it, registered in ``sys.modules``."""
    module = types.ModuleType("__main__")
    names: dict[str, Any] = module.__dict__
    names["__builtins__"] = builtins
    given = {name: getattr(api, name) for name in API} | {name: getattr(errors, name) for name in ERRORS}
    names.update(given)
    sys.modules["rlm_helper"] = _importable("rlm_helper", given)
    if config.input:
        names.update(helpers.build(config.input, str_max=config.str_max, piece_max=PIECE_MAX))
    sys.modules["__main__"] = module
    return module


def _importable(name: str, given: dict[str, Any]) -> types.ModuleType:
    """Return the calls and errors as a module: rlm-skill's cells import them to catch ``rlm_helper.BudgetExceeded``, or in a module of their own."""
    module = types.ModuleType(name, "What a cell finds by itself: the calls and their errors.")
    module.__dict__.update(given, __all__=list(given))
    return module


def note_changes() -> None:
    """Have the next result say what changed about the input while the session read it."""
    for change in helpers.warnings():
        notes.add(change)
