"""The kernel's pieces that need no process: errors, settings, what is said of variables and exceptions."""

import collections
import json
import sys
import types
import weakref
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlm_sandbox.guest import agent, api, cells, config, errors, helpers, kernel, notes, spawn, variables
from rlm_sandbox.guest.text import Text
from rlm_sandbox.wire import messages as m

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("kind", "cls"),
    [
        ("budget", errors.BudgetExceeded),
        ("policy", errors.PolicyError),
        ("provider", errors.ProviderError),
        ("timeout", errors.DeadlineError),
        ("internal", errors.HostError),
    ],
)
def test_each_kind_of_answer_has_its_error(kind, cls):
    error = errors.from_answer(kind, "overloaded", "what\nhint one\nhint two")
    assert type(error) is cls
    assert (error.message, error.hint) == ("what", "hint one\nhint two")
    assert "what" in str(error)
    assert kind in m.KINDS


def test_no_kind_of_answer_is_without_an_error():
    assert {kind for kind in m.KINDS if kind != "ok"} == {"budget", "policy", "provider", "timeout", "internal"}
    assert str(errors.from_answer("provider", "", "")) == "provider"
    assert errors.from_answer("provider", "", "").code == "failed"
    assert errors.from_answer("internal", "prerequisite", "no ledger").code == "prerequisite"


def test_settings_have_defaults_and_must_be_an_object():
    assert config.parse(b"").window == 256
    parsed = config.parse(json.dumps({"seed": 3, "window": 0, "unknown": 1, "input": None}).encode())
    assert (parsed.seed, parsed.window, parsed.input) == (3, 1, {})
    for wrong in (b"[]", b"5", b"x", b"\xff"):
        with pytest.raises(ValueError):  # noqa: PT011 - which of them is json's affair
            config.parse(wrong)


anything = st.text() | st.text(st.sampled_from('\ud800\udfff"\\\x00\x1f\U0001f600ä'), max_size=300)


@settings(deadline=None, max_examples=40, suppress_health_check=list(HealthCheck))
@given(st.lists(st.tuples(anything, anything), max_size=60), st.lists(anything, max_size=20))
def test_whatever_a_program_is_called_its_result_fits_the_wire(named, warned):
    names = {}
    for name, type_name in named:
        cls = type("T", (), {})
        with suppress(UnicodeEncodeError):
            cls.__name__ = type_name.replace("\0", "")
        names[name] = cls()
    for text in warned:
        notes.add(text)
    entries, total = variables.listing(names, {})
    result = m.Result(
        cell=1, status="ok", variables=entries, variables_total=total, warnings=kernel._clipped_warnings()
    )
    check = m._field_checks(m.Result)
    assert result.encode()
    assert all(check[name](getattr(result, name)) for name in check)


def test_the_widest_result_fits_the_wire():
    names = {f"{i:03}" + "\U0001f600" * 200: type("\U0001f600" * 100, (), {})() for i in range(300)}
    for number in range(30):
        notes.add(f"{number}" + "\U0001f600" * 600)
    entries, total = variables.listing(names, {})
    warned = kernel._clipped_warnings()
    assert m.Result(cell=1, status="ok", variables=entries, variables_total=total, warnings=warned).encode()
    assert len(entries) > 20
    assert warned
    assert total == 300


@given(anything, anything, st.integers(0, 2**53 - 1) | st.none())
def test_an_entry_takes_the_room_of_its_json(name, type_name, size):
    entry = {"name": variables.clip(name, 128), "type": variables.clip(type_name, 64), "len": size}
    told = json.dumps(entry, ensure_ascii=False)
    assert len(told.encode()) <= variables.room_of(entry) <= len(told.encode()) + 2


def test_what_was_given_is_no_variable_until_it_is_another():
    given_names = {"grep": len, "context": "text"}
    assert variables.listing({"grep": len, "context": "text", "__x": 1, 5: 6}, given_names) == ([], 0)
    assert [entry["name"] for entry in variables.listing({"grep": print, "context": "text"}, given_names)[0]] == [
        "grep"
    ]


def test_a_length_that_a_cell_computes_is_not_asked_for():
    class Slow:
        def __len__(self):
            raise SystemExit("asked")

    class Named(dict):
        """A length that is C's own."""

    slow = Slow()
    made = {
        "slow": slow, "behind": types.MappingProxyType(collections.UserDict()), "weak": weakref.proxy(slow),
        "named": Named(a=1), "tuple": (1, 2), "bytes": b"abc", "deque": collections.deque([1]), "class": Slow,
    }  # fmt: skip
    lengths = {entry["name"]: entry["len"] for entry in variables.listing(made, {})[0]}
    assert lengths == {
        "slow": None, "behind": None, "weak": None, "named": 1, "tuple": 2, "bytes": 3, "deque": 1, "class": None,
    }  # fmt: skip


def test_what_helpers_give_is_a_final_answer_of_its_items():
    text = Text.from_bytes(b"one two\nthree\n", str_max=1000)
    assert api._final_text(text) == "one two\nthree\n"
    assert json.loads(api._final_text({"words": text.split()})) == {"words": ["one", "two", "three"]}
    found = helpers.Helpers("one two\nthree\n", [], {}, 1000)
    assert json.loads(api._final_text(found.grep("o"))) == ["one two"]
    assert json.loads(api._final_text(found.chunks(8))) == ["one two\n", "three\n"]
    assert api._final_text({1}) == "{1}"


def test_notes_are_told_once_and_in_order():
    notes.take()
    notes.add("a")
    notes.add("b")
    notes.add("a")
    assert notes.take() == ["a", "b"]
    assert notes.take() == []


@given(st.text())
def test_a_clipped_text_is_utf8_and_bounded(text):
    raw = cells.clip_middle(text)
    raw.decode("utf-8")
    assert len(raw) <= cells.ERROR_MAX + 100


def test_clipping_keeps_both_ends_and_cuts_no_character():
    raw = cells.clip_middle("ä" * 100_000 + "end")
    assert raw.decode().startswith("ääää")
    assert raw.decode().endswith("end")


def test_own_frames_are_hidden_through_causes_contexts_and_groups():
    names: dict[str, object] = {"config": config}
    source = (
        "try:\n    config.parse(b'[]')\nexcept ValueError as exc:\n"
        "    try:\n        raise ExceptionGroup('many', [exc])\n    except* ValueError as group:\n        raise KeyError from group"
    )
    status, error = cells.run(1, source.encode(), names)
    assert status == "error"
    assert "the settings of a kernel are a JSON object" in error
    assert error.count("config.parse(b'[]')") >= 1
    assert "guest" not in error


def test_a_loop_of_causes_is_described():
    status, error = cells.run(
        1, b"a = ValueError('a')\nb = ValueError('b')\na.__cause__ = b\nb.__cause__ = a\nraise a", {}
    )
    assert status == "error"
    assert "ValueError: a" in error


class Died:
    def __init__(self, status, oom_kills=0):
        self.status, self.oom_kills = status, oom_kills


@pytest.mark.parametrize(
    ("status", "overdue", "kills", "cause"),
    [
        (9, False, 1, ("memory", 9)),
        (9, False, 0, ("signal", 9)),
        (9, True, 0, ("unresponsive", 9)),
        (9, True, 1, ("unresponsive", 9)),
        (11, False, 1, ("signal", 11)),
        (11 | 0x80, True, 0, ("signal", 11)),
        (4 << 8, False, 1, ("exit", 4)),
        (0, True, 0, ("exit", 0)),
    ],
)
def test_why_a_kernel_ended(monkeypatch, status, overdue, kills, cause):
    monkeypatch.setattr(agent.linux, "oom_kills", lambda: kills)
    one = agent.Agent(0, 1, 2)
    one._overdue = overdue
    assert one._cause(Died(status)) == cause


def test_the_guest_loads_nothing_heavy_before_its_report():
    import subprocess  # noqa: PLC0415

    code = "import sys; import rlm_sandbox.guest.agent, rlm_sandbox.guest.report; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True, cwd=spawn_root()
    )
    heavy = {"asyncio", "multiprocessing", "subprocess", "traceback", "random", "pathlib", "rlm_sandbox.guest.kernel"}
    assert not heavy & set(loaded.stdout.split())


def spawn_root():
    return spawn.__file__.rsplit("/rlm_sandbox/", 1)[0]
