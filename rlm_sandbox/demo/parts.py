"""The vocabulary shared by noise and incidents: time stamps of several services, and random identifiers.

A line is rendered once without its time, as ``(head, stamp, tail)``; the writer puts the second's stamp between. That is what
makes 200 MB cheap: the expensive part, rendering, happens for a pool and not for every line.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime
    from random import Random

    Line = tuple[str, int, str]


class Stamp(IntEnum):
    """Index of a time format in what :func:`stamps` returns. Fractions of a second belong to the line's tail."""

    ISO = 0
    ACCESS = 1
    NGINX = 2
    SYSLOG = 3
    JAVA = 4
    NONE = 5
    """For the lines of a stack trace, which carry no time."""


def stamps(now: datetime) -> tuple[str, str, str, str, str, str]:
    """Return ``now`` in every format, in the order of :class:`Stamp`."""
    iso = now.strftime("%Y-%m-%dT%H:%M:%S")
    return (
        iso,
        now.strftime("%d/%b/%Y:%H:%M:%S +0000"),
        iso.replace("-", "/").replace("T", " "),
        now.strftime("%b %d %H:%M:%S"),
        iso.replace("T", " "),
        "",
    )


def address(rng: Random) -> str:
    """Return an IPv4 address from the ranges reserved for documentation."""
    return f"{rng.choice(('192.0.2', '198.51.100', '203.0.113'))}.{rng.randrange(1, 255)}"


def hexadecimal(rng: Random, digits: int) -> str:
    """Return that many random hexadecimal digits."""
    return f"{rng.getrandbits(4 * digits):0{digits}x}"


def pid(rng: Random) -> int:
    """Return a process number."""
    return rng.randrange(300, 65000)


def syslog(program: str, text: str) -> Line:
    """Render one syslog line of the database host or the web host."""
    host = "db-1" if program.startswith(("postgres", "kernel")) else "web-2"
    return ("", Stamp.SYSLOG, f" {host} {program}: {text}\n")


def java(rng: Random, level: str, logger: str, text: str) -> Line:
    """Render one line of the order service, in the layout of a usual Java logging pattern."""
    thread = rng.randrange(1, 64)
    return (
        "",
        Stamp.JAVA,
        f",{rng.randrange(1000):03d} {level:<5} [http-nio-8080-exec-{thread}] com.acme.orders.{logger} - {text}\n",
    )


def service(rng: Random, level: str, name: str, text: str, extra: str) -> Line:
    """Render one line of a service that logs JSON; ``extra`` is the rest of the object, members and all."""
    head = '{"ts":"'
    tail = f'.{rng.randrange(1000):03d}Z","level":"{level}","service":"{name}","msg":"{text}",{extra}}}\n'
    return (head, Stamp.ISO, tail)


def worker(rng: Random, level: str, text: str) -> Line:
    """Render one line of the Python task worker."""
    return ("", Stamp.JAVA, f",{rng.randrange(1000):03d} {level} worker-{rng.randrange(1, 9)} tasks: {text}\n")


def trace(*lines: str) -> list[Line]:
    """Render the lines that follow the first one of a record."""
    return [(line, Stamp.NONE, "\n") for line in lines]
