"""Containers that nobody owns any more: found by their labels, removed by their owner's absence or their deadline.

A container normally ends with its host process (its stdin ends). This is for what is left when that did not happen: a guest that
ignores the end of its input, an engine that was restarted, a host that lost power.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import docker.errors

from rlm_sandbox.container.attach import remove
from rlm_sandbox.container.failures import boundary
from rlm_sandbox.container.image import LABEL_FLAVOUR
from rlm_sandbox.container.launch import LABEL_DEADLINE, LABEL_HOME, LABEL_OWNER, LABEL_SESSION

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from rlm_sandbox.container.engine import Engine

logger = logging.getLogger(__name__)


def home_digest(home: Path) -> str:
    """Return the label that stands for a state folder: its containers, and no other installation's."""
    return hashlib.sha256(os.fsencode(os.path.realpath(home))).hexdigest()[:16]


def labels(*, session: str, owner: str, home: Path, deadline: float) -> dict[str, str]:
    """Return the labels of a session's container. ``deadline`` in seconds since the epoch."""
    return {
        LABEL_SESSION: session,
        LABEL_OWNER: owner,
        LABEL_HOME: home_digest(home),
        LABEL_DEADLINE: str(int(deadline)),
    }


@dataclass(frozen=True)
class Found:
    """A container with our labels."""

    id: str
    session: str
    owner: str
    deadline: int
    state: str


def containers(engine: Engine, home: Path) -> list[Found]:
    """List this state folder's containers, running or not."""
    with boundary("list containers"):
        rows: list[dict[str, Any]] = engine.api.containers(
            all=True, filters={"label": [f"{LABEL_HOME}={home_digest(home)}"]}
        )
    found = []
    for row in rows:
        names = row.get("Labels") or {}
        deadline = str(names.get(LABEL_DEADLINE, ""))
        found.append(
            Found(
                id=row["Id"],
                session=str(names.get(LABEL_SESSION, "")),
                owner=str(names.get(LABEL_OWNER, "")),
                deadline=int(deadline) if deadline.isdecimal() else 0,
                state=str(row.get("State", "")),
            )
        )
    return found


def collect_images(engine: Engine) -> int:
    """Remove guest images that lost their name to a newer build, and return how many. Those in use stay."""
    with boundary("remove old images"):
        rows = engine.api.images(filters={"dangling": True, "label": [LABEL_FLAVOUR]})
    removed = 0
    for row in rows:
        try:
            engine.api.remove_image(row["Id"])
            removed += 1
        except docker.errors.APIError:
            logger.debug("image %s is in use", row["Id"][:19])
    return removed


def collect(engine: Engine, home: Path, *, owner_alive: Callable[[str], bool], now: float | None = None) -> list[Found]:
    """Remove containers whose owner is not alive or whose deadline has passed, and return them."""
    moment = time.time() if now is None else now
    removed = []
    for found in containers(engine, home):
        if owner_alive(found.owner) and moment < found.deadline:
            continue
        remove(engine, found.id)
        logger.info("removed orphan %s of session %s", found.id[:12], found.session)
        removed.append(found)
    return removed
