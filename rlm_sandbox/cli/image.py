"""The ``image`` commands: build what sessions run in."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from rlm_sandbox import settings
from rlm_sandbox.cli import output
from rlm_sandbox.cli.cells import live
from rlm_sandbox.cli.common import chosen, examples, format_option, group, group_format_option

if TYPE_CHECKING:
    from rlm_sandbox.container.image import Progress


@group("image", epilog=examples("rlm-sandbox image build", "rlm-sandbox image build data"))
@group_format_option
def image_command() -> None:
    """The guest images."""


@image_command.command(
    "build",
    epilog=examples(
        "rlm-sandbox image build",
        "rlm-sandbox image build data",
        "rlm-sandbox image build base --from-base python:3.13-slim",
    ),
)
@click.argument("name", type=click.Choice(["base", "data"]), default="base")
@click.option(
    "--from-base",
    default=None,
    metavar="REF",
    help="Build by Dockerfile on this base image instead of from this interpreter.",
)
@format_option
def build_command(name: str, from_base: str | None, form: str | None) -> None:
    """Build a guest image, from the running interpreter unless a base is named."""
    form = chosen(form)
    from rlm_sandbox.container import image  # noqa: PLC0415 - heavy
    from rlm_sandbox.container.engine import Engine  # noqa: PLC0415 - heavy

    engine = Engine.connect(settings.engine_host())
    built = image.build(engine, name, base=from_base, progress=_steps(name))
    output.document(
        {"format_version": 1, "image": name, "id": built.id, "ref": built.ref, "labels": dict(built.labels)},
        form,
        "image",
    )


@image_command.command(
    "sbom",
    epilog=examples("rlm-sandbox image sbom", "rlm-sandbox image sbom data"),
)
@click.argument("ref", default="base", metavar="base|data|REF")
@format_option
def sbom_command(ref: str, form: str | None) -> None:
    """Print an image's bill of materials (CycloneDX JSON), read from the image; a named one is built if need be. As text, a list."""
    form = chosen(form)
    from rlm_sandbox.container import image, sbom  # noqa: PLC0415 - heavy
    from rlm_sandbox.container.engine import Engine  # noqa: PLC0415 - heavy

    engine = Engine.connect(settings.engine_host())
    found = image.ensure(engine, ref, progress=_steps(ref))
    bill = sbom.document(engine, found)
    if form == "text":
        parts = [
            f"{part['name']} {part.get('version', '')}".rstrip() for part in json.loads(bill).get("components", ())
        ]
        output.document({"image": ref, "id": found.id, "components": parts}, form, "sbom")
    else:
        output.text(bill)


def _steps(name: str) -> Progress:
    show = live(True)

    def step(text: str) -> None:
        if show is not None:
            show({"message": f"image {name}: {text}"})

    return step
