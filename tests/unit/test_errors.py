"""The error tree is a closed set that scripts match on: kinds, exit codes, and the way over a process boundary."""

import pytest

from rlm_sandbox import errors

pytestmark = pytest.mark.unit

CODES = {
    "usage": 2, "input": 2, "prerequisite": 3, "engine": 3, "image": 3, "control": 3, "no_session": 4, "policy": 5,
    "budget": 6, "provider": 7, "protocol": 8, "timeout": 9, "busy": 9, "divergence": 10, "bundle": 11, "internal": 70,
    "interrupted": 130,
}  # fmt: skip


def tree(cls):
    return [cls, *(found for child in cls.__subclasses__() for found in tree(child))]


def test_kinds_are_unique_and_exit_codes_as_documented():
    own = [cls for cls in tree(errors.RLMError) if cls.__module__ == errors.__name__ and cls is not errors.RLMError]
    kinds = [cls.kind for cls in own]
    assert sorted(kinds) == sorted(set(kinds))
    assert {cls.kind: cls.exit_code for cls in own} == CODES


@pytest.mark.parametrize("kind", sorted(CODES))
def test_an_error_survives_its_way_through_json(kind):
    made = errors.from_kind(kind, "what happened", "what to do")
    assert made.to_json() == {
        "kind": kind,
        "message": "what happened",
        "hint": "what to do",
        "exit_code": CODES[kind],
    }
    assert str(made) == "what happened"


def test_an_unknown_kind_becomes_an_internal_error():
    assert isinstance(errors.from_kind("novel", "m"), errors.InternalError)


def test_the_drawing_in_the_docstring_names_every_class_and_code():
    for cls in tree(errors.RLMError):
        if cls.__module__ == errors.__name__ and cls is not errors.RLMError:
            line = next(line for line in errors.__doc__.splitlines() if f"-- {cls.__name__} " in line)
            assert line.split()[-1] or cls.kind in line
            assert f" {cls.kind} " in f"{line} "
