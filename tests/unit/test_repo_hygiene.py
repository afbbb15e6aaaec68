"""The repository as a whole: nothing of a machine in it, locked with hashes, its rooms apart, its documents in step."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
LOCKS = sorted((ROOT / "requirements").glob("*.txt"))


def tracked():
    """Return every file that a commit of the work tree would hold: the tracked ones and the new ones that are not ignored."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    paths = [ROOT / os.fsdecode(name) for name in listing.stdout.split(b"\0") if name]
    return [path for path in paths if path.is_file() and not path.is_symlink()]


def found(pattern, *, only=lambda path: True):
    """Return where a pattern stands, as ``path:line``."""
    compiled = re.compile(pattern)
    hits = []
    for path in tracked():
        if path == Path(__file__) or not only(path):
            continue
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        hits += [f"{path.relative_to(ROOT)}:{number}" for number, line in enumerate(lines, 1) if compiled.search(line)]
    return hits


def python_files(*folders):
    return [path for folder in folders for path in sorted((ROOT / "rlm_sandbox" / folder).rglob("*.py"))]


def imports(path):
    """Return the top-level names of all modules that a file imports, wherever the statement stands."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module)
    return names


def locked(path):
    """Return ``{name: [hashes]}`` of a lock file."""
    entries = re.split(r"\n(?=[A-Za-z0-9])", "\n" + path.read_text(encoding="utf-8"))
    packages = [entry for entry in entries if re.match(r"[A-Za-z0-9][\w.-]*==", entry)]
    return {re.split("==", entry)[0].lower(): re.findall(r"--hash=sha256:([0-9a-f]{64})", entry) for entry in packages}


def plain_name(requirement):
    return re.match(r"[\w-]+", requirement)[0].lower()


def test_no_path_of_a_machine_is_in_the_repository():
    assert found(r"(?<![\w.-])/(work|root|farm)/|/tmp/bash_jobs|/home/(?!someone\b|user\b|you\b)\w+/") == []


def test_no_address_of_a_package_index_is_in_the_repository():
    assert (
        found(r"https?://[^ )>\"']*/(simple|packages)(/|\b)|--(extra-)?index-url|--find-links|(?<!-no-emit-)find-links")
        == []
    )


def test_no_host_of_a_registry_is_in_the_repository():
    hosts = ("deb.debian", "pypi", "files.pythonhosted", "registry.npmjs")
    assert found("|".join(rf"\b{re.escape(host)}\.org" for host in hosts)) == []


def test_no_key_is_in_the_repository():
    assert (
        found(
            r"sk-ant-[A-Za-z0-9]{4,}-[\w-]{20,}|sk-(proj-)?[A-Za-z0-9]{32,}|AKIA(?![A-Z0-9]*EXAMPLE)[A-Z0-9]{16}|-----BEGIN [A-Z ]*PRIVATE KEY-----$"
        )
        == []
    )


def test_no_file_is_large():
    assert [str(path) for path in tracked() if path.stat().st_size > 1_000_000] == []


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.name)
def test_every_locked_package_has_an_exact_version_and_hashes_and_nothing_else_is_in_the_file(lock):
    packages = locked(lock)
    assert packages
    assert [name for name, hashes in packages.items() if not hashes] == []
    for line in lock.read_text(encoding="utf-8").splitlines():
        assert re.fullmatch(r"#.*|[\w.-]+==[\w.+!-]+( ; .+)? \\|    --hash=sha256:[0-9a-f]{64}( \\)?", line), line


def test_the_lock_files_hold_what_the_project_asks_for():
    runtime, local, dev = (locked(ROOT / "requirements" / f"{name}.txt") for name in ("runtime", "local", "dev"))
    needed = {plain_name(requirement) for requirement in PROJECT["project"]["dependencies"]}
    extras = {plain_name(item) for items in PROJECT["project"]["optional-dependencies"].values() for item in items}
    group = {plain_name(requirement) for requirement in PROJECT["dependency-groups"]["dev"]}
    assert needed <= runtime.keys()
    assert needed | extras <= local.keys()
    assert needed | extras | group <= dev.keys()


def test_the_lock_files_agree_with_each_other():
    versions = {}
    for lock in LOCKS:
        for name, version, marker in re.findall(
            r"(?m)^([\w.-]+)==([\w.+!-]+)( ; .+)? \\$", lock.read_text(encoding="utf-8")
        ):
            versions.setdefault((name, marker), set()).add(
                version
            )  # one package may need another version on another Python
    assert versions
    assert {place: found for place, found in versions.items() if len(found) > 1} == {}


def test_every_dependency_has_its_reason_in_the_documents():
    text = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")
    rows = {name.strip() for line in re.findall(r"(?m)^\| ([^|]+) \|", text) for name in line.split(",")}
    asked = [*PROJECT["project"]["dependencies"], *PROJECT["dependency-groups"]["dev"]]
    asked += [item for items in PROJECT["project"]["optional-dependencies"].values() for item in items]
    assert {plain_name(requirement) for requirement in asked} - rows == set()


def test_the_changelog_is_in_the_form_it_names():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert text.startswith("# Changelog\n")
    versions = re.findall(r"(?m)^## (.+)$", text)
    assert versions[0] == "[Unreleased]"
    assert all(re.fullmatch(r"\[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d", version) for version in versions[1:])
    kinds = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert set(re.findall(r"(?m)^### (.+)$", text)) <= kinds


def test_the_contracts_between_packages_hold():
    done = subprocess.run(
        [sys.executable, "-c", "import sys; from importlinter.cli import lint_imports_command as c; sys.exit(c())"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.parametrize("path", python_files("wire", "guest"), ids=lambda path: f"{path.parent.name}/{path.name}")
def test_what_goes_into_the_image_imports_the_standard_library_alone(path):
    foreign = {name for name in imports(path) if name.split(".")[0] not in sys.stdlib_module_names}
    assert {name for name in foreign if not name.startswith(("rlm_sandbox.wire", "rlm_sandbox.guest"))} <= {
        "rlm_sandbox"
    }


def test_only_settings_reads_the_environment():
    readers = {
        path.relative_to(ROOT / "rlm_sandbox").parts[0]
        for path in python_files("")
        if re.search(r"\bos\.(environ|getenv)\b|from os import .*environ", path.read_text(encoding="utf-8"))
    }
    # guest: its own environment; doctor: the attacks run in the guest.
    assert readers <= {"settings", "guest", "doctor"}


def test_only_the_command_line_imports_click():
    users = {path.relative_to(ROOT / "rlm_sandbox").parts[0] for path in python_files("") if "click" in imports(path)}
    assert users <= {"cli"}


def test_nothing_imports_a_serialiser_that_can_run_code():
    dangerous = {"pickle", "dill", "marshal", "shelve", "cloudpickle"}
    assert [str(path) for path in python_files("") if {name.split(".")[0] for name in imports(path)} & dangerous] == []


def test_links_between_documents_lead_somewhere():
    link = re.compile(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)")
    documents = [path for path in tracked() if path.suffix == ".md"]
    links = [(path, target) for path in documents for target in link.findall(path.read_text(encoding="utf-8"))]
    assert [(str(path), target) for path, target in links if not (path.parent / target).exists()] == []


def test_the_ci_entry_runs_the_test_command_of_the_readme_and_nothing_else():
    assert (ROOT / ".ci" / "run").read_text(encoding="utf-8") == "#!/bin/sh\nexec make test\n"
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    quick = re.search(r"## Quick start\n\n```sh\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert quick[1].split("\n") == ["make demo", "make test", ""]
