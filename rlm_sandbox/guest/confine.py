"""Load the system-call allow-list from inside, and watch memory and processes, where the runtime does neither.

The filter is a classic BPF program over ``(number, architecture, arguments)``, built from the generated table of :mod:`rlm_sandbox.guest.calls`.
It is loaded by the agent before it reports and before anything untrusted exists, and every process inherits it. What cannot be loaded
is reported as not in force, and then the host does not go on.
"""

from __future__ import annotations

import ctypes
import os
import struct
from typing import Any

from rlm_sandbox.guest import calls, linux

_PR_SET_SECCOMP = 22
_PR_SET_NO_NEW_PRIVS = 38
_MODE_FILTER = 2

_LOAD = 0x20
_JEQ = 0x15
_JGE = 0x35
_JGT = 0x25
_AND = 0x54
_RET = 0x06

_ALLOW = 0x7FFF0000
_KILL = 0x80000000
_EPERM = 0x00050001
_ENOSYS = 0x00050026

_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32 = 0x40000000

_NUMBER, _ARCH, _ARGS = 0, 4, 16
_LOW = 0xFFFFFFFF

Instruction = tuple[int, int, int, int]


def program(machine: str) -> list[Instruction]:
    """Return the filter for an architecture as ``(code, jump if true, jump if false, constant)``."""
    table: dict[str, Any] = calls.TABLES[machine]
    code: list[Instruction] = [(_LOAD, 0, 0, _ARCH), (_JEQ, 1, 0, _ARCHITECTURES[machine]), (_RET, 0, 0, _KILL)]
    code += [(_LOAD, 0, 0, _NUMBER), (_JGE, 0, 1, _X32), (_RET, 0, 0, _KILL)]
    for number in table["shielded"]:
        code += [(_JEQ, 0, 4, number), (_LOAD, 0, 0, _ARGS), (_JEQ, 0, 1, 1), (_RET, 0, 0, _EPERM)]
        code.append((_LOAD, 0, 0, _NUMBER))
    for low, high in table["ranges"]:
        code += [(_JGE, 0, 2, low), (_JGT, 1, 0, high), (_RET, 0, 0, _ALLOW)]
    for number in table["absent"]:
        code += [(_JEQ, 0, 1, number), (_RET, 0, 0, _ENOSYS)]
    for number, asked in table["conditions"]:
        code += _condition(number, asked)
    code.append((_RET, 0, 0, _EPERM))
    return code


def _condition(number: int, asked: tuple[tuple[int, int, int], ...]) -> list[Instruction]:
    """Allow ``number`` when all of ``asked`` hold; otherwise go on after the block, with the number loaded again."""
    tests: list[tuple[int, int, int]] = []
    for index, mask, value in asked:
        for half in (0, 1):
            part = mask >> 32 * half & _LOW
            if part:
                tests.append((_ARGS + 8 * index + 4 * half, part, value >> 32 * half & _LOW))
    body: list[Instruction] = []
    left = sum(2 + (mask != _LOW) for _, mask, _ in tests) + 1
    for offset, mask, value in tests:
        body.append((_LOAD, 0, 0, offset))
        left -= 1
        if mask != _LOW:
            body.append((_AND, 0, 0, mask))
            left -= 1
        left -= 1
        body.append((_JEQ, 0, left, value))
    body.append((_RET, 0, 0, _ALLOW))
    return [(_JEQ, 0, len(body), number), *body, (_LOAD, 0, 0, _NUMBER)]


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_void_p))


def load() -> bool:
    """Load the filter into this process for good; False when the kernel does not take it."""
    machine = os.uname().machine
    if machine not in _ARCHITECTURES:
        return False
    raw = b"".join(struct.pack("<HBBI", *each) for each in program(machine))
    buffer = ctypes.create_string_buffer(raw, len(raw))
    given = _Program(len(raw) // 8, ctypes.cast(buffer, ctypes.c_void_p).value)
    try:
        prctl = ctypes.CDLL(None, use_errno=True).prctl
    except OSError:
        return False
    zero = ctypes.c_ulong(0)
    if prctl(_PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1), zero, zero, zero):
        return False
    return not prctl(_PR_SET_SECCOMP, ctypes.c_ulong(_MODE_FILTER), ctypes.byref(given), zero, zero)


class Watch:
    """Limits of memory (bytes) and processes that the agent enforces by itself; 0 is none."""

    EVERY_S = 0.05
    """Seconds between two looks: in that time a bomb makes a hundred processes, or takes a hundred megabytes."""

    def __init__(self, memory: int, processes: int) -> None:
        self.memory = memory
        self.processes = processes

    def over(self) -> str | None:
        """Say which limit is exceeded now: ``memory``, ``processes`` or None."""
        if self.processes and len(linux.processes()) > self.processes:
            return "processes"
        if self.memory and linux.memory_used() > self.memory:
            return "memory"
        return None
