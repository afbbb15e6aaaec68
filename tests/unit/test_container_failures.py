"""The texts are as engines print them: those of 20.10 captured, those of newer ones from Moby's and runc's sources."""

import errno
import os

import docker.errors
import pytest
import requests
import urllib3.exceptions

from rlm_sandbox.container.failures import boundary, explain, is_gone, one_line, translate
from rlm_sandbox.errors import EngineError, ImageError, InputError, PrerequisiteError, UsageError

pytestmark = pytest.mark.unit

CALLER = [
    (
        'invalid mount config for type "bind": bind source path does not exist: /data/a b.log',
        InputError,
        "/data/a b.log",
    ),
    ("Unknown runtime specified kata", PrerequisiteError, "kata"),
    ("unknown or invalid runtime name: runsc", PrerequisiteError, "runsc"),
    ("No such image: rlm-sandbox/base:0.1.0", ImageError, "rlm-sandbox/base:0.1.0"),
    ("pull access denied for nosuch, repository does not exist or may require 'docker login'", ImageError, "nosuch"),
    ("Range of CPUs is from 0.01 to 2.00, as there are only 2 CPUs available", UsageError, "0.01 to 2.00"),
    ("range of CPUs is from 0.01 to 8.00, as there are only 8 CPUs available", UsageError, "0.01 to 8.00"),
    ("Minimum memory limit allowed is 6MB", UsageError, "6MB"),
    (
        "Mounts denied: \nThe path /data/x is not shared from the host and is not known to Docker.",
        InputError,
        "may not mount",
    ),
    (
        (
            "failed to create shim task: OCI runtime create failed: runc create failed: unable to start container process: error"
            ' during container init: error mounting "/etc" to rootfs at "/etc/hosts": mount /etc:/etc/hosts (via /proc/self/fd/6),'
            " flags: 0x5001: not a directory: unknown: Are you trying to mount a directory onto a file (or vice-versa)?"
        ),
        InputError,
        "changed its type",
    ),
    (
        (
            "failed to create shim task: OCI runtime create failed: runc create failed: unable to start container process: exec:"
            ' "/usr/local/bin/python3.11": stat /usr/local/bin/python3.11: no such file or directory: unknown'
        ),
        ImageError,
        "/usr/local/bin/python3.11",
    ),
]

ENGINE = [
    ("write /var/lib/docker/tmp/x: no space left on device", "disk is full"),
    ("seccomp profiles are not supported on this daemon, you cannot specify a custom seccomp profile", "seccomp"),
    ("OCI runtime create failed: seccomp: config provided but seccomp not supported: unknown", "seccomp"),
    (
        "client version 1.41 is too old. Minimum supported API version is 1.44, please upgrade your client",
        "API versions",
    ),
    (
        (
            "OCI runtime create failed: unable to start container process: can't get final child's PID from pipe: cgroup"
            " controller memory is not available"
        ),
        "resource limits",
    ),
    ("No such container: 0a1b", "gone"),
    ("something no table knows", "something no table knows"),
]


@pytest.mark.parametrize(("text", "kind", "part"), CALLER)
def test_what_the_caller_asked_for_wrongly_is_the_callers_error(text, kind, part):
    error = explain(text, "create the container")
    assert type(error) is kind
    assert part in error.message
    assert error.hint


@pytest.mark.parametrize(("text", "part"), ENGINE)
def test_what_the_engine_cannot_do_is_the_engines_error(text, part):
    error = explain(text, "create the container")
    assert type(error) is EngineError
    assert part in error.message
    assert error.hint


def wrapped(inner):
    """Nest an OS error as requests and docker-py do."""
    middle = requests.exceptions.ConnectionError(urllib3.exceptions.ProtocolError("Connection aborted.", inner))
    outer = docker.errors.DockerException(f"Error while fetching server API version: {middle}")
    outer.__cause__ = middle
    return outer


@pytest.mark.parametrize(
    ("number", "message", "hint"),
    [
        (errno.ENOENT, "no Docker engine is running", "make setup"),
        (errno.ECONNREFUSED, "no Docker engine answers", "start Docker"),
        (errno.EACCES, "no permission", "docker group"),
        (errno.EPERM, "not permitted", "excludedCommands"),
    ],
)
def test_an_unreachable_socket_names_its_own_fix(number, message, hint):
    error = translate(wrapped(OSError(number, os.strerror(number))), "answer")
    assert type(error) is EngineError
    assert message in error.message
    assert hint in error.hint


def test_the_fix_for_a_sandboxed_shell_names_the_setting_to_copy():
    error = translate(wrapped(PermissionError(errno.EPERM, "Operation not permitted")), "answer")
    assert '"excludedCommands": ["rlm-sandbox *"]' in error.hint


@pytest.mark.parametrize("silent", [requests.exceptions.ReadTimeout("read timed out"), TimeoutError()])
def test_an_engine_that_does_not_answer_is_called_slow(silent):
    assert "in time" in translate(silent, "start the container").message


def test_a_name_that_does_not_resolve_is_not_called_slow():
    with pytest.raises(docker.errors.DockerException) as caught:
        docker.APIClient("tcp://nohost.invalid:1", version="auto")
    assert "nohost.invalid" in translate(caught.value, "answer").message


def test_a_refused_port_is_not_called_slow():
    with pytest.raises(docker.errors.DockerException) as caught:
        docker.APIClient("tcp://127.0.0.1:1", version="auto")
    assert "no Docker engine answers" in translate(caught.value, "answer").message


def test_the_boundary_keeps_the_cause_and_lets_our_own_errors_through():
    cause = OSError(errno.ENOENT, "x")
    with pytest.raises(EngineError) as caught, boundary("answer"):
        raise cause
    assert caught.value.__cause__ is cause
    with pytest.raises(UsageError, match="mine"), boundary("answer"):
        raise UsageError("mine")


def test_the_engines_words_are_one_bounded_printable_line():
    assert one_line("a\n\tb\x1b[31mc") == "a b [31mc"
    assert len(one_line("x" * 10_000)) == 400


@pytest.mark.parametrize(
    ("text", "gone"),
    [
        ("Cannot kill container: 0a: No such container: 0a", True),
        ("removal of container 0a is already in progress", True),
        ("Cannot kill container: 0a: Container 0a is not running", True),
        ("You cannot remove a running container", False),
    ],
)
def test_a_container_that_is_going_is_gone(text, gone):
    assert is_gone(docker.errors.APIError("x", explanation=text)) is gone


def test_any_404_means_gone_but_an_os_error_does_not():
    assert is_gone(docker.errors.NotFound("x"))
    assert not is_gone(OSError("no such container"))
