"""From an image, a profile and an admitted input to a running container, or to nothing at all.

The order is the point: create, attach, then start, so that no byte of the guest can come before there is somebody to read it. Whatever
goes wrong on the way, cancellation included, the container that was created is removed before the error is raised.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import urllib.parse
from typing import TYPE_CHECKING

import docker.errors

from rlm_sandbox.container import transport
from rlm_sandbox.container.attach import Container, remove
from rlm_sandbox.container.failures import boundary

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rlm_sandbox.container.admission import Admitted
    from rlm_sandbox.container.engine import Engine
    from rlm_sandbox.container.image import ImageInfo
    from rlm_sandbox.container.profile import RunProfile

logger = logging.getLogger(__name__)

LABEL_SESSION = "rlm-sandbox.session"
LABEL_OWNER = "rlm-sandbox.owner"
LABEL_HOME = "rlm-sandbox.home"
LABEL_DEADLINE = "rlm-sandbox.deadline"


async def launch(
    engine: Engine, image: ImageInfo, profile: RunProfile, admitted: Admitted, labels: Mapping[str, str]
) -> Container:
    """Start a container and return it attached. The guest is silent until it is greeted.

    Raises:
        UsageError: the engine cannot do what was asked (an unknown runtime, a CPU limit out of range).
        InputError: the input's path is not there for the engine.
        EngineError: the engine failed.
    """
    name = f"rlm-sandbox-{secrets.token_hex(8)}"
    config = profile.to_config(image.id, admitted.mounts, labels)
    creating = asyncio.create_task(asyncio.to_thread(_create, engine, config, name))
    streams: list[transport.Stream] = []
    try:
        ident = await asyncio.shield(creating)
        streams.append(await _attach(engine, ident))
        streams.append(await _events(engine, ident))
        await asyncio.to_thread(_start, engine, ident)
    except BaseException:
        for stream in streams:
            stream.abort()
        await _finish(asyncio.create_task(_undo(engine, creating, name)))
        raise
    return Container(engine, ident, name, *streams)


def _create(engine: Engine, config: dict[str, object], name: str) -> str:
    with boundary("create the container"):
        created = engine.api.create_container_from_config(config, name)
    for warning in created.get("Warnings") or ():
        logger.warning("engine, on creating a container: %s", warning)
    return str(created["Id"])


def _start(engine: Engine, ident: str) -> None:
    with boundary("start the container"):
        engine.api.start(ident)


async def _undo(engine: Engine, creating: asyncio.Task[str], name: str) -> None:
    """Remove what the creation in flight has made or will make."""
    await asyncio.wait([creating])
    if creating.exception() is None:
        await asyncio.to_thread(remove, engine, creating.result())
    else:
        await asyncio.to_thread(_remove_quietly, engine, name)


def _remove_quietly(engine: Engine, name: str) -> None:
    """After a failed creation there is usually nothing; a creation that timed out may still have happened."""
    with boundary("remove the container"):
        try:
            engine.api.remove_container(name, force=True, v=True)
        except docker.errors.APIError:
            logger.debug("nothing to remove under %s", name)


async def _finish(task: asyncio.Task[None]) -> None:
    """Wait for a clean-up to its end, even if cancelled again, and keep its failure from hiding the first one."""
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            continue
    if error := task.exception():
        logger.warning("clean-up after a failed launch: %s", error)


async def _attach(engine: Engine, ident: str) -> transport.Stream:
    return await transport.request(
        engine,
        "POST",
        f"/containers/{ident}/attach?stream=1&stdin=1&stdout=1&stderr=1",
        {"Connection": "Upgrade", "Upgrade": "tcp"},
        doing="attach to the container",
    )


async def _events(engine: Engine, ident: str) -> transport.Stream:
    filters = json.dumps({"container": [ident], "type": ["container"], "event": ["oom", "die"]})
    path = f"/events?filters={urllib.parse.quote(filters)}"
    return await transport.request(engine, "GET", path, {}, doing="watch the container")
