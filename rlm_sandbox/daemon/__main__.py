"""Entry point of the broker daemon: ``python -m rlm_sandbox.daemon``; started on demand by the client."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import json
import logging
import os
import resource
import sys

from rlm_sandbox import settings
from rlm_sandbox.daemon.server import AlreadyServedError, acquire, serve
from rlm_sandbox.errors import RLMError


def main() -> int:
    """Serve the state folder in the background; returns an exit code.

    Why it could not is told in the log, and on stdout to the command that started it.
    """
    try:
        run()
    except AlreadyServedError as exc:
        logging.getLogger(__name__).info("%s", exc.message)
    except RLMError as exc:
        print(json.dumps(exc.to_json()), flush=True)  # noqa: T201 - read by the client that started us
        logging.getLogger(__name__).error("%s (%s)", exc.message, exc.hint)  # noqa: TRY400 - an expected failure has no traceback
        return exc.exit_code
    return 0


_PR_SET_DUMPABLE = 4


def protect() -> None:
    """Keep this process's memory, which holds the keys, out of core dumps and from the user's other processes.

    The limit alone does not do: where cores go to a program, the kernel ignores a limit of zero.
    """
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform.startswith("linux"):
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def run(*, idle_s: float | None = None) -> None:
    """Serve the state folder until told to end. Raises :class:`RLMError`."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stderr)
    logging.getLogger("httpx2").setLevel(logging.WARNING)  # a line for every request: the ledger has them
    os.umask(0o077)
    protect()
    home = settings.home()
    acquire(home)
    gc.freeze()  # what was imported lives for ever: keep the collector off it
    options = {} if idle_s is None else {"idle_s": idle_s}
    asyncio.run(serve(home, engine_host=settings.engine_host(), **options))


if __name__ == "__main__":
    sys.exit(main())
