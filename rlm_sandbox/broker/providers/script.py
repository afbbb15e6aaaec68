r"""Scripts for the ``scripted`` provider: pattern -> answer rules, in JSON or TOML.

Either a list of rules or ``{"rules": [...], "prices": {...}, "strict": false, "min_cacheable_tokens": null}``; in TOML, ``[[rules]]``
tables. The first rule whose patterns all match answers::

    {"match": "(?i)capital of (\\w+)",      regular expression, searched in the prompt; groups are \1 or \g<name> in the answer
     "system": "...", "prefix": "...", "model": "...",                                      further patterns, all optional
     "answer": "The capital of \\1",      a text; anything else is answered as JSON
     "latency_ms": 50,                    before the answer begins
     "duration_ms": 0,                    from its beginning to its end
     "times": 2,                          use the rule that many times, then skip it
     "usage": {"input_tokens": 10, "output_tokens": 5, "cache_read_tokens": 0, "cache_write_tokens": 0},
     "error": "overloaded"}               instead of an answer: a name of ERRORS, or
                                          {"code": "...", "billable": "no|unknown|yes", "retryable": true, "retry_after_s": 1}

Where answers are all there is to say, shorter: a mapping ``{"pattern": "answer"}``, pairs ``[["pattern", "answer"]]``, rules that say ``pattern``
and ``answer``, or, in a file that is neither JSON nor TOML, a line ``pattern -> answer`` for each.

``prices`` maps a model (``"*"`` is any) to USD per million tokens, as :mod:`rlm_sandbox.broker.pricing` reads them.
A script is written by the user and trusted as such; a mistake in it is a UsageError that names the rule.
"""

from __future__ import annotations

import json
import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rlm_sandbox.broker.types import ProviderFault, Usage
from rlm_sandbox.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from rlm_sandbox.broker.types import Call

SCRIPT_MAX = 16 * 1024 * 1024
"""Bytes. A rule for each of ten thousand recorded prompts fits; a wrong path to a big file is caught."""

ERRORS: dict[str, dict[str, Any]] = {
    "rate_limited": {"billable": "no", "retryable": True, "rate_limited": True, "status": 429},
    "overloaded": {"billable": "no", "retryable": True, "overloaded": True, "status": 529},
    "server_error": {"billable": "no", "retryable": True, "overloaded": True, "status": 500},
    "spend_limit": {"billable": "no", "status": 429},
    "bad_request": {"billable": "no", "status": 400},
    "context_length": {"billable": "no", "status": 400},
    "unreachable": {"billable": "no", "retryable": True},
    "connection_lost": {"billable": "unknown", "retryable": True},
    "timeout": {"billable": "unknown", "retryable": True},
    "bad_answer": {"billable": "unknown", "retryable": True},
    "bad_usage": {"billable": "unknown"},
    "refusal": {"billable": "yes"},
    "no_text": {"billable": "yes"},
}
"""The codes that adapters of real providers raise, with what each means."""

_ARROW = " -> "

_GROUP = re.compile(r"\\(\d)|\\g<(\w+)>")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What becomes of one call; ``answer=None`` is the default answer."""

    answer: str | None = None
    fault: Callable[[], ProviderFault] | None = None
    usage: Usage | None = None
    latency_s: float = 0.0
    duration_s: float = 0.0


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, arbitrary_types_allowed=True)


_Millis = Annotated[float, Field(ge=0, le=86_400_000, strict=False)]
_Count = Annotated[int, Field(ge=0)]


class _UsageShape(_Model):
    input_tokens: _Count
    output_tokens: _Count
    cache_read_tokens: _Count = 0
    cache_write_tokens: _Count = 0


class _ErrorShape(_Model):
    code: str
    message: str = ""
    billable: Literal["no", "unknown", "yes"] | None = None
    retryable: bool | None = None
    rate_limited: bool | None = None
    overloaded: bool | None = None
    retry_after_s: Annotated[float, Field(ge=0, strict=False)] | None = None
    status: int | None = None


class Rule(_Model):
    """One rule, as written."""

    match: str = ""
    system: str | None = None
    prefix: str | None = None
    model: str | None = None
    answer: Any = None
    error: str | _ErrorShape | None = None
    usage: _UsageShape | None = None
    latency_ms: _Millis = 0.0
    duration_ms: _Millis = 0.0
    times: Annotated[int, Field(ge=1)] | None = None


class _Document(_Model):
    rules: list[Rule] = []
    prices: dict[str, dict[str, Any]] = {}
    strict: bool = False
    min_cacheable_tokens: _Count | None = None


@dataclass
class _Compiled:
    rule: Rule
    patterns: list[tuple[str, re.Pattern[str]]]
    left: int | None


@dataclass
class Script:
    """Rules ready for use. ``outcome`` counts down ``times``, so a script belongs to one provider instance."""

    rules: list[_Compiled] = field(default_factory=list)
    prices: dict[str, dict[str, Any]] = field(default_factory=dict)
    strict: bool = False
    min_cacheable_tokens: int | None = None

    def outcome(self, call: Call) -> Outcome | None:
        """Return what the first matching rule says, or None."""
        for entry in self.rules:
            if entry.left == 0:
                continue
            found = [pattern.search(getattr(call, name) or "") for name, pattern in entry.patterns]
            if all(found):
                if entry.left is not None:
                    entry.left -= 1
                return _outcome(entry.rule, found[0], call)
        return None


def load(path: str) -> Script:
    """Read a script file; ``.toml`` is TOML, anything else JSON. Raises UsageError."""
    try:
        if Path(path).exists() and not Path(path).is_file():
            raise UsageError(f"the script {path} is no file", hint="check RLM_SCRIPT")  # reading a FIFO would not end
        with Path(path).open("rb") as file:
            data = file.read(SCRIPT_MAX + 1)
        if len(data) > SCRIPT_MAX:
            raise UsageError(f"the script {path} is larger than {SCRIPT_MAX} bytes")
        text = data.decode()
        parsed = tomllib.loads(text) if path.endswith(".toml") else _lines(text) or json.loads(text)
    except OSError as error:
        raise UsageError(f"the script {path} cannot be read: {error.strerror}", hint="check RLM_SCRIPT") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"the script {path} is not valid: {error}", hint="see the rules of the scripted provider"
        ) from error
    return parse(parsed, where=path)


def _lines(text: str) -> list[Any] | None:
    """Return the pairs of a text of ``pattern -> answer`` lines, or None if it is none."""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    pairs = [line.partition(_ARROW) for line in lines]
    if not pairs or text.lstrip()[:1] in {"{", "["} or not all(arrow for _, arrow, _ in pairs):
        return None
    return [[pattern.strip(), answer.strip()] for pattern, _, answer in pairs]


def _whole(document: Any) -> Any:
    """Return the long form of a script that is written in a short one."""
    if isinstance(document, dict) and document and all(isinstance(value, str) for value in document.values()):
        document = [list(pair) for pair in document.items()]
    if isinstance(document, list):
        document = {"rules": document}
    if isinstance(document, dict) and isinstance(document.get("rules"), list):
        return {**document, "rules": [_whole_rule(rule) for rule in document["rules"]]}
    return document


def _whole_rule(rule: Any) -> Any:
    if isinstance(rule, list) and len(rule) == 2:  # noqa: PLR2004 - pattern and answer
        return {"match": rule[0], "answer": rule[1]}
    if isinstance(rule, dict) and "pattern" in rule and "match" not in rule:
        return {("match" if name == "pattern" else name): value for name, value in rule.items()}
    return rule


def parse(document: Any, *, where: str = "script") -> Script:
    """Check and compile a script given as data. Raises UsageError that names the rule at fault."""
    try:
        shape = _Document.model_validate(_whole(document))
    except ValidationError as error:
        detail = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in detail["loc"])
        raise UsageError(f"the script {where} is not valid at {place}: {detail['msg']}") from error
    compiled = [_compile(rule, number, where) for number, rule in enumerate(shape.rules)]
    return Script(compiled, shape.prices, shape.strict, shape.min_cacheable_tokens)


def _compile(rule: Rule, number: int, where: str) -> _Compiled:
    wanted = [("prompt", rule.match), ("system", rule.system), ("prefix", rule.prefix), ("model", rule.model)]
    try:
        patterns = [(name, re.compile(text)) for name, text in wanted if text is not None]
    except re.error as error:
        raise UsageError(f"rule {number} of the script {where} has a bad pattern: {error}") from error
    if isinstance(rule.error, str) and rule.error not in ERRORS:
        raise UsageError(
            f"rule {number} of the script {where}: no error {rule.error!r}", hint=f"one of: {', '.join(ERRORS)}"
        )
    return _Compiled(rule, patterns, rule.times)


def _outcome(rule: Rule, found: re.Match[str] | None, call: Call) -> Outcome:
    usage = Usage(**rule.usage.model_dump()) if rule.usage else None
    latency, duration = rule.latency_ms / 1000, rule.duration_ms / 1000
    if rule.error is not None:
        return Outcome(fault=lambda: _fault(rule, usage, call), latency_s=latency, duration_s=duration)
    if rule.answer is None:
        answer = None
    elif isinstance(rule.answer, str):
        answer = _GROUP.sub(lambda place: _group(found, place), rule.answer)
    else:
        answer = json.dumps(rule.answer, ensure_ascii=False)
    return Outcome(answer=answer, usage=usage, latency_s=latency, duration_s=duration)


def _group(found: re.Match[str] | None, place: re.Match[str]) -> str:
    name = place[2] if place[2] is not None else int(place[1])
    try:
        return (found[name] or "") if found else ""
    except IndexError:
        return place[0]


def _fault(rule: Rule, usage: Usage | None, call: Call) -> ProviderFault:
    shape = rule.error if isinstance(rule.error, _ErrorShape) else _ErrorShape(code=str(rule.error))
    settings = dict(ERRORS.get(shape.code, {"billable": "unknown"}))
    settings |= shape.model_dump(exclude={"code", "message"}, exclude_none=True)
    if settings["billable"] == "yes" and usage is None:
        usage = Usage(input_tokens=len(call.prompt.encode()) // 4 + 1, output_tokens=1)
    return ProviderFault(shape.message or f"scripted {shape.code}", code=shape.code, usage=usage, **settings)
