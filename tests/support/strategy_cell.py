"""Runs a strategy's program as a cell would: the guest's real helpers over a real file, and a sub-model that is a function."""

from rlm_sandbox.guest import errors, helpers
from rlm_sandbox.strategies import load


class Finished(BaseException):
    """What ``FINAL`` ends a cell with."""


class Cell:
    """One run. ``answer(prompt)`` returns the sub-model's text or an ``RLMError``; ``limit`` is the session's call cap."""

    def __init__(self, path, *, answer=lambda prompt: "Something broke.", limit=100, str_max=1 << 26, index=None):
        self.prompts = []
        self.systems = set()
        self.answer = answer
        self.limit = limit
        self.final = None
        kind = "directory" if path.is_dir() else "file"
        given = {"kind": kind, "path": str(path), "index": index, "name": path.name}
        self.names = {
            "__name__": "cell",
            **{name: getattr(errors, name) for name in ("RLMError", "BudgetExceeded", "ProviderError", "BatchError")},
            **helpers.build(given, str_max=str_max),
            "FINAL": self._final,
            "budget": lambda: {"calls": len(self.prompts), "limit": self.limit},
            "llm_query_batch": self._batch,
        }

    def run(self, name, **parameters):
        return self.execute(load(name, **{"question": "Which incidents happened?", **parameters}))

    def execute(self, program):
        try:
            exec(compile(program, "strategy.py", "exec"), self.names)
        except Finished:
            return self.final
        raise AssertionError("the program ended without FINAL")

    def _final(self, answer):
        self.final = answer
        raise Finished

    def _batch(self, prompts, system=None, prefix=None, max_tokens=None, on_error="raise"):
        assert on_error == "return"
        self.systems.add(system)
        outcomes = []
        for prompt in prompts:
            if self.limit is not None and len(self.prompts) >= self.limit:
                outcomes.append(errors.BudgetExceeded("no calls left"))
                continue
            self.prompts.append(prompt)
            outcomes.append(self.answer(prompt))
        return outcomes
