"""Print an image's labels as ``docker build`` options: ``python -m rlm_sandbox.container.labels base``."""

from __future__ import annotations

import shlex
import sys

from rlm_sandbox.container.image import labels_of


def options(name: str) -> str:
    """Return ``--label k=v`` for each label; values have no spaces, so that a shell's plain ``$(...)`` keeps them whole."""
    return " ".join(f"--label {shlex.quote(f'{key}={value}')}" for key, value in labels_of(name).items())


if __name__ == "__main__":
    sys.stdout.write(options(sys.argv[1]) + "\n")
