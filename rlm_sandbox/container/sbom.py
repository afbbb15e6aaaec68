"""The bill of materials of an image, as CycloneDX: made from what the image holds, not from what a recipe says it should.

It is reproducible: its serial number derives from the image's id, and its time is the epoch. Two builds of the same contract have the same bill.
"""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from cyclonedx.model import HashAlgorithm, HashType, Property
from cyclonedx.model.bom import Bom, BomMetaData
from cyclonedx.model.bom_ref import BomRef
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import DisjunctiveLicense
from cyclonedx.model.tool import ToolRepository
from cyclonedx.output import make_outputter
from cyclonedx.schema import OutputFormat, SchemaVersion
from packageurl import PackageURL

from rlm_sandbox import __version__
from rlm_sandbox.container import contents
from rlm_sandbox.container.image import LABEL_DIGEST, LABEL_GUEST

if TYPE_CHECKING:
    from rlm_sandbox.container.engine import Engine
    from rlm_sandbox.container.image import ImageInfo

_NO_TIME = datetime.fromtimestamp(0, UTC)
"""The same image has the same bill."""

_NAMESPACE = uuid.UUID("6f6a5b1e-6a3e-5d0e-9f0e-2f9c7d5c1b11")


def document(engine: Engine, image: ImageInfo, python: str = "") -> str:
    """Return the bill of an image as CycloneDX 1.6 JSON. ``python`` is the interpreter's version where the caller knows it."""
    return render(image, contents.read(engine, image.id), python)


def render(image: ImageInfo, held: contents.Contents, python: str = "") -> str:
    """Return the bill from an image's labels and contents."""
    root = Component(
        name=image.labels.get("org.opencontainers.image.title", image.ref),
        version=image.labels.get("org.opencontainers.image.version", ""),
        type=ComponentType.CONTAINER,
        bom_ref="image",
        hashes=[_sha256(image.id.removeprefix("sha256:"))],
        properties=[
            *(Property(name=name, value=value) for name, value in sorted(image.labels.items())),
            *(Property(name="layer", value=digest) for digest in held.layers),
        ],
    )
    tool = Component(name="rlm-sandbox", version=__version__, type=ComponentType.APPLICATION, bom_ref="tool")
    bom = Bom(
        serial_number=uuid.uuid5(_NAMESPACE, image.id),
        metadata=BomMetaData(component=root, tools=ToolRepository(components=[tool]), timestamp=_NO_TIME),
    )
    components = [_guest(image), _interpreter(held, python), *map(_package, held.packages)]
    components += [_library(path, digest) for path, digest in sorted(held.programs.items())]
    for component in components:
        bom.components.add(component)
    bom.register_dependency(root, components)
    return str(make_outputter(bom, OutputFormat.JSON, SchemaVersion.V1_6).output_as_string(indent=2))


def _sha256(digest: str) -> HashType:
    return HashType(alg=HashAlgorithm.SHA_256, content=digest)


def _guest(image: ImageInfo) -> Component:
    digest = image.labels.get(LABEL_DIGEST, "")
    return Component(
        name="rlm-sandbox-guest",
        version=image.labels.get(LABEL_GUEST, ""),
        type=ComponentType.LIBRARY,
        bom_ref="guest",
        hashes=[_sha256(digest)] if digest else [],
        licenses=[DisjunctiveLicense(id="MIT")],
    )


def _interpreter(held: contents.Contents, python: str) -> Component:
    path = next((path for path in sorted(held.programs) if path.rsplit("/", 1)[-1].startswith("python3")), "")
    return Component(
        name="cpython",
        version=python or path.rsplit("python", 1)[-1],
        type=ComponentType.PLATFORM,
        bom_ref="cpython",
        purl=PackageURL("generic", None, "cpython", python or None),
        hashes=[_sha256(held.programs[path])] if path else [],
        licenses=[DisjunctiveLicense(id="PSF-2.0")],
    )


def _package(package: contents.Package) -> Component:
    given: dict[str, Any] = {"licenses": [DisjunctiveLicense(name=package.license[:200])]} if package.license else {}
    return Component(
        name=package.name,
        version=package.version,
        type=ComponentType.LIBRARY,
        bom_ref=BomRef(f"pypi:{package.name}@{package.version}").value,
        purl=PackageURL("pypi", None, package.name.lower().replace("_", "-"), package.version),
        **given,
    )


def _library(path: str, digest: str) -> Component:
    return Component(name=path, type=ComponentType.FILE, bom_ref=f"file:{path}", hashes=[_sha256(digest)])
