"""State folders for tests that drive the real command line; each is proven empty of processes and containers at its end."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.support.cli import Home, Live

if TYPE_CHECKING:
    from collections.abc import Iterator

LOG = """\
2026-11-22T10:00:00Z INFO  api request id=1 path=/health
2026-11-22T10:00:01Z ERROR db  connection to 10.0.0.7 lost
2026-11-22T10:00:02Z INFO  api request id=2 path=/users
2026-11-22T10:00:03Z ERROR db  connection to 10.0.0.9 lost
2026-11-22T10:00:04Z WARN  cache evicted 17 entries — naïve
"""
"""Five lines, two errors, two characters that are no ASCII."""


@pytest.fixture(scope="session")
def cli(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    """The command line on a state folder that the whole test session shares."""
    home = Home(tmp_path_factory.mktemp("home"))
    yield home
    home.close()


@pytest.fixture
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    """The command line on a state folder of the test's own, for tests of the daemon's life."""
    home = Home(tmp_path_factory.mktemp("fresh") / "home")
    yield home
    home.close()


@pytest.fixture
def deep(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    """As ``fresh``, where the path is longer than a Unix socket's address may be."""
    path = tmp_path_factory.mktemp("deep")
    while len(os.fsencode(path)) < 200:
        path /= "a-folder-with-a-rather-long-name"
    home = Home(path / "state of mine")
    yield home
    home.close()


@pytest.fixture(scope="session")
def log_file(tmp_path_factory: pytest.TempPathFactory):
    """A small log that everyone may read."""
    path = tmp_path_factory.mktemp("input") / "app.log"
    path.write_text(LOG, encoding="utf-8")
    path.chmod(0o644)
    return path


@pytest.fixture(scope="module")
def live(cli: Home, log_file) -> Iterator[Live]:
    """A session on the small log, shared by the tests of a module."""
    with cli.session(log_file, "--budget", "1000") as started:
        yield Live(cli, started)
