"""Installing the skill: links, copies, the plugin, the user's settings, and what is not ours."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from rlm_sandbox.cli.main import cli
from rlm_sandbox.errors import UsageError
from rlm_sandbox.skill import files, install, rules

pytestmark = pytest.mark.unit

RULES = ["Skill(rlm-sandbox)", "Bash(rlm-sandbox *)"]


@pytest.fixture
def user(tmp_path, monkeypatch):
    """A home of its own, a project in it, and no client on the PATH."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.delenv("CLAUDE_CONFIG_DIR", raising=False)
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    project = tmp_path / "project"
    project.mkdir()
    monkeypatch.chdir(project)
    return tmp_path


def skill(*words, code=0):
    done = CliRunner().invoke(cli, ["skill", *words], catch_exceptions=True)
    if code:
        assert isinstance(done.exception, UsageError)
        return done.exception
    assert done.exit_code == 0, done.output
    return json.loads(done.output)


def test_it_links_for_the_user_and_again_changes_nothing(user):
    first = skill("install")
    target = user / ".claude" / "skills" / "rlm-sandbox"
    assert first["installed"] == str(target)
    assert first["how"] == "link"
    assert target.resolve() == files.skill()
    assert skill("install") == first
    assert not (user / ".claude" / "settings.json").exists(), "settings are changed only when asked"
    assert first["rules"] == {"permissions": {"allow": RULES}}


def test_it_copies_into_a_project(user):
    done = skill("install", "--project")
    target = user / "project" / ".claude" / "skills" / "rlm-sandbox"
    assert (done["installed"], done["how"]) == (str(target), "copy")
    assert (target / "SKILL.md").read_bytes() == (files.skill() / "SKILL.md").read_bytes()
    (target / "references" / "helpers.md").unlink()
    skill("install", "--project")
    assert (target / "references" / "helpers.md").exists(), "again means up to date"


def test_another_configuration_folder_is_honoured(user, monkeypatch):
    monkeypatch.setenv("CLAUDE_CONFIG_DIR", str(user / "elsewhere"))
    assert skill("install")["installed"] == str(user / "elsewhere" / "skills" / "rlm-sandbox")


def test_a_copy_is_made_where_links_cannot_be(user, monkeypatch):
    def refuse(*_args, **_options):
        raise OSError(1, "not permitted")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    assert skill("install")["how"] == "copy"


@pytest.mark.parametrize("command", ["install", "uninstall"])
def test_a_folder_of_that_name_that_is_not_ours_is_left_alone(user, command):
    target = user / ".claude" / "skills" / "rlm-sandbox"
    target.mkdir(parents=True)
    (target / "SKILL.md").write_text("mine")
    assert "was not installed by this command" in skill(command, code=2).message
    assert (target / "SKILL.md").read_text() == "mine"


def test_a_link_that_leads_nowhere_any_more_is_replaced(user):
    target = user / ".claude" / "skills" / "rlm-sandbox"
    target.parent.mkdir(parents=True)
    target.symlink_to(user / "gone" / "rlm-sandbox")
    skill("install")
    assert target.resolve() == files.skill()


def test_uninstalling_takes_away_what_was_installed_and_nothing_else(user):
    skill("install")
    (user / ".claude" / "skills" / "other").mkdir()
    assert skill("uninstall")["removed"] is True
    assert [path.name for path in (user / ".claude" / "skills").iterdir()] == ["other"]
    assert files.skill().is_dir(), "a link is removed, not what it leads to"
    assert skill("uninstall")["removed"] is False


def test_the_rules_are_merged_when_asked_and_everything_else_stays(user):
    path = user / ".claude" / "settings.json"
    path.parent.mkdir()
    before = {"model": "opus", "permissions": {"allow": ["Bash(ls)"], "deny": ["Read(./.env)"]}, "ключ": "знач"}
    path.write_text(json.dumps(before, ensure_ascii=False), encoding="utf-8")
    path.chmod(0o644)
    assert skill("install", "--allow")["added"] == RULES
    after = json.loads(path.read_text(encoding="utf-8"))
    assert after == {**before, "permissions": {"allow": ["Bash(ls)", *RULES], "deny": ["Read(./.env)"]}}
    assert "ключ" in path.read_text(encoding="utf-8")
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert skill("install", "--allow")["added"] == []
    assert skill("uninstall", "--allow")["withdrawn"] == RULES
    assert json.loads(path.read_text(encoding="utf-8")) == before
    assert [entry.name for entry in path.parent.iterdir() if entry.is_file()] == ["settings.json"], "no draft is left"


def test_a_projects_rules_go_to_the_file_that_is_not_committed(user):
    skill("install", "--project", "--allow")
    folder = user / "project" / ".claude"
    assert json.loads((folder / "settings.local.json").read_text()) == {"permissions": {"allow": RULES}}
    assert not (folder / "settings.json").exists()


def test_the_sandbox_is_told_too_where_it_is_on(user):
    path = user / ".claude" / "settings.json"
    path.parent.mkdir()
    path.write_text('{"sandbox": {"enabled": true}}')
    assert skill("install", "--allow")["added"] == [*RULES, "rlm-sandbox *"]
    assert json.loads(path.read_text())["sandbox"] == {"enabled": True, "excludedCommands": ["rlm-sandbox *"]}


@pytest.mark.parametrize(
    "content", ["{", "[]", '"x"', '{"permissions": []}', '{"permissions": {"allow": "all"}}', "\ud800", "[" * 100_000]
)
def test_settings_that_are_not_understood_are_refused_and_kept(user, content):
    path = user / ".claude" / "settings.json"
    path.parent.mkdir()
    raw = content.encode("utf-8", "surrogatepass")
    path.write_bytes(raw)
    assert "by hand" in skill("install", "--allow", code=2).hint
    assert path.read_bytes() == raw


def test_settings_behind_a_link_are_changed_where_they_are(user):
    real = user / "dotfiles" / "settings.json"
    real.parent.mkdir()
    real.write_text("{}")
    link = user / ".claude" / "settings.json"
    link.parent.mkdir()
    link.symlink_to(real)
    rules.merge(link, plugin=False)
    assert link.is_symlink()
    assert json.loads(real.read_text()) == {"permissions": {"allow": RULES}}


def test_the_plugin_has_its_own_name_in_the_rules_and_a_launcher_that_knows_the_program(user):
    done = skill("install", "--plugin")
    folder = user / ".local" / "share" / "rlm-sandbox" / "plugin"
    assert done["installed"] == str(folder)
    assert done["rules"]["permissions"]["allow"][0] == "Skill(rlm-sandbox:rlm-sandbox)"
    assert done["next"] == [f"claude plugin marketplace add {folder}", "claude plugin install rlm-sandbox@rlm-sandbox"]
    assert (folder / "bin" / "program").read_text() == f"{install.program()}\n"
    shown = subprocess.run(
        [folder / "bin" / "rlm-sandbox", "--version"], env={"PATH": "/usr/bin:/bin", "HOME": str(user)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "rlm-sandbox, version" in shown.stdout
    assert skill("uninstall", "--plugin")["removed"] is True
    assert not folder.exists()


def test_the_client_is_asked_to_take_the_plugin_where_it_is_there(user, monkeypatch):
    fake = user / "bin" / "claude"
    fake.parent.mkdir()
    fake.write_text(f'#!/bin/sh\necho "$*" >>{user}/said\n')
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}:/usr/bin:/bin")
    assert skill("install", "--plugin", "--project")["next"] == []
    folder = user / ".local" / "share" / "rlm-sandbox" / "plugin"
    assert (user / "said").read_text().splitlines() == [
        f"plugin marketplace add {folder} --scope local",
        "plugin install rlm-sandbox@rlm-sandbox --scope local",
    ]
    fake.write_text("#!/bin/sh\nexit 1\n")
    assert len(skill("install", "--plugin")["next"]) == 2, "what the client refused is left to the user"


def launcher(folder, env):
    return subprocess.run([folder / "rlm-sandbox", "a b", "c"], env=env, capture_output=True, text=True, check=False)


@pytest.fixture
def bare(tmp_path):
    """The launcher as it is in a clone that a client copied: it knows no program."""
    source = files.bundle()
    plugin = tmp_path / "cache" / "plugin"
    install.copy(plugin, source)
    return plugin / "bin"


def program(folder, answer):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "rlm-sandbox"
    path.write_text(f'#!/bin/sh\necho "{answer}: $#"\n')
    path.chmod(0o755)


def test_the_launcher_finds_the_program_on_the_path_and_never_itself(bare, tmp_path):
    program(tmp_path / "real", "found")
    other = tmp_path / "copy" / "bin"
    install.copy(tmp_path / "copy", files.bundle())
    env = {"PATH": f"{bare}:{other}:{tmp_path}/real:/usr/bin:/bin", "HOME": str(tmp_path)}
    assert launcher(bare, env).stdout == "found: 2\n"


def test_the_launcher_looks_where_install_sh_puts_it(bare, tmp_path):
    program(tmp_path / ".local" / "bin", "home")
    assert launcher(bare, {"PATH": f"{bare}:/usr/bin:/bin", "HOME": str(tmp_path)}).stdout == "home: 2\n"


def test_the_launcher_says_what_to_install(bare, tmp_path):
    done = launcher(bare, {"PATH": f"{bare}:/usr/bin:/bin", "HOME": str(tmp_path)})
    assert done.returncode == 3
    assert done.stderr.startswith("[rlm] error prerequisite: rlm-sandbox is not installed (")


def test_the_launcher_is_executable_in_the_clone():
    assert os.access(files.bundle() / "bin" / "rlm-sandbox", os.X_OK)


def test_the_program_of_this_installation_is_the_one_beside_its_python():
    assert install.program() == Path(sys.executable).with_name("rlm-sandbox")


def test_settings_that_are_refused_leave_nothing_installed(user):
    (user / ".claude").mkdir()
    (user / ".claude" / "settings.json").write_text("// mine\n{}", encoding="utf-8")
    skill("install", "--allow", code=2)
    assert [path.name for path in (user / ".claude").iterdir()] == ["settings.json"]


def test_an_empty_settings_file_is_one_without_settings(user):
    (user / ".claude").mkdir()
    path = user / ".claude" / "settings.json"
    path.write_text(" \n", encoding="utf-8")
    skill("install", "--allow")
    assert json.loads(path.read_text(encoding="utf-8"))["permissions"]["allow"] == RULES


def test_half_a_surrogate_pair_in_the_settings_stays_as_it_was(user):
    (user / ".claude").mkdir()
    path = user / ".claude" / "settings.json"
    path.write_text('{"x": "\\ud800"}', encoding="utf-8")
    skill("install", "--allow")
    assert json.loads(path.read_text(encoding="utf-8")) == {"x": "\ud800", "permissions": {"allow": RULES}}


@pytest.mark.parametrize("command", ["install", "uninstall"])
def test_a_link_to_a_folder_of_that_name_that_is_no_skill_is_left_alone(user, command):
    other = user / "work" / "rlm-sandbox"
    other.mkdir(parents=True)
    target = user / ".claude" / "skills" / "rlm-sandbox"
    target.parent.mkdir(parents=True)
    target.symlink_to(other)
    skill(command, code=2)
    assert target.readlink() == other


@pytest.mark.parametrize("given", ["a folder", "./a folder", "/"])
def test_install_sh_takes_a_folder_as_its_caller_means_it(tmp_path, given):
    """With a Python that installs nothing: where things go is what is asked."""
    root = Path(__file__).resolve().parents[2]
    clone, elsewhere, home = tmp_path / "the clone", tmp_path / "else where", tmp_path / "a home"
    folder = elsewhere / "a folder"
    for path in (clone / "scripts", folder / "venv" / "bin", home):
        path.mkdir(parents=True)
    for name in ("install.sh", "scripts/lib.sh"):
        (clone / name).write_text((root / name).read_text(encoding="utf-8"), encoding="utf-8")
    program(folder / "venv" / "bin", "ours")
    (folder / "venv" / "bin" / "python").write_text("#!/bin/sh\n")
    (folder / "venv" / "bin" / "python").chmod(0o755)
    argument = str(folder) if given == "/" else given
    subprocess.run(
        ["sh", str(clone / "install.sh"), argument], cwd=elsewhere, env={"HOME": str(home), "PATH": "/usr/bin:/bin"},
        check=True, capture_output=True,
    )  # fmt: skip
    linked = home / ".local" / "bin" / "rlm-sandbox"
    assert linked.resolve() == (folder / "venv" / "bin" / "rlm-sandbox").resolve()
    assert sorted(path.name for path in clone.iterdir()) == ["install.sh", "scripts"]
