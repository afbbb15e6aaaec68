"""A llama.cpp server in a process of its own: a small real model on loopback, for as long as its parent lives.

Run by path, not imported. Protocol with the parent: one JSON line on stdin (``gguf, key, alias, slots, threads, slot_tokens``),
one JSON line on stdout (``{"port": N}`` once it answers, or ``{"error": text}``), then silence until stdin ends, which
it does when the parent closes it or dies in any way. The key comes by stdin because arguments and environment of a process
can be read by others.

A process apart, since native code that reads a file of weights may crash, and must not take the broker's ledger with it.
"""

from __future__ import annotations

import json
import os
import select
import sys
from typing import Any, TextIO

ORPHAN_CHECK_S = 2.0
"""Seconds between looks at the parent, for the case that another process holds the pipe open."""

NICENESS = 5
"""The broker and the cells come first when cores are few."""


def main() -> None:
    """Serve until stdin ends."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever the library prints is not an answer
    parent = os.getppid()
    os.nice(NICENESS)
    config = json.loads(sys.stdin.buffer.readline(65_536))
    try:
        server = _start(config)
        address = server.listening_address
    except (RuntimeError, ValueError, OSError, ImportError) as error:
        _say(out, {"error": str(error)[:300] or type(error).__name__})
        os._exit(1)
    _say(out, {"port": int(str(address).rsplit(":", 1)[1])})
    while os.getppid() == parent:
        ready, _, _ = select.select([0], [], [], ORPHAN_CHECK_S)
        if ready and not os.read(0, 4096):
            break
    os._exit(0)  # the library's threads have nothing to save, and joining them can hang


def _say(out: TextIO, message: dict[str, object]) -> None:
    print(json.dumps(message), file=out, flush=True)


def _start(config: dict[str, Any]) -> Any:
    import xllamacpp  # noqa: PLC0415 - an optional extra

    slots, slot_tokens = int(config["slots"]), int(config["slot_tokens"])
    params = xllamacpp.CommonParams()
    params.model.path = str(config["gguf"])
    params.model_alias = {str(config["alias"])}
    params.api_keys = [str(config["key"])]
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.offline = True
    params.ui = False
    params.endpoint_slots = False  # it shows other sessions' prompts
    params.cors_origins = ""
    params.verbosity = 0
    params.fit_params = False
    params.n_gpu_layers = 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = int(config["threads"])
    params.n_parallel = slots
    params.n_ctx = slots * slot_tokens
    params.ctx_shift = False  # a prompt or an answer that outgrows its slot is an error, never silently shortened
    params.cache_ram_mib = 0  # no copies of prompts beyond the slots themselves
    params.sampling.temp = 0.0  # the same prompt, the same answer
    return xllamacpp.Server(params)


if __name__ == "__main__":
    main()
