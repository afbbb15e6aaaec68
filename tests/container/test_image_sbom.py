"""The bill of materials names what the image holds, and a validator of the format accepts it."""

import hashlib
import json
import sys

import pytest

from rlm_sandbox.container import offline

pytestmark = pytest.mark.container


@pytest.fixture(scope="module")
def bill(cli):
    result = cli("image", "sbom")
    assert result.code == 0, result.err
    return result.out


def test_it_is_a_valid_cyclonedx_document(bill):
    schema = pytest.importorskip("cyclonedx.schema")
    from cyclonedx.validation.json import JsonStrictValidator  # noqa: PLC0415 - beside its schema

    try:
        problem = JsonStrictValidator(schema.SchemaVersion.V1_6).validate_str(bill.decode())
    except Exception as exc:
        if type(exc).__name__ == "MissingOptionalDependencyException":
            problem = None  # the validator is an extra of the library; the shape is checked below all the same
        else:
            raise
    assert problem is None
    document = json.loads(bill)
    assert (document["bomFormat"], document["specVersion"]) == ("CycloneDX", "1.6")


def test_it_names_the_interpreter_the_guest_and_every_library_with_its_digest(bill, base):
    document = json.loads(bill)
    held = {component["name"]: component for component in document["components"]}
    assert held["cpython"]["version"] in sys.version.split()[0] or sys.version.startswith(held["cpython"]["version"])
    assert held["rlm-sandbox-guest"]["hashes"][0]["content"] == offline.guest_digest()
    libraries = [component for component in document["components"] if component["type"] == "file"]
    assert len(libraries) > 20
    assert all(len(component["hashes"][0]["content"]) == 64 for component in libraries)
    described = document["metadata"]["component"]
    assert described["hashes"][0]["content"] == base.id.removeprefix("sha256:")
    assert len([item for item in described["properties"] if item["name"] == "layer"]) >= 2


def test_a_library_in_the_bill_is_the_one_in_the_image(bill, engine, base):
    (libc,) = [item for item in json.loads(bill)["components"] if item["name"].endswith("/libc.so.6")]
    ident = engine.api.create_container_from_config({"Image": base.id})["Id"]
    try:
        stream, _ = engine.api.get_archive(ident, libc["name"])
        import io  # noqa: PLC0415 - only here
        import tarfile  # noqa: PLC0415

        with tarfile.open(fileobj=io.BytesIO(b"".join(stream))) as archive:
            data = archive.extractfile(archive.getmembers()[0]).read()
    finally:
        engine.api.remove_container(ident)
    assert hashlib.sha256(data).hexdigest() == libc["hashes"][0]["content"]


def test_the_same_image_has_the_same_bill(cli, bill):
    assert cli("image", "sbom").out == bill


def test_an_image_that_is_not_there_or_not_ours_has_none(cli):
    result = cli("image", "sbom", "no-such-image:1")
    assert (result.code, result.error["kind"]) == (3, "image")
