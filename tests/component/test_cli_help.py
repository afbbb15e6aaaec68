"""What can be asked of the command line without an engine: help with examples that parse, usage errors, the version."""

import re
import shlex
import subprocess

import click
import pytest

from rlm_sandbox import __version__
from rlm_sandbox.cli.main import cli
from rlm_sandbox.errors import UsageError
from tests.support.cli import PROGRAM, Home

pytestmark = pytest.mark.component

DOCUMENTED = {
    "start": "--input --glob --exclude --session --snapshot --bind --provider --model --allow-model --budget --token-limit "
    "--token-warning --cost-limit --time-limit --concurrency --image --runtime --memory --cpus --cell-timeout --idle-timeout",
    "exec": "--session -c -f --timeout --wait",
    "wait": "--session --wait",
    "interrupt": "--session --wait",
    "final": "--session -o",
    "budget": "--session --set --set-token-limit --set-token-warning --clear-token-limit --clear-token-warning --set-cost-limit",
    "status": "--session",
    "list": "",
    "stop": "--session --all",
    "gc": "",
    "run": "--input --strategy -o",
    "image build": "",
    "doctor": "",
    "broker serve": "",
    "broker status": "",
    "broker stop": "",
}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return Home(tmp_path_factory.mktemp("unused") / "home")


def commands(group=cli, path=()):
    """Return every command of the program as its words."""
    found = []
    with click.Context(group) as ctx:
        for name in group.list_commands(ctx):
            command = group.get_command(ctx, name)
            found.append((*path, name))
            if isinstance(command, click.Group):
                found += commands(command, (*path, name))
    return found


ALL = commands()


def test_every_documented_command_is_there():
    assert {tuple(name.split()) for name in DOCUMENTED} <= set(ALL)


@pytest.mark.parametrize("words", [(), *ALL], ids=" ".join)
def test_help_has_examples_with_whole_commands_that_parse(home, words):
    result = home(*words, "--help")
    assert (result.code, result.err) == (0, "")
    _, found, rest = result.text.partition("Examples:\n")
    examples = [line.strip() for line in rest.splitlines() if line.strip()]
    assert found
    assert examples
    for example in examples:
        assert re.search(r"\brlm-sandbox\b", example), example
        called = shlex.split(example[example.rindex("rlm-sandbox") :])[1:]
        group, taken = cli, []
        with click.Context(cli) as ctx:
            while isinstance(group, click.Group):
                taken.append(called.pop(0))
                group = group.get_command(ctx, taken[-1])
            assert group is not None, example
            group.make_context(taken[-1], called, parent=ctx, resilient_parsing=False)
        if words:
            assert tuple(taken)[: len(words)] == words


@pytest.mark.parametrize("name", sorted(DOCUMENTED))
def test_every_documented_option_is_there(home, name):
    text = home(*name.split(), "--help").text
    for option in DOCUMENTED[name].split():
        assert re.search(rf"(?<![\w-]){re.escape(option)}\b", text), option


def test_the_version(home):
    result = home("--version")
    assert result.code == 0
    assert __version__ in result.text


@pytest.mark.parametrize(
    "args",
    [["frobnicate"], ["exec", "--what"], ["start"], ["--format", "xml", "list"], ["budget", "--set", "few"]],
    ids=" ".join,
)
def test_a_wrong_command_line_is_one_line_and_exit_2(home, args):
    result = home(*args)
    assert (result.code, result.error["kind"]) == (2, "usage")
    assert len(result.err.splitlines()) == 1
    assert "--help" in result.error["hint"]


def taking_one_value():
    """Yield each command with each of its options that takes one value, by its words."""
    for words in ALL:
        command = cli
        for word in words:
            with click.Context(command) as ctx:
                command = command.get_command(ctx, word)
        if not isinstance(command, click.Group):
            for parameter in command.params:
                if isinstance(parameter, click.Option) and not (parameter.multiple or parameter.is_flag):
                    yield (*words, parameter.opts[-1]), command


def test_an_option_that_takes_one_value_is_refused_when_it_is_given_twice():
    """Of two values one would be dropped without a word."""
    tried = list(taking_one_value())
    assert {("start", "--input"), ("run", "--input"), ("exec", "-c"), ("image", "build", "--from-base")} <= {
        words for words, _ in tried
    }
    for words, command in tried:
        with pytest.raises(UsageError, match=f"^{words[-1]} was given 2 times"):
            command.make_context(words[-2], [words[-1], "1", words[-1], "1"])


def test_two_inputs_are_refused_with_what_to_do(home):
    result = home("start", "--input", "a.log", "--input=b.log")
    assert (result.code, result.error["kind"]) == (2, "usage")
    assert "put the inputs in one directory" in result.error["hint"]
    assert home("exec", "-c", "1", "-c", "2").code == 2


def test_a_wrong_command_line_in_text_form_ends_with_its_status_line(home):
    result = home("--format", "text", "frobnicate")
    assert (result.code, result.out.count(b"\n")) == (2, 1)
    assert result.status_line.startswith("[rlm] error usage:")


@pytest.mark.parametrize("args", [[], ["image"]])
def test_no_command_at_all_is_said_in_one_line_that_names_the_help(home, args):
    result = home(*args)
    assert (result.code, result.error["message"]) == (2, "a command is missing")
    assert len(result.err.splitlines()) == 1
    assert "--help" in result.error["hint"]


@pytest.mark.parametrize(
    ("closed", "code"), [("<&-", 4), (">&-", 4), ("2>&-", 4), ("<&- >&- 2>&-", 4), (">/dev/full", 3)]
)
@pytest.mark.parametrize("command", ["exec -c 1", "exec"])
def test_a_standard_stream_that_is_closed_or_full_is_no_defect(home, command, closed, code):
    line = f"{shlex.quote(str(PROGRAM))} {command} {closed}"
    done = subprocess.run(
        ["/bin/sh", "-c", line], env=home.env(), stdin=subprocess.DEVNULL, capture_output=True, timeout=20, check=False
    )
    assert done.returncode == code
    assert b"Traceback" not in done.stderr
    assert b"internal" not in done.stdout + done.stderr


@pytest.mark.parametrize("args", [["--help"], ["list"], ["exec", "-c", "1"]], ids=" ".join)
def test_a_reader_that_hangs_up_causes_no_noise(home, args):
    shown = home.spawn(*args)
    shown.stdout.close()
    assert shown.wait(20) in {0, 1, 4}
    said = shown.stderr.read()
    assert b"Traceback" not in said
    assert b"internal" not in said


def test_without_a_daemon_commands_answer_at_once_and_start_none(home):
    assert home.ok("list")["sessions"] == []
    assert home.ok("broker", "status")["running"] is False
    assert home.ok("broker", "stop")["stopped"] is False
    assert home.ok("stop", "--all")["stopped"] == []
    assert home.ok("stop", "--session", "nobody")["was_live"] is False
    for command in ("exec", "status", "wait", "interrupt", "final", "budget"):
        assert home(command, stdin="1").code == 4
        assert home(command, "--session", "nobody", stdin="1").code == 4
    assert not home.path.exists()


def test_every_command_takes_the_format_before_it_after_it_and_behind_its_group(home):
    for words in ALL:
        command = cli
        for word in words:
            command = command.get_command(click.Context(command), word)
        assert "--format" in [name for param in command.params for name in param.opts], words
    for line in ("--format text broker status", "broker --format text status", "broker status --format text"):
        result = home(*line.split())
        assert (result.code, result.status_line) == (0, "[rlm] ok"), line
    assert home("broker", "--format", "text", "status", "--format", "json").doc["running"] is False
