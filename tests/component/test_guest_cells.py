"""Cells in a real agent and kernel over pipes: what an honest program sees."""

import pytest

from tests.support.guest_driver import Guest

pytestmark = pytest.mark.component


@pytest.fixture(scope="module")
def shared():
    """One guest for cells that leave no trace that matters to others."""
    with Guest() as guest:
        yield guest


@pytest.fixture
def guest():
    with Guest() as fresh:
        yield fresh


def test_names_imports_functions_and_generators_live_on(guest):
    guest.run("import math\ndef area(r): return math.pi * r * r\ngen = (i * i for i in range(9))\nnext(gen), next(gen)")
    got = guest.run("print(round(area(1), 3), next(gen))")
    assert (got.status, got.text) == ("ok", "3.142 4\n")


def test_a_traceback_shows_the_source_of_every_cell_in_it_and_nothing_of_the_kernel(guest):
    guest.run("def inverse(x):\n    return 1 / x  # here")
    got = guest.run("try:\n    inverse(0)\nexcept ZeroDivisionError as exc:\n    raise ValueError('outer') from exc")
    assert got.status == "error"
    assert 'File "<cell 1>", line 2, in inverse\n    return 1 / x  # here' in got.error
    assert 'File "<cell 2>", line 4, in <module>' in got.error
    assert got.error.rstrip().endswith("ValueError: outer")
    assert "rlm_sandbox" not in got.error


def test_a_syntax_error_is_an_error_of_the_cell(shared):
    got = shared.run("x = = 1")
    assert got.status == "error"
    assert "SyntaxError" in got.error
    assert "<cell" in got.error
    assert "rlm_sandbox" not in got.error


@pytest.mark.parametrize("source", ["x = 1\0", "\ud800", "(" * 5000, "x" * 100_000 + "(", "-" * 200_000 + "1"])
def test_source_that_python_cannot_read_is_an_error_of_the_cell(shared, source):
    got = shared.run(source.encode("utf-8", "replace").decode())
    assert got.status == "error"
    assert got.error


def test_functions_of_a_cell_can_be_inspected(shared):
    got = shared.run("import inspect\ndef f():\n    return 7\nprint(inspect.getsource(f))")
    assert got.text == "def f():\n    return 7\n\n"


@pytest.mark.parametrize(
    ("call", "status", "error"),
    [
        ("sys.exit()", "ok", ""),
        ("sys.exit(0)", "ok", ""),
        ("raise SystemExit", "ok", ""),
        ("sys.exit(3)", "error", "SystemExit: 3\n"),
        ("sys.exit('no input')", "error", "SystemExit: no input\n"),
    ],
)
def test_sys_exit_ends_the_cell_and_keeps_variables(shared, call, status, error):
    got = shared.run(f"import sys\nkept = 41\n{call}\nkept = 0")
    assert (got.status, got.error) == (status, error)
    assert shared.run("print(kept + 1)").text == "42\n"


def test_output_of_print_stderr_subprocess_and_raw_descriptors_is_merged_in_order(shared):
    got = shared.run(
        "import os, subprocess, sys\n"
        "print('one')\nprint('two', file=sys.stderr)\nos.write(1, b'three\\n')\nos.write(2, b'four\\n')\n"
        "subprocess.run([sys.executable, '-c', 'print(\"five\")'], check=True)\nprint('six', end='')"
    )
    assert got.text == "one\ntwo\nthree\nfour\nfive\nsix"


def test_standard_input_is_empty(shared):
    got = shared.run("input()")
    assert got.error.rstrip().endswith("EOFError: EOF when reading a line")


def test_text_that_is_not_unicode_can_be_printed(shared):
    assert shared.run("print('a\\ud800b')").text == "a\\ud800b\n"


def test_thousands_of_results_each_come_after_their_output(shared):
    for number in range(2000):
        got = shared.run(f"print({number})\nFINAL('{number}')")
        kinds = [type(message).__name__ for message in got.messages if type(message).__name__ != "Ready"]
        assert (got.text, got.final) == (f"{number}\n", str(number))
        assert kinds == ["Output", "Final", "Result", "CellClosed"]


def test_ten_thousand_prints_and_calls_stay_interleaved(shared):
    order = []
    before = shared.on_message

    def note(guest, message):
        if type(message).__name__ == "Output":
            order.extend(message.payload.decode().split())
        if type(message).__name__ == "Ask":
            order.append(message.payload.decode())
        before(guest, message)

    shared.on_message = note
    try:
        got = shared.run("for i in range(5000):\n    print(2 * i)\n    llm_query(str(2 * i + 1))")
    finally:
        shared.on_message = before
    assert got.status == "ok"
    assert order == [str(number) for number in range(10_000)]


def test_a_pool_of_forked_processes_runs_functions_of_the_cell(shared):
    got = shared.run(
        "import multiprocessing\ndef square(x): return x * x\n"
        "with multiprocessing.Pool(2) as pool:\n    print(pool.map(square, range(5)))\n"
        "print(multiprocessing.get_start_method())"
    )
    assert got.text == "[0, 1, 4, 9, 16]\nfork\n"


def test_a_process_pool_and_asyncio_work(shared):
    got = shared.run(
        "import asyncio\nfrom concurrent.futures import ProcessPoolExecutor\n"
        "def cube(x): return x ** 3\n"
        "async def main():\n"
        "    with ProcessPoolExecutor(2) as pool:\n"
        "        loop = asyncio.get_running_loop()\n"
        "        return await asyncio.gather(*(loop.run_in_executor(pool, cube, i) for i in range(4)))\n"
        "print(asyncio.run(main()))"
    )
    assert got.text == "[0, 1, 8, 27]\n"


def test_a_forked_child_that_runs_off_the_end_of_the_cell_does_not_become_a_second_kernel(guest):
    got = guest.run("import os\npid = os.fork()\nif pid: os.waitpid(pid, 0)\nprint('child' if pid == 0 else 'parent')")
    assert got.text == "child\nparent\n"
    assert guest.run("print('still', 'one')").text == "still one\n"


def test_a_cell_that_closes_its_output_gets_it_back_in_the_next(guest):
    assert guest.run("import os, sys\nsys.stdout.close()\nos.close(1)\nos.close(2)").status == "ok"
    got = guest.run("print('back')\nos.write(2, b'again\\n')")
    assert got.text == "back\nagain\n"


def test_variables_are_what_cells_made(guest):
    got = guest.run("a = 'xyz'\nb = [1, 2]\n_c = 3\nimport json\ndef f(): pass\nclass K: pass\nk = K()\n__d = 1")
    assert got.variables == {
        "a": {"name": "a", "type": "str", "len": 3},
        "b": {"name": "b", "type": "list", "len": 2},
        "_c": {"name": "_c", "type": "int", "len": None},
        "json": {"name": "json", "type": "module", "len": None},
        "f": {"name": "f", "type": "function", "len": None},
        "K": {"name": "K", "type": "type", "len": None},
        "k": {"name": "k", "type": "K", "len": None},
    }
    assert got.result.variables_total == 7


def test_a_helper_is_a_variable_only_once_it_is_rebound(guest):
    assert guest.run("budget = budget").variables == {}
    assert guest.run("budget = 5").variables == {"budget": {"name": "budget", "type": "int", "len": None}}


def test_names_and_types_over_the_wires_limits_are_clipped_and_the_session_lives(guest):
    got = guest.run(
        "for i in range(300):\n"
        "    globals()[f'{i:04}' + '\\U0001f600' * 500] = type('\\U0001f600' * 300, (), {})()\n"
        "globals()['\\ud800'] = 1\nglobals()['\"\\x00' * 200] = 2\nglobals()[7] = 3\n"
        "class Meta(type):\n"
        "    __name__ = property(lambda cls: '\\ud800')\n"
        "    def __getattr__(cls, name): raise RuntimeError(name)\n"
        "class Odd(metaclass=Meta):\n"
        "    def __len__(self): return 2**62\n"
        "class Raises:\n    def __len__(self): raise SystemError\n"
        "odd, raises = Odd(), Raises()"
    )
    assert got.status == "ok"
    assert got.result.variables_total == 302 + 5 + 1  # the names above, the loop's and Meta, Odd, Raises, odd, raises
    assert 0 < len(got.result.variables) <= 200
    assert all(len(entry["name"]) <= 128 and len(entry["type"]) <= 64 for entry in got.result.variables)
    assert guest.run("print('lives')").text == "lives\n"


def test_two_hundred_usual_variables_all_fit(guest):
    got = guest.run("globals().update({f'some_usual_name_{i}': [i] for i in range(250)})")
    assert (len(got.result.variables), got.result.variables_total) == (200, 250)
    assert got.result.variables[-1]["name"] == "some_usual_name_249"


@pytest.mark.parametrize(
    "body",
    [
        "raise RuntimeError",
        "raise SystemExit(3)",
        "raise KeyboardInterrupt",
        "return 5",
        "return '\\ud800' * 10",
        "return 'x' * 10_000_000",
        "return FINAL('sneaky')",
    ],
)
def test_an_exception_with_a_hostile_str_is_described_anyway(shared, body):
    got = shared.run(
        f"class Bad(Exception):\n    def __str__(self):\n        {body}\n    __repr__ = __str__\nraise Bad()"
    )
    assert got.status == "error"
    assert "Bad" in got.error or "FINAL" in body or "SystemExit" in body or "Keyboard" in body
    assert len(got.error.encode()) < 70_000
    assert shared.run("print(1)").text == "1\n"


def test_endless_str_of_an_exception_is_the_cells_own_time(guest):
    got = guest.run("class Slow(Exception):\n    def __str__(self):\n        while True: pass\nraise Slow", timeout=0.5)
    assert got.expired
    assert got.status in ("error", "interrupted")
    assert guest.run("print('on')").text == "on\n"


def test_a_huge_traceback_keeps_head_and_tail(shared):
    got = shared.run("raise ValueError('A' * 500_000 + 'the end')")
    assert got.error.startswith("Traceback")
    assert got.error.rstrip().endswith("the end")
    assert "shortened" in got.error
    assert len(got.error) < 70_000


def test_deep_recursion_is_an_error(shared):
    got = shared.run("def f(): return f()\nf()")
    assert got.status == "error"
    assert "RecursionError" in got.error


def test_spawned_processes_work_too(shared):
    got = shared.run(
        "import math, multiprocessing\nwith multiprocessing.get_context('spawn').Pool(1) as pool:\n"
        "    print(pool.map(math.sqrt, [4, 9]))"
    )
    assert got.text == "[2.0, 3.0]\n"


def test_an_input_that_grows_is_told_once_with_the_next_result(tmp_path):
    path = tmp_path / "log.txt"
    path.write_text("alpha\nbeta\n")
    given = {"kind": "file", "path": str(path), "index": None, "name": "log.txt"}
    with Guest(settings={"input": given}) as guest:
        got = guest.run("print(len(context), [str(line) for line in grep('beta')])")
        assert (got.text, got.result.warnings, got.variables) == ("11 ['beta']\n", [], {})
        with path.open("a") as file:
            file.write("more\n")
        (warning,) = guest.run("pass").result.warnings
        assert "changed" in warning
        assert guest.run("pass").result.warnings == []


def test_random_is_seeded_by_the_settings():
    texts = []
    for _ in range(2):
        with Guest(settings={"seed": 7}) as guest:
            texts.append(guest.run("import random\nprint(random.random())").text)
    assert texts[0] == texts[1]


def test_a_thread_that_gives_the_final_answer_says_nothing_of_it_and_others_say_what_they_must(guest):
    got = guest.run(
        "import threading\ndef end(): FINAL('from a thread')\ndef fail(): raise ValueError('mine')\n"
        "for job in (end, fail):\n    thread = threading.Thread(target=job)\n    thread.start()\n    thread.join()"
    )
    assert (got.status, got.final) == ("ok", "from a thread")
    assert "Finished" not in got.text
    assert "ValueError: mine" in got.text


def test_exit_closes_no_input_for_the_cells_after_it(guest):
    assert guest.run("kept = 1\nexit()").status == "ok"
    got = guest.run("import sys\nprint(repr(sys.stdin.read()), kept)\ninput()")
    assert got.text.startswith("'' 1\n")
    assert "EOFError" in got.error
