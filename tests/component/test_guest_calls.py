"""Sub-calls and final answers from real cells, answered by the test as the host would."""

import json

import pytest

from rlm_sandbox.wire import messages as m
from tests.support.guest_driver import Guest, answer_upper

pytestmark = pytest.mark.component


@pytest.fixture
def guest():
    with Guest(settings={"window": 32, "max_prompt_bytes": 1000}) as fresh:
        yield fresh


def asked(outcome, kind=m.Ask):
    return [message for message in outcome.messages if isinstance(message, kind)]


def refuse(kind, text, code="", only=lambda payload: True):
    def on_message(guest, message):
        if isinstance(message, m.Ask) and only(message.payload):
            guest.send(m.Answer(id=message.id, kind=kind, code=code, cached=False, payload=text.encode()))
        else:
            answer_upper(guest, message)

    return on_message


def test_a_call_carries_what_the_cell_said_and_returns_the_answer(guest):
    got = guest.run(
        "print(llm_query('q', system='sys', prefix='pre', model='m-1', max_tokens=5, cache=False, thinking_budget=9, sample=2))"
    )
    assert got.text == "Q\n"
    (ask,) = asked(got)
    shared = {share.id: share.payload for share in asked(got, m.Share)}
    assert (shared[ask.system], shared[ask.prefix], ask.schema) == (b"sys", b"pre", None)
    assert (ask.payload, ask.model, ask.max_tokens, ask.cache, ask.thinking_budget, ask.sample) == (
        b"q",
        "m-1",
        5,
        False,
        9,
        2,
    )
    assert (ask.size, ask.width, ask.ordinal) == (1, 0, 0)
    assert {unshare.id for unshare in asked(got, m.Unshare)} == set(shared)


def test_a_schema_goes_out_as_json_and_comes_back_as_a_value(guest):
    guest.on_message = refuse("ok", '{"n": 3}')
    got = guest.run(
        "a = llm_query('q', schema={'type': 'object'})\nb = llm_query_batch(['q'], schema='{\"type\": \"object\"}')\nprint(a, b)"
    )
    assert got.text == "{'n': 3} [{'n': 3}]\n"
    assert [json.loads(share.payload) for share in asked(got, m.Share)] == [{"type": "object"}] * 2


def test_an_answer_that_is_not_json_under_a_schema_is_an_error(guest):
    got = guest.run("try:\n    llm_query('q', schema={})\nexcept ProviderError as e:\n    print(e.code)")
    assert got.text == "bad_json\n"


def test_a_batch_keeps_order_shares_texts_once_and_takes_a_block_of_ordinals(guest):
    got = guest.run(
        "llm_query('first')\nprint(llm_query_batch((f'p{i}' for i in range(100)), prefix='long', concurrency=7) == "
        "[f'P{i}' for i in range(100)])\nllm_query('last')"
    )
    assert got.text == "True\n"
    asks = asked(got)
    assert [ask.ordinal for ask in asks] == list(range(102))
    batch = asks[1:-1]
    assert len({ask.group for ask in batch}) == 1
    assert {(ask.size, ask.width) for ask in batch} == {(100, 7)}
    assert len(asked(got, m.Share)) == len(asked(got, m.Unshare)) == 1
    ids = [message.id for message in got.messages if isinstance(message, (m.Ask, m.Share))]
    assert ids == sorted(set(ids))


def test_ordinals_start_again_in_each_cell(guest):
    guest.run("llm_query_batch(['a', 'b'])")
    assert [ask.ordinal for ask in asked(guest.run("llm_query('c')"))] == [0]


def test_no_more_than_the_window_is_outstanding(guest):
    outstanding = []
    most = 0

    def late(host, message):
        nonlocal most
        if isinstance(message, m.Ask):
            outstanding.append(message.id)
            most = max(most, len(outstanding))
            if len(outstanding) == 32 or message.payload == b"199":
                while outstanding:
                    host.send(m.Answer(id=outstanding.pop(), kind="ok", code="", cached=False, payload=b"x"))

    guest.on_message = late
    got = guest.run("print(len(llm_query_batch([str(i) for i in range(200)])))")
    assert got.text == "200\n"
    assert most == 32


def test_large_prompts_do_not_make_the_host_hold_more_than_it_allows():
    held, shared = {}, {}
    most = 0

    def late(host, message):
        nonlocal most
        if isinstance(message, (m.Ask, m.Share)):
            (held if isinstance(message, m.Ask) else shared)[message.id] = len(message.payload)
            most = max(most, sum(held.values()) + sum(shared.values()))
        if isinstance(message, m.Unshare):
            del shared[message.id]
        if isinstance(message, m.Ask) and (message.ordinal % 5 == 4 or message.payload[:1] == b"z"):
            for ask in list(held):
                host.send(m.Answer(id=ask, kind="ok", code="", cached=False, payload=b"x"))
                del held[ask]

    with Guest() as guest:
        guest.on_message = late
        got = guest.run(
            "mib = 1 << 20\n"
            "print(len(llm_query_batch(['p' * (10 * mib)] * 20 + ['z'], prefix='s' * (10 * mib))))\n"
            "print(llm_query('z' * (16 * mib), system='a' * (16 * mib), prefix='b' * (16 * mib)) )"
        )
    assert got.text == "21\nx\n"
    assert 50 << 20 <= most <= 64 << 20


def test_three_hundred_threads_with_texts_of_their_own_share_no_more_than_allowed(guest):
    alive = set()
    most = 0

    def count(host, message):
        nonlocal most
        if isinstance(message, m.Share):
            alive.add(message.id)
            most = max(most, len(alive))
        if isinstance(message, m.Unshare):
            alive.remove(message.id)
        answer_upper(host, message)

    guest.on_message = count
    got = guest.run(
        "import threading\nanswers = []\n"
        "def one(i): answers.append(llm_query(f'p{i}', system=f's{i}', prefix=f'x{i}'))\n"
        "threads = [threading.Thread(target=one, args=(i,)) for i in range(300)]\n"
        "for t in threads: t.start()\nfor t in threads: t.join()\nprint(len(answers))"
    )
    assert got.text == "300\n"
    assert 0 < most <= 512
    guest.run("pass")
    assert not alive


def test_five_hundred_threads_may_call_at_once(guest):
    got = guest.run(
        "import threading\nanswers = {}\n"
        "def one(i): answers[i] = llm_query(f'p{i}')\n"
        "threads = [threading.Thread(target=one, args=(i,)) for i in range(500)]\n"
        "for t in threads: t.start()\nfor t in threads: t.join()\n"
        "print(all(answers[i] == f'P{i}' for i in range(500)), len(answers))"
    )
    assert got.text == "True 500\n"
    assert sorted(ask.ordinal for ask in asked(got)) == list(range(500))


def test_an_empty_batch_asks_nothing(guest):
    got = guest.run("print(llm_query_batch([]), llm_query_batched(iter([])))")
    assert got.text == "[] []\n"
    assert asked(got) == []


@pytest.mark.parametrize(
    ("call", "error"),
    [
        ("llm_query(5)", "TypeError: prompt 0 is a string, not int"),
        ("llm_query(b'x')", "TypeError: prompt 0"),
        ("llm_query(None)", "TypeError: prompt 0"),
        ("llm_query_batch(['a', 5])", "TypeError: prompt 1 is a string, not int"),
        ("llm_query_batch('abc')", "TypeError: prompts is a list"),
        ("llm_query_batch(7)", "TypeError"),
        ("llm_query('q', system=5)", "TypeError: system"),
        ("llm_query('q', prefix=b'')", "TypeError: prefix"),
        ("llm_query('q', model=5)", "TypeError: model"),
        ("llm_query('q', model='x' * 300)", "PolicyError"),
        ("llm_query('q', model='\\ud800')", "PolicyError"),
        ("llm_query('q', max_tokens='5')", "TypeError: max_tokens"),
        ("llm_query('q', max_tokens=0)", "ValueError: max_tokens"),
        ("llm_query('q', max_tokens=True)", "TypeError: max_tokens"),
        ("llm_query('q', thinking_budget=-1)", "ValueError: thinking_budget"),
        ("llm_query('q', sample=-1)", "ValueError: sample"),
        ("llm_query('q', sample=2**40)", "ValueError: sample"),
        ("llm_query('q', schema=[1])", "TypeError: schema"),
        ("llm_query('q', schema='{')", "ValueError: schema is not JSON"),
        ("llm_query('q', schema={'a': float('nan')})", "ValueError"),
        ("llm_query('q', base_url='http://x')", "TypeError"),
        ("llm_query_batch(['a'], concurrency=0)", "ValueError: concurrency"),
        ("llm_query_batch(['a'], concurrency=-3)", "ValueError: concurrency"),
        ("llm_query_batch([], concurrency=0)", "ValueError: concurrency"),
        ("llm_query_batch(['a'], on_error='ignore')", "ValueError: on_error"),
        ("llm_query('x' * 1001)", "PolicyError: the prompt has 1001 bytes"),
        ("llm_query('q', prefix='x' * 1001)", "PolicyError: the prefix"),
        ("llm_query_batch(['a', 'x' * 100_000_000])", "PolicyError: the prompt has 100000000 bytes"),
    ],
)
def test_a_wrong_argument_is_a_clear_error_and_nothing_is_sent(guest, call, error):
    got = guest.run(call)
    assert error in got.error.splitlines()[-1]
    assert asked(got) == asked(got, m.Share) == []


def test_a_prompt_of_a_lying_string_type_is_sent_as_the_string_it_is(guest):
    got = guest.run("class Odd(str):\n    def encode(self, *a): return 5\nprint(llm_query(Odd('true')))")
    assert got.text == "TRUE\n"


def test_half_characters_in_a_prompt_become_question_marks(guest):
    assert asked(guest.run("llm_query('a\\ud800b')"))[0].payload == b"a?b"


def test_without_a_limit_of_the_policy_a_prompt_still_has_to_fit_a_frame():
    with Guest() as guest:
        got = guest.run("llm_query('x' * (16 * 1024 * 1024 + 1))")
        assert "PolicyError" in got.error
        assert guest.run("print(len(llm_query('x' * (16 * 1024 * 1024))))").text == f"{16 * 1024 * 1024}\n"


@pytest.mark.parametrize(
    ("kind", "raised"),
    [
        ("budget", "BudgetExceeded"),
        ("policy", "PolicyError"),
        ("provider", "ProviderError"),
        ("timeout", "DeadlineError"),
        ("internal", "HostError"),
    ],
)
def test_a_failed_call_raises_the_error_of_its_kind(guest, kind, raised):
    guest.on_message = refuse(kind, "what happened\nwhat to do", code="overloaded")
    got = guest.run(
        "try:\n    llm_query('q')\nexcept RLMError as e:\n    print(type(e).__name__, e.message, '|', e.hint, '|', getattr(e, 'code', ''))"
    )
    assert (
        got.text
        == f"{raised} what happened | what to do | {'overloaded' if kind in {'provider', 'internal'} else ''}\n"
    )


def test_an_answer_that_was_cut_off_is_a_string_of_a_type_of_its_own(guest):
    guest.on_message = refuse("ok", "begun and not", code="truncated")
    got = guest.run(
        "a = llm_query('q')\nprint(type(a).__name__, isinstance(a, str), a == 'begun and not', a.truncated)"
    )
    assert got.text == "Truncated True True True\n"


def test_one_failed_item_costs_none_of_the_others(guest):
    guest.on_message = refuse("provider", "no", only=lambda payload: payload == b"p3")
    got = guest.run(
        "try:\n    llm_query_batch([f'p{i}' for i in range(6)])\n"
        "except BatchError as e:\n"
        "    print(len(e.results), e.results[2], type(e.results[3]).__name__, e.results[5], '1 of 6' in str(e))\n"
        "r = llm_query_batch([f'p{i}' for i in range(6)], on_error='return')\nprint(r[0], type(r[3]).__name__)"
    )
    assert got.text == "6 P2 ProviderError P5 True\nP0 ProviderError\n"


def test_when_money_runs_out_a_batch_raises_budget_exceeded_with_what_was_answered(guest):
    guest.on_message = refuse("budget", "no money", only=lambda payload: payload >= b"p3")
    got = guest.run(
        "try:\n    llm_query_batch([f'p{i}' for i in range(6)])\n"
        "except BudgetExceeded as e:\n    print(e, e.results[:3], len(e.results))"
    )
    assert got.text == "no money ['P0', 'P1', 'P2'] 6\n"


def test_a_batch_of_which_the_policy_lets_nothing_go_raises_policy_error(guest):
    guest.on_message = refuse("policy", "not allowed")
    got = guest.run(
        "try:\n    llm_query_batch(['p', 'q'], model='other')\nexcept PolicyError as e:\n    print(e, len(e.results))"
    )
    assert got.text == "not allowed 2\n"
    guest.on_message = refuse("policy", "too large", only=lambda payload: payload == b"q")
    got = guest.run(
        "try:\n    llm_query_batch(['p', 'q'])\nexcept BatchError as e:\n    print(e.results[0], type(e.results[1]).__name__)"
    )
    assert got.text == "P PolicyError\n"


def test_budget_is_what_the_host_says(guest):
    assert guest.run("print(budget())").text == "{'calls': 3}\n"


def test_a_forked_child_is_told_that_it_cannot_call(guest):
    got = guest.run(
        "import multiprocessing\ndef ask(q):\n    try:\n        return llm_query(q)\n    except RLMError as e:\n        return str(e)\n"
        "with multiprocessing.Pool(1) as pool:\n    print(pool.map(ask, ['x'])[0])\nprint(llm_query('parent'))"
    )
    assert "main process" in got.text
    assert got.text.endswith("PARENT\n")
    assert len(asked(got)) == 1


def test_an_interrupt_while_waiting_cancels_what_is_outstanding_and_asks_no_more(guest):
    seen = []

    def interrupt_at_full_window(host, message):
        if isinstance(message, m.Ask):
            seen.append(message.id)
            if len(seen) == 32:
                host.send(m.Interrupt(cell=1))

    guest.on_message = interrupt_at_full_window
    got = guest.run("llm_query_batch(['p'] * 100, system='s')")
    assert got.status == "interrupted"
    guest.on_message = answer_upper
    later = guest.run("print(llm_query('next'))")
    assert later.text == "NEXT\n"
    cancelled = asked(got, m.Cancel) + asked(later, m.Cancel)
    assert sorted(cancel.id for cancel in cancelled) == seen
    assert len(asked(later)) == 1
    assert len(asked(got, m.Unshare) + asked(later, m.Unshare)) == 1


def test_an_answer_to_a_cancelled_call_is_ignored(guest):
    held = []
    guest.on_message = lambda host, message: held.append(message.id) if isinstance(message, m.Ask) else None
    guest.begin("llm_query('slow')")
    ask = guest.expect(m.Ask)
    guest.send(m.Interrupt(cell=1))
    assert guest.finish().status == "interrupted"
    guest.send(m.Answer(id=ask.id, kind="ok", code="", cached=False, payload=b"late"))
    guest.on_message = answer_upper
    assert guest.run("print(llm_query('next'))").text == "NEXT\n"


def test_a_thread_may_call_between_cells(guest):
    guest.run(
        "import threading\ngo = threading.Event()\n"
        "def later():\n    go.wait()\n    globals()['said'] = llm_query('between')\n"
        "thread = threading.Thread(target=later)\nthread.start()"
    )
    assert guest.run("go.set()\nthread.join()\nprint(said)").text == "BETWEEN\n"


FINALS = [
    ("FINAL('text')", "text"),
    ("FINAL('')", ""),
    ("FINAL(5)", "5"),
    ("FINAL(True)", "true"),
    ("FINAL({'ä': [1, None]})", '{"ä": [1, null]}'),
    ("FINAL({1, })", "{1}"),
    ("FINAL(b'raw')", "b'raw'"),
    ("FINAL([float('nan')])", "[nan]"),
    ("FINAL('a\\ud800b')", "a?b"),
    ("FINAL(type('S', (str,), {'__str__': lambda s: 'lie'})('truth'))", "truth"),
    ("l = []\nl.append(l)\nFINAL(l)", "[[...]]"),
    ("FINAL('x' * 3_000_000)", "x" * 3_000_000),
    ("FINAL('ä' * 1_500_000)", "ä" * 1_500_000),
    ("try:\n    FINAL('kept')\nexcept Exception:\n    FINAL('no')", "kept"),
    ("try:\n    FINAL('first')\nexcept BaseException:\n    pass\nFINAL('second')", "first"),
    ("def f():\n    FINAL('deep')\nf()\nprint('never')", "deep"),
]


@pytest.mark.parametrize(("source", "answer"), FINALS, ids=[source[:40] for source, _ in FINALS])
def test_final_ends_the_cell_with_an_answer(guest, source, answer):
    got = guest.run(source + "\nprint('not reached')")
    assert (got.status, got.text, got.final, got.final_kind, got.final_name) == ("ok", "", answer, "direct", None)
    frames = asked(got, m.Final)
    assert {frame.length for frame in frames} == {len(answer)}
    assert [frame.last for frame in frames] == [False] * (len(frames) - 1) + [True]


def test_final_var_names_a_variable(guest):
    guest.run("report = ['a']")
    got = guest.run("FINAL_VAR('report')\nprint('not reached')")
    assert (got.final, got.final_kind, got.final_name, got.text) == ('["a"]', "var", "report", "")


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("FINAL_VAR('nowhere')", "RLMError: FINAL_VAR: there is no variable 'nowhere'"),
        ("empty = None\nFINAL_VAR('empty')", "RLMError: FINAL_VAR: the variable 'empty' is None"),
        ("FINAL_VAR(5)", "TypeError"),
    ],
)
def test_final_var_of_nothing_is_an_error_and_no_answer(guest, source, error):
    got = guest.run(source)
    assert got.final is None
    assert error in got.error


def test_a_later_cell_may_replace_the_answer_and_an_error_after_it_does_not_take_it_back(guest):
    assert guest.run("FINAL('one')").final == "one"
    got = guest.run("try:\n    FINAL('two')\nfinally:\n    1 / 0")
    assert (got.final, got.status) == ("two", "error")


def test_show_vars_prints_and_returns_the_table(guest):
    got = guest.run("rows = [1, 2]\ntable = SHOW_VARS()\nprint(table == 'rows  list  len 2')")
    assert got.text == "rows  list  len 2\nTrue\n"


def test_the_calls_can_be_imported_as_the_module_that_rlm_skill_has(guest):
    got = guest.run(
        "import rlm_helper\nfrom rlm_helper import FINAL_VAR as put\n"
        "print(rlm_helper.llm_query is llm_query, rlm_helper.BudgetExceeded is BudgetExceeded, [n for n in globals() if n[0] != '_'][-2:])\n"
        "x = 'done'\nput('x')"
    )
    assert (got.status, got.text) == ("ok", "True True ['rlm_helper', 'put']\n")
