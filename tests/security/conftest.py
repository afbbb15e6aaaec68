"""Programs in hardened and in plain containers, as the container tests have them."""

from tests.container.conftest import base, engine, probe, run, start, unconfined

__all__ = ["base", "engine", "probe", "run", "start", "unconfined"]
