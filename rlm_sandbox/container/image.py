"""The guest image: is the right one on the engine, and if not, how is it made.

An image fits when its labels name this package's protocol and the digest of this package's guest sources. One that does not fit is
rebuilt, never run: host and guest share the channel's grammar, and a stale guest would speak another one.
"""

from __future__ import annotations

import asyncio
import logging
import platform
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol

import docker.errors

from rlm_sandbox import __version__
from rlm_sandbox.container import dockerfile, offline, packages
from rlm_sandbox.container.archive import write_archive
from rlm_sandbox.container.failures import boundary
from rlm_sandbox.errors import EngineError, ImageError
from rlm_sandbox.wire import PROTOCOL_VERSION

if TYPE_CHECKING:
    from rlm_sandbox.container.engine import Engine

logger = logging.getLogger(__name__)

NAMES = ("base", "data")
LABEL_GUEST = "rlm-sandbox.guest-version"
LABEL_PROTOCOL = "rlm-sandbox.protocol"
LABEL_DIGEST = "rlm-sandbox.guest-digest"
LABEL_PACKAGES = "rlm-sandbox.packages-digest"
LABEL_FLAVOUR = "rlm-sandbox.image"

_BUILDING = threading.Lock()
"""Two sessions that start at once need one build."""

FIX = "run: rlm-sandbox image build"


class Progress(Protocol):
    """Receives one line per step of a build."""

    def __call__(self, text: str) -> None:
        """Show ``text``."""


@dataclass(frozen=True)
class ImageInfo:
    """An image on the engine; ``id`` is content, ``ref`` the name it was found under."""

    id: str
    ref: str
    labels: dict[str, str]


def tag_of(name: str) -> str:
    """Return the reference under which a named image is kept: its digest keeps several checkouts on one engine apart."""
    return f"{released_tag(name)}-{offline.guest_digest()[:12]}"


def released_tag(name: str) -> str:
    """Return the reference that a person gives an image built by hand from the Dockerfile."""
    return f"rlm-sandbox/{name}:{__version__}"


def current(engine: Engine, name: str) -> ImageInfo | None:
    """Return the image that a session by this name would use, or ``None`` when it has to be built."""
    for tag in (tag_of(name), released_tag(name)):
        info = find(engine, tag)
        if info is not None and misfit(info) is None:
            return info
    return None


def labels_of(name: str) -> dict[str, str]:
    """Return the labels that mark an image as fitting this package."""
    extra = {LABEL_PACKAGES: packages.digest()} if name == "data" else {}
    return {
        **extra,
        "org.opencontainers.image.title": f"rlm-sandbox-{name}",
        "org.opencontainers.image.version": __version__,
        "org.opencontainers.image.licenses": "MIT",
        LABEL_FLAVOUR: name,
        LABEL_GUEST: __version__,
        LABEL_PROTOCOL: str(PROTOCOL_VERSION),
        LABEL_DIGEST: offline.guest_digest(),
    }


def find(engine: Engine, ref: str) -> ImageInfo | None:
    """Return the image that ``ref`` names, or ``None``."""
    with boundary("look up the image"):
        try:
            data: dict[str, Any] = engine.api.inspect_image(ref)
        except docker.errors.ImageNotFound:
            return None
    try:
        return ImageInfo(id=str(data["Id"]), ref=ref, labels=dict(data["Config"].get("Labels") or {}))
    except (KeyError, TypeError, AttributeError, ValueError) as exc:
        raise EngineError(
            f"what answers at {engine.host} is no Docker engine", hint="check DOCKER_HOST or the Docker context"
        ) from exc


def misfit(info: ImageInfo) -> str | None:
    """Say why an image cannot be used with this package, or return ``None``."""
    if LABEL_PROTOCOL not in info.labels:
        return f"{info.ref} is not an rlm-sandbox image"
    if info.labels[LABEL_PROTOCOL] != str(PROTOCOL_VERSION):
        return f"{info.ref} speaks protocol {info.labels[LABEL_PROTOCOL]}, this version needs {PROTOCOL_VERSION}"
    if info.labels.get(LABEL_DIGEST) != offline.guest_digest():
        return f"{info.ref} holds another version of the guest code"
    if info.labels.get(LABEL_PACKAGES, packages.digest()) != packages.digest():
        return f"{info.ref} holds other packages than this version names"
    return None


async def ensure_image(engine: Engine, ref: str, *, progress: Progress | None = None) -> ImageInfo:
    """As :func:`ensure`, off the event loop."""
    return await asyncio.to_thread(ensure, engine, ref, progress=progress)


def ensure(engine: Engine, ref: str, *, progress: Progress | None = None) -> ImageInfo:
    """Return the image for ``base``, ``data`` or any reference; a named one is built when absent or stale. Blocks.

    Raises:
        ImageError: a foreign reference is absent or does not fit, or the build failed.
    """
    if ref not in NAMES:
        info = find(engine, ref)
        if info is None:
            raise ImageError(f"the image {ref} is not on this engine", hint=f"docker load or pull it, or {FIX}")
        if why := misfit(info):
            raise ImageError(why, hint=f"{FIX} --from-base IMAGE")
        return info
    with _BUILDING:
        return current(engine, ref) or build(engine, ref, progress=progress)


def build(
    engine: Engine,
    name: str,
    *,
    base: str | None = None,
    progress: Progress | None = None,
) -> ImageInfo:
    """Build a named image and return it. Blocks.

    Without ``base``, offline: from the running interpreter (``data`` fetches its wheels with pip), byte-reproducible. With ``base``,
    the engine builds ``images/<name>/Dockerfile`` on that image.
    """
    if name not in NAMES:
        raise ImageError(f"no image is named {name}", hint=f"the names are: {', '.join(NAMES)}")
    say = progress or _silent
    began = time.monotonic()
    if base is None:
        _build_offline(engine, name, say)
    else:
        dockerfile.build(engine, name, base=base, tag=tag_of(name), labels=labels_of(name), say=say)
    info = find(engine, tag_of(name))
    if info is None:
        raise ImageError("the engine built the image but does not list it", hint="see: rlm-sandbox doctor")
    logger.info("built image %s (%s) in %.1f s", info.ref, info.id[:19], time.monotonic() - began)
    return info


def _build_offline(engine: Engine, name: str, say: Progress) -> None:
    with tempfile.TemporaryDirectory(prefix="rlm-image-") as folder:
        scratch = Path(folder)
        archive = scratch / "image.tar"
        with archive.open("wb") as out:
            write_image(out, name, scratch, say)
        say(f"loading {archive.stat().st_size // 1_000_000} MB into the engine")
        with archive.open("rb") as source, boundary("load the image"):
            for line in engine.slow.load_image(source):
                if "error" in line:
                    raise ImageError(f"the engine refused the image: {str(line['error'])[:300]}")


def write_image(out: IO[bytes], name: str, scratch: Path, say: Progress) -> str:
    """Write the offline image as a docker-archive and return its id (the hash of its configuration)."""
    say(f"collecting {offline.version_name()} and its libraries")
    python = offline.python_layer(_folder(scratch, "python"))
    layers = [python]
    if name == "data":
        say("fetching wheels by hash")
        wheels = packages.download(_folder(scratch, "wheels"))
        say(f"unpacking {len(wheels)} wheels")
        layers.append(offline.package_layer(wheels, _folder(scratch, "packages"), python))
    layers.append(offline.guest_layer(_folder(scratch, "guest")))
    return write_archive(out, scratch, layers, config=image_config(name), tag=tag_of(name), machine=platform.machine())


def image_config(name: str) -> dict[str, Any]:
    """Return the image's ``Config``: what to run, as whom, and the labels."""
    return {
        "Entrypoint": entrypoint(),
        "Env": ["PATH=/usr/local/bin:/usr/bin:/bin"],
        "User": "65534:65534",
        "WorkingDir": "/tmp",  # noqa: S108 - the container's own tmpfs
        "Labels": labels_of(name),
    }


def entrypoint() -> list[str]:
    """Return the agent's command line.

    ``-P -s`` and not ``-I``: the environment is entirely ours (see the run profile), and ``-I`` would ignore its hash seed.
    ``-c`` instead of ``-m`` saves the import of ``runpy``.
    """
    code = "import sys; from rlm_sandbox.guest.agent import main; sys.exit(main())"
    return ["/usr/local/bin/python3", "-P", "-s", "-c", code]


def _folder(parent: Path, name: str) -> Path:
    path = parent / name
    path.mkdir()
    return path


def _silent(text: str) -> None:
    """The progress observer that shows nothing."""
