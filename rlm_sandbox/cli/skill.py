"""The ``skill`` commands: bring the skill to Claude Code, take it away, show its pages."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from pathlib import Path

import click

from rlm_sandbox import settings
from rlm_sandbox.cli import output
from rlm_sandbox.cli.common import chosen, examples, format_option, group, group_format_option
from rlm_sandbox.skill import files, install, rules
from rlm_sandbox.skill.files import NAME

CLIENT_S = 120.0
"""Two seconds are usual; the client may look for updates first."""


@group(
    "skill",
    epilog=examples(
        "rlm-sandbox skill install",
        "rlm-sandbox skill install --project --allow",
        "rlm-sandbox skill install --plugin",
        "rlm-sandbox skill uninstall",
        "rlm-sandbox skill show helpers",
    ),
)
@group_format_option
def skill_command() -> None:
    """Bring the skill to Claude Code, take it away, or show its pages."""


_project = click.option("--project", is_flag=True, help="For this folder's project instead of for the user.")
_plugin = click.option("--plugin", "as_plugin", is_flag=True, help="As a plugin, from a local marketplace.")


@skill_command.command(
    "install",
    epilog=examples(
        "rlm-sandbox skill install",
        "rlm-sandbox skill install --allow",
        "rlm-sandbox skill install --project",
        "rlm-sandbox skill install --plugin",
    ),
)
@_project
@_plugin
@click.option("--allow", is_flag=True, help="Also add the permission rules to the client's settings.")
@format_option
def install_command(project: bool, as_plugin: bool, allow: bool, form: str | None) -> None:
    """Install the skill for Claude Code. Running it again brings it up to date.

    Without --allow, the client's settings stay as they are and the rules are printed.
    """
    form = chosen(form)
    target = _target(project=project, as_plugin=as_plugin)
    config = _settings_file(project=project)
    if allow:
        rules.check(config, plugin=as_plugin)
    later: list[str] = []
    if as_plugin:
        install.plugin(target)
        how = "plugin"
        later = _enable(target, project=project)
    else:
        how = install.copy(target) if project else install.link(target)
    added = rules.merge(config, plugin=as_plugin) if allow else []
    document = {
        "format_version": 1,
        "installed": str(target),
        "how": how,
        "settings": str(config),
        "rules": rules.wanted(plugin=as_plugin),
        "allowed": allow,
        "added": added,
        "next": later,
    }
    output.document(document, form, "skill_installed")


@skill_command.command(
    "uninstall",
    epilog=examples("rlm-sandbox skill uninstall", "rlm-sandbox skill uninstall --project --allow"),
)
@_project
@_plugin
@click.option("--allow", is_flag=True, help="Also take the permission rules out of the client's settings.")
@format_option
def uninstall_command(project: bool, as_plugin: bool, allow: bool, form: str | None) -> None:
    """Remove the skill; harmless when it is not installed."""
    form = chosen(form)
    target = _target(project=project, as_plugin=as_plugin)
    later = _disable(project=project) if as_plugin else []
    removed = install.remove(target)
    config = _settings_file(project=project)
    document = {
        "format_version": 1,
        "path": str(target),
        "removed": removed,
        "settings": str(config),
        "withdrawn": rules.withdraw(config) if allow else [],
        "next": later,
    }
    output.document(document, form, "skill_removed")


@skill_command.command(
    "show", epilog=examples("rlm-sandbox skill show helpers", "rlm-sandbox skill show troubleshooting")
)
@click.argument("page", default="skill")
@format_option
def show_command(page: str, form: str | None) -> None:
    """Print a page of the skill: skill, helpers, strategies, troubleshooting or client-settings."""
    if chosen(form) == "text":
        output.text(files.page(page).rstrip("\n") + f"\n[rlm] ok page={page}")
    else:
        output.text(files.page(page))


def _target(*, project: bool, as_plugin: bool) -> Path:
    if as_plugin:
        return settings.data_folder() / "plugin"
    return _client_folder(project=project) / "skills" / NAME


def _client_folder(*, project: bool) -> Path:
    return Path.cwd() / ".claude" if project else settings.claude_folder()


def _settings_file(*, project: bool) -> Path:
    """A project's rules are this user's own: they go to the file that is not committed."""
    return _client_folder(project=project) / ("settings.local.json" if project else "settings.json")


def _enable(target: Path, *, project: bool) -> list[str]:
    """Have the client take the plugin; returns the commands that are left to the user, none when it did."""
    scope = ["--scope", "local"] if project else []
    return _client(
        ["plugin", "marketplace", "add", str(target), *scope], ["plugin", "install", f"{NAME}@{NAME}", *scope]
    )


def _disable(*, project: bool) -> list[str]:
    scope = ["--scope", "local"] if project else []
    return _client(["plugin", "uninstall", f"{NAME}@{NAME}", *scope], ["plugin", "marketplace", "remove", NAME])


def _client(*commands: list[str]) -> list[str]:
    program = shutil.which("claude")
    left = [shlex.join(["claude", *words]) for words in commands]
    if program is None:
        return left
    for number, words in enumerate(commands):
        try:
            done = subprocess.run(  # noqa: S603 - the client that the user has on the PATH, with words of ours
                [program, *words],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=CLIENT_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            return left[number:]
        if done.returncode != 0:
            return left[number:]
    return []
