# The names that a cell finds without importing them, typed, so that the strategies can be checked. At run time there is no
# such module.

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NoReturn, TypedDict, overload

class _File(TypedDict):
    path: str
    start: int
    end: int
    chars: int

class RLMError(Exception):
    message: str
    hint: str

class BudgetExceeded(RLMError):  # noqa: N818
    results: list[str | RLMError] | None

context: str
context_files: Sequence[_File]
files: Mapping[str, str]

QUESTION: str
MAX_CALLS: int
PIECE_CHARS: int

def llm_query(
    prompt: str, system: str | None = None, prefix: str | None = None, max_tokens: int | None = None
) -> str: ...
@overload
def llm_query_batch(
    prompts: Iterable[str],
    system: str | None = None,
    prefix: str | None = None,
    max_tokens: int | None = None,
    *,
    on_error: Literal["return"],
) -> list[str | RLMError]: ...
@overload
def llm_query_batch(
    prompts: Iterable[str], system: str | None = None, prefix: str | None = None, max_tokens: int | None = None
) -> list[str]: ...
def budget() -> dict[str, Any]: ...
def FINAL(answer: object) -> NoReturn: ...  # noqa: N802
