"""The functions that a cell calls. Arguments are checked here, before anything leaves; failures are exceptions.

A text with lone surrogates (half a character, as some decoders leave them) is sent with ``?`` in their place: refusing it
would cost a batch for one broken byte of the input, and no provider takes it as it is.
"""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from rlm_sandbox.guest import variables
from rlm_sandbox.guest.channel import Call, Shared
from rlm_sandbox.guest.errors import BatchError, BudgetExceeded, PolicyError, ProviderError, RLMError
from rlm_sandbox.guest.helpers import LAZY
from rlm_sandbox.guest.text import Text
from rlm_sandbox.wire.frames import PAYLOAD_MAX

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rlm_sandbox.guest.kernel import Kernel

_INT_MAX = 2**31
_WIDTH_MAX = 1_000_000


class Finished(BaseException):
    """Ends a cell that gave its final answer. Not an ``Exception``, so that ``except Exception`` lets it pass."""


class _Link:
    """The kernel that the functions below speak through; they are module functions so that pools can name them."""

    kernel: Kernel | None = None


def connect(kernel: Kernel) -> None:
    """Make ``kernel`` the one that answers; once per process."""
    _Link.kernel = kernel


def _kernel() -> Kernel:
    if _Link.kernel is None:
        msg = "this function works inside a session only"
        raise RLMError(msg)
    return _Link.kernel


def llm_query(
    prompt: str,
    system: str | None = None,
    prefix: str | None = None,
    model: str | None = None,
    max_tokens: int | None = None,
    cache: bool = True,
    thinking_budget: int | None = None,
    schema: dict[str, Any] | str | None = None,
    sample: int = 0,
) -> Any:
    """Ask the sub-model one question and return its answer.

    ``prefix`` is text before the prompt that many calls share (the provider's prompt cache makes it cheap); ``schema`` is a JSON
    schema (dict or JSON text), and the answer is then the parsed value; ``sample`` keeps repeated questions apart.
    Raises ``BudgetExceeded``, ``PolicyError`` or ``ProviderError``; never returns an error as text.
    """
    fields, shared = _common(system, prefix, model, max_tokens, cache, thinking_budget, schema, sample)
    call = Call({**fields, "size": 1, "width": 0}, _prompt(prompt, 0), shared)
    outcome = _parsed(_kernel().channel.ask([call])[0], schema)
    if isinstance(outcome, RLMError):
        raise outcome
    return outcome


def llm_query_batch(
    prompts: Iterable[str],
    system: str | None = None,
    prefix: str | None = None,
    model: str | None = None,
    max_tokens: int | None = None,
    cache: bool = True,
    thinking_budget: int | None = None,
    schema: dict[str, Any] | str | None = None,
    sample: int = 0,
    concurrency: int | None = None,
    on_error: str = "raise",
) -> list[Any]:
    """Ask many questions side by side and return the answers in the order of ``prompts``.

    ``concurrency`` narrows the width below the session's. With ``on_error="return"`` a failed item is its ``RLMError``, in place.
    With ``"raise"`` all items are settled first, then ``BatchError`` is raised with everything in ``.results``; when money
    was the only reason, it is ``BudgetExceeded``, and when the policy let none of them go, ``PolicyError``, with ``.results`` too.
    """
    if on_error not in ("raise", "return"):
        msg = f'on_error is "raise" or "return", not {on_error!r}'
        raise ValueError(msg)
    width = _count("concurrency", concurrency, 1, _WIDTH_MAX) or 0
    if isinstance(prompts, (str, bytes)):
        msg = "prompts is a list of strings, not one string"
        raise TypeError(msg)
    fields, shared = _common(system, prefix, model, max_tokens, cache, thinking_budget, schema, sample)
    payloads = [_prompt(prompt, index) for index, prompt in enumerate(prompts)]
    if not payloads:
        return []
    fields = {**fields, "size": len(payloads), "width": width}
    outcomes = _kernel().channel.ask([Call(fields, payload, shared) for payload in payloads])
    results = [_parsed(outcome, schema) for outcome in outcomes]
    if on_error == "raise":
        _raise_failures(results)
    return results


llm_query_batched = llm_query_batch


def _raise_failures(results: list[Any]) -> None:
    failed = [result for result in results if isinstance(result, RLMError)]
    if not failed:
        return
    first = failed[0]
    same = all(type(error) is type(first) for error in failed)
    if same and (isinstance(first, BudgetExceeded) or (isinstance(first, PolicyError) and len(failed) == len(results))):
        refused = type(first)(first.message, first.hint)
        refused.results = results
        raise refused
    text = f"{len(failed)} of {len(results)} calls failed; the first: {failed[0]}. The answers are in .results"
    raise BatchError(text, results)


def budget() -> dict[str, Any]:
    """Return what the session has spent and may spend. Costs nothing."""
    outcome = _kernel().channel.ask([Call(None)])[0]
    if isinstance(outcome, RLMError):
        raise outcome
    value: dict[str, Any] = json.loads(outcome)
    return value


def FINAL(answer: object) -> None:  # noqa: N802 - the documented name
    """Give the final answer and end the cell. A value that is not a string becomes JSON if it can, else ``str()`` of it."""
    _kernel().finish("direct", None, _final_text(answer))
    _leave_threads_quietly()
    raise Finished


def FINAL_VAR(name: str) -> None:  # noqa: N802 - the documented name
    """Give the variable called ``name`` as the final answer and end the cell. It must exist and not be ``None``."""
    if not isinstance(name, str):
        msg = f"FINAL_VAR takes the name of a variable as a string, not {type(name).__name__}"
        raise TypeError(msg)
    name = str.__str__(name).strip().strip("\"'")
    names = _kernel().names
    if name not in names:
        made = ", ".join(entry["name"] for entry in variables.listing(names, _kernel().given)[0][-10:])
        raise RLMError(f"FINAL_VAR: there is no variable {name[:200]!r}", f"the latest are: {made or 'none'}")
    if names[name] is None:
        raise RLMError(f"FINAL_VAR: the variable {name[:200]!r} is None", "assign the answer to it first")
    _kernel().finish("var", name, _final_text(names[name]))
    _leave_threads_quietly()
    raise Finished


def _leave_threads_quietly() -> None:
    """Have a thread that gave the final answer end without a traceback, unless the cell says itself what becomes of its threads' exceptions."""
    threading: Any = sys.modules.get("threading")
    if threading is not None and threading.excepthook is threading.__excepthook__:
        threading.excepthook = _thread_ended


def _thread_ended(args: Any) -> None:
    if args.exc_type is not Finished:
        sys.modules["threading"].__excepthook__(args)


def SHOW_VARS() -> str:  # noqa: N802 - the documented name
    """Print the variables that cells made, as a table, and return the table."""
    entries, total = variables.listing(_kernel().names, _kernel().given)
    lines = [f"{e['name']}  {e['type']}" + ("" if e["len"] is None else f"  len {e['len']}") for e in entries]
    if total > len(entries):
        lines.insert(0, f"({total - len(entries)} more)")
    table = "\n".join(lines) or "(no variables)"
    print(table)  # noqa: T201 - printing is what it is for
    return table


def _final_text(answer: object) -> str:
    if isinstance(answer, str):
        return str.__str__(answer)
    if isinstance(answer, Text):
        return str(answer)
    with suppress(TypeError, ValueError, RecursionError):
        return json.dumps(answer, ensure_ascii=False, allow_nan=False, default=_listed)
    return str(answer)


def _listed(value: object) -> object:
    """Return what a helper gave as JSON can have it: the lines of ``grep``, chunks and split texts as a list."""
    if isinstance(value, Text):
        return str(value)
    if isinstance(value, LAZY):
        return list(value)
    raise TypeError


def _common(
    system: str | None,
    prefix: str | None,
    model: str | None,
    max_tokens: int | None,
    cache: bool,
    thinking_budget: int | None,
    schema: dict[str, Any] | str | None,
    sample: int,
) -> tuple[dict[str, Any], dict[str, Shared]]:
    fields = {
        "model": _model(model),
        "max_tokens": _count("max_tokens", max_tokens, 1, _INT_MAX),
        "thinking_budget": _count("thinking_budget", thinking_budget, 1, _INT_MAX),
        "cache": bool(cache),
        "sample": _count("sample", sample, 0, _INT_MAX) or 0,
    }
    texts = {"system": _text("system", system), "prefix": _text("prefix", prefix), "schema": _schema(schema)}
    return fields, {name: Shared(payload) for name, payload in texts.items() if payload is not None}


def _count(name: str, value: int | None, low: int, high: int) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not hasattr(type(value), "__index__"):
        msg = f"{name} is a whole number, not {type(value).__name__}"
        raise TypeError(msg)
    number = value.__index__()
    if not low <= number <= high:
        msg = f"{name} is between {low} and {high}, not {number}"
        raise ValueError(msg)
    return number


def _model(model: str | None) -> str | None:
    if model is None:
        return None
    if not isinstance(model, str):
        msg = f"model is a name, not {type(model).__name__}"
        raise TypeError(msg)
    name = str.__str__(model)
    if not name.isprintable() or not 0 < len(name) <= 256:  # noqa: PLR2004 - the wire's limit of a name
        raise PolicyError("this is not the name of a model", "leave model out to use the session's own")
    return name


def _text(name: str, value: object) -> bytes | None:
    if value is None:
        return None
    if not isinstance(value, str):
        msg = f"{name} is a string, not {type(value).__name__}"
        raise TypeError(msg)
    return _sized(name, str.encode(value, "utf-8", "replace"))


def _prompt(prompt: object, index: int) -> bytes:
    if not isinstance(prompt, str):
        msg = f"prompt {index} is a string, not {type(prompt).__name__}; use str() or a slice of the text"
        raise TypeError(msg)
    return _sized("prompt", str.encode(prompt, "utf-8", "replace"))


def _sized(name: str, raw: bytes) -> bytes:
    limit = min(PAYLOAD_MAX, _kernel().config.max_prompt_bytes)
    if len(raw) > limit:
        raise PolicyError(f"the {name} has {len(raw)} bytes, the limit is {limit}", "send it in pieces: see chunks()")
    return raw


def _schema(schema: object) -> bytes | None:
    if schema is None:
        return None
    value = schema
    if isinstance(schema, str):
        try:
            value = json.loads(schema)
        except (ValueError, RecursionError) as exc:
            msg = f"schema is not JSON: {exc}"
            raise ValueError(msg) from None
    if not isinstance(value, dict):
        msg = f"schema is a JSON object (a dict, or its JSON text), not {type(value).__name__}"
        raise TypeError(msg)
    return _sized("schema", json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace"))


def _parsed(outcome: str | RLMError, schema: object) -> Any:
    if schema is None or isinstance(outcome, RLMError):
        return outcome
    try:
        return json.loads(outcome)
    except (ValueError, RecursionError):
        return ProviderError("the answer is not the JSON that the schema asks for", code="bad_json")
