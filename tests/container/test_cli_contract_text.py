"""Nothing that input, guest, model or caller wrote reaches a terminal or a model with its escape sequences alive."""

import http.server
import json
import os
import pty
import subprocess
import threading
from pathlib import Path

import pytest

from tests.support.cli import PROGRAM

pytestmark = pytest.mark.container

ATTACKS = {
    "escape": "\x1b[2J\x1b]52;c;ZXZpbA==\x07",
    "c1": "\x9b31m\x9d52;c;x\x9c",
    "bidi": "\u202eevil\u2066x\u2069\u200f",
    "return": "shown\rhidden",
    "hidden": "a\u200bb\ufeffc\U000e0041d",
    "nul": "a\x00b\x08\x7f",
}
LIVE = set("".join(ATTACKS.values())) - set("[]2JcZXBhblpA;=31m59xevilshowndigaybctj")
LIVE = {char for char in LIVE if not char.isprintable()}


def clean(value):
    """Check every string of a document, as a reader of the JSON sees it."""
    if isinstance(value, dict):
        return all(clean(item) for pair in value.items() for item in pair)
    if isinstance(value, list):
        return all(clean(item) for item in value)
    return not isinstance(value, str) or not set(value) & LIVE


@pytest.mark.parametrize("name", sorted(ATTACKS))
@pytest.mark.parametrize(
    "code",
    [
        "print({0!r})",
        "raise ValueError({0!r})",
        "globals()[{0!r}] = 1",
        "bad = type({0!r}.replace(chr(0), ''), (), {{}})()",
        "FINAL({0!r})",
        "import warnings; warnings.warn({0!r})",
        "llm_query('x', model='m' + {0!r})",
        "FINAL_VAR({0!r})",
    ],
)
def test_what_a_cell_says_is_made_visible(live, name, code):
    source = code.format(ATTACKS[name])
    for form in ("json", "text"):
        result = live("exec", "--format", form, stdin=source)
        assert result.code == 0
        assert not set(result.text) & LIVE, form
        assert not set(result.err) & LIVE
        if form == "json":
            assert clean(result.doc)
    assert not set(live("status", "--format", "text").text) & LIVE
    assert clean(live.ok("status"))


def test_text_that_was_escaped_shows_what_was_there(live):
    assert live.exec("print('a\\x1b[31mb\\r\\u202e')")["stdout"] == "a\\x1b[31mb\\x0d\\u202e\n"


def test_the_file_of_the_whole_output_is_escape_free_too(live):
    done = live.exec("print('\\x1b[31m' * 2000)")
    assert not set(Path(done["stdout_full_path"]).read_text(encoding="utf-8")) & LIVE


def test_an_escape_sequence_split_between_writes_is_still_seen(live):
    done = live.exec(
        "import os, time\nfor b in b'\\x1b[31m\\xe2\\x80\\xaex':\n    os.write(1, bytes([b])); time.sleep(0.01)"
    )
    assert done["stdout"] == "\\x1b[31m\\u202ex"


@pytest.mark.parametrize("name", sorted(set(ATTACKS) - {"nul"}))
def test_what_the_caller_wrote_comes_back_visible(cli, live, name):
    attack = ATTACKS[name]
    for args in (
        ["exec", "--session", attack, "-c", "1"],
        ["final", "--session", attack],
        ["stop", "--session", attack],
        ["start", "--input", f"/nonexistent/{attack}"],
        ["start", "--input", "/etc/hostname", "--session", attack],
        ["start", "--input", "/etc/hostname", "--provider", attack],
        ["start", "--input", "/etc/hostname", "--memory", attack],
        ["start", "--input", "/etc/hostname", "--provider", "scripted", "--image", attack],
        ["exec", "-f", f"/nonexistent/{attack}"],
        [attack],
    ):
        result = cli(*args)
        assert clean(result.doc), args
        assert not set(result.err) & LIVE, args
        assert len(result.err.splitlines()) <= 1


def test_the_beginning_of_the_input_is_made_visible(cli, tmp_path):
    path = tmp_path / "evil.log"
    path.write_text("".join(ATTACKS.values()) + "\n", encoding="utf-8", newline="")
    path.chmod(0o644)
    for form in ("json", "text"):
        result = cli(
            "start", "--input", str(path), "--provider", "scripted", "--format", form, "--session", f"evil-{form}"
        )
        assert not set(result.text) & LIVE
        if form == "json":
            assert clean(result.doc)
        cli.ok("stop", "--session", f"evil-{form}")


def test_an_answer_is_raw_in_a_pipe_and_visible_on_a_terminal(live):
    live.exec(f"FINAL({ATTACKS['escape']!r})")
    assert live.final() == ATTACKS["escape"].encode()
    mine, theirs = pty.openpty()
    shown = live.home.spawn("final", "--session", live.id, stdout=theirs)
    shown.communicate(timeout=20)
    os.close(theirs)
    assert not set(os.read(mine, 65536).decode()) & (LIVE - {"\r"})
    os.close(mine)


def test_a_wrong_key_is_a_provider_error_with_exit_7_and_nothing_left(cli, log_file):
    class Refusing(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["content-length"]))
            body = json.dumps(
                {"type": "error", "error": {"type": "authentication_error", "message": "invalid x-api-key \x1b[31m"}}
            ).encode()
            self.send_response(401)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    keys = {"ANTHROPIC_API_KEY": "sk-ant-wrong-key-123", "ANTHROPIC_BASE_URL": f"http://127.0.0.1:{server.server_port}"}
    try:
        result = cli("run", "What happened?", "--input", str(log_file), "--strategy", "map-reduce", env=keys)
        assert (result.code, result.error["kind"]) == (7, "provider"), result
        assert "sk-ant-wrong-key-123" not in result.text + result.err
        assert clean(result.doc)
        assert result.error["hint"]
        live_before = {entry["session"] for entry in cli.ok("list")["sessions"]}
        with cli.session(log_file, "--provider", "anthropic", env=keys) as started:
            done = cli.exec("llm_query('q')", "--session", started["session"])
            assert "ProviderError" in done["error"]
            assert "sk-ant-wrong-key-123" not in done["error"]
            assert done["budget"]["calls"] == 0, "what the provider refused is not billed"
        assert {entry["session"] for entry in cli.ok("list")["sessions"]} == live_before
    finally:
        server.shutdown()
        server.server_close()


def test_the_scripts_of_the_tool_before_run_unchanged(fresh, tmp_path):
    """The sequence that rlm-skill documents, in a shell, with its names, options and fields."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "one.md").write_text("alpha\n")
    (tmp_path / "docs" / "two.py").write_text("beta\n")
    script = r"""
set -e
rlm-sandbox start --input docs --glob '*.md' --session mine --budget 10 --token-limit 100000 --token-warning 50000 > started.json
python3 -c 'import json; d = json.load(open("started.json")); print(d["session"], d["file_count"], d["budget_limit"], d["token_limit"])'
cat <<'CODE' | rlm-sandbox exec --session mine > cell.json
chunks_ = [context[i:i + 100] for i in range(0, len(context), 100)]
answers = llm_query_batched([f"Summarise: {c}" for c in chunks_])
answer = " | ".join(answers)
SHOW_VARS()
FINAL_VAR("answer")
CODE
python3 -c 'import json; d = json.load(open("cell.json")); print(d["error"], d["final"]["kind"], d["budget"]["calls"], d["stdout_truncated"])'
rlm-sandbox final --session mine
echo
rlm-sandbox budget --session mine --set 20 | python3 -c 'import json, sys; print(json.load(sys.stdin)["limit"])'
rlm-sandbox list | python3 -c 'import json, sys; print([s["session"] for s in json.load(sys.stdin)["sessions"]])'
rlm-sandbox stop --session mine > /dev/null
"""
    environment = fresh.env({"LLM_PROVIDER": "scripted"})
    environment["PATH"] = f"{Path(PROGRAM).parent}:{environment['PATH']}"
    done = subprocess.run(
        ["sh", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr
    assert lines[0] == "mine 1 10 100000"
    assert lines[1] == "None var 1 False"
    assert lines[2].startswith("Scripted answer")
    assert lines[3:] == ["20", "['mine']"]
