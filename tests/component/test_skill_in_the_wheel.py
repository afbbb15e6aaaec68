"""The skill as it is shipped: in the wheel, installed by pip into an environment of its own."""

import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.component

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The program of an environment into which pip put the wheel; what it depends on is borrowed from this environment."""
    folder = tmp_path_factory.mktemp("venv")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    site = next(folder.glob("lib/python*/site-packages"))
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "install"]
    quiet = ["--quiet", "--no-deps", "--no-index", "--ignore-installed", "--disable-pip-version-check"]
    subprocess.run([*pip, *quiet, str(wheel)], check=True, capture_output=True)
    return folder / "bin" / "rlm-sandbox"


def run(program, home, *args):
    env = {"PATH": "/usr/bin:/bin", "HOME": str(home)}
    done = subprocess.run([program, *args], env=env, cwd=home, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_the_wheel_holds_every_file_of_the_plugin(wheel):
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("rlm_sandbox/skill/bundle/")}
    files = {path.relative_to(ROOT / "skill").as_posix() for path in (ROOT / "skill").rglob("*") if path.is_file()}
    assert inside == {f"rlm_sandbox/skill/bundle/{name}" for name in files}


def test_it_installs_from_the_wheel_alone(installed, tmp_path):
    done = run(installed, tmp_path, "skill", "install")
    target = tmp_path / ".claude" / "skills" / "rlm-sandbox"
    assert done["how"] == "link"
    assert installed.parent.parent in target.resolve().parents
    assert (target / "SKILL.md").read_bytes() == (ROOT / "skill" / "rlm-sandbox" / "SKILL.md").read_bytes()
    assert run(installed, tmp_path, "skill", "uninstall")["removed"] is True


def test_the_plugin_from_the_wheel_runs_the_wheels_program(installed, tmp_path):
    folder = Path(run(installed, tmp_path, "skill", "install", "--plugin")["installed"])
    assert (folder / "bin" / "program").read_text(encoding="utf-8") == f"{installed}\n"
    assert os.access(folder / "bin" / "rlm-sandbox", os.X_OK)
    assert run(folder / "bin" / "rlm-sandbox", tmp_path, "list")["sessions"] == []
