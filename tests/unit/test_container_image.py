import io
import json
import re
import tarfile
import zipfile

import pytest

from rlm_sandbox import __version__
from rlm_sandbox.container import dockerfile, image, labels, offline, packages
from rlm_sandbox.container.archive import Layer, architecture, write_archive
from rlm_sandbox.container.assemble import write_tree
from rlm_sandbox.container.closure import libraries, loader_of
from rlm_sandbox.container.image import ImageInfo, misfit
from rlm_sandbox.errors import ImageError
from rlm_sandbox.wire import PROTOCOL_VERSION

pytestmark = pytest.mark.unit


def layer(tmp_path):
    source = tmp_path / "source"
    source.write_bytes(b"content")
    source.chmod(0o4777)
    made = Layer()
    made.add("usr/bin/tool", source, executable=True)
    made.add("a/b/c.txt", b"text")
    made.links["usr/bin/alias"] = "tool"
    made.folders["tmp"] = 0o1777
    return made


def entries(raw):
    with tarfile.open(fileobj=io.BytesIO(raw)) as tar:
        return {member.name: member for member in tar.getmembers()}


def test_a_layer_is_sorted_owned_by_root_at_the_epoch_and_never_setuid(tmp_path):
    out = io.BytesIO()
    layer(tmp_path).write(out)
    found = entries(out.getvalue())
    assert list(found) == sorted(found)
    assert {(member.uid, member.gid, member.mtime) for member in found.values()} == {(0, 0, 0)}
    assert not any(member.mode & 0o6022 for member in found.values() if member.isfile())
    assert found["usr/bin/tool"].mode == 0o755
    assert found["a/b/c.txt"].mode == 0o644
    assert found["tmp"].mode == 0o1777
    assert found["a/b"].isdir()
    assert found["usr/bin/alias"].linkname == "tool"


def test_an_archive_is_the_same_bytes_each_time_and_names_itself_by_its_configuration(tmp_path):
    raws, ids = [], []
    for number in range(2):
        scratch = tmp_path / str(number)
        scratch.mkdir()
        out = io.BytesIO()
        ids.append(write_archive(out, scratch, [layer(tmp_path)], config={"A": 1}, tag="x:1", machine="x86_64"))
        raws.append(out.getvalue())
    assert raws[0] == raws[1]
    assert ids[0] == ids[1]
    with tarfile.open(fileobj=io.BytesIO(raws[0])) as tar:
        (manifest,) = json.load(tar.extractfile("manifest.json"))
        config = json.load(tar.extractfile(manifest["Config"]))
        assert manifest["Config"] == f"{ids[0].removeprefix('sha256:')}.json"
        assert manifest["Layers"][0].removesuffix("/layer.tar") == config["rootfs"]["diff_ids"][0].removeprefix(
            "sha256:"
        )
    assert config["created"] == "1970-01-01T00:00:00Z"
    assert config["architecture"] == "amd64"


def test_a_machine_nobody_tested_is_refused():
    with pytest.raises(ImageError, match="riscv"):
        architecture("riscv64")


def fit(**changes):
    return ImageInfo(id="sha256:1", ref="x:1", labels={**image.labels_of("base"), **changes})


def test_an_image_fits_by_protocol_and_guest_and_packages():
    assert misfit(fit()) is None
    assert misfit(ImageInfo("sha256:1", "x:1", image.labels_of("data"))) is None
    assert "protocol 99" in misfit(fit(**{image.LABEL_PROTOCOL: "99"}))
    assert "guest code" in misfit(fit(**{image.LABEL_DIGEST: "0"}))
    assert "other packages" in misfit(fit(**{image.LABEL_PACKAGES: "0"}))
    assert "not an rlm-sandbox image" in misfit(ImageInfo("sha256:1", "python:3", {}))


def test_labels_name_versions_and_can_be_given_to_docker_build_unquoted():
    marks = image.labels_of("data")
    assert marks[image.LABEL_GUEST] == marks["org.opencontainers.image.version"] == __version__
    assert marks[image.LABEL_PROTOCOL] == str(PROTOCOL_VERSION)
    words = labels.options("data").split()
    assert words[::2] == ["--label"] * len(marks)
    assert dict(word.split("=", 1) for word in words[1::2]) == marks


def test_the_guest_digest_changes_with_any_source(tmp_path, monkeypatch):
    for part in ("wire", "guest"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "__init__.py").write_text("")
    (tmp_path / "__init__.py").write_text("")
    monkeypatch.setattr(offline, "PACKAGE", tmp_path)
    seen = {offline.guest_digest()}
    (tmp_path / "guest" / "new.py").write_text("x = 1")
    seen.add(offline.guest_digest())
    (tmp_path / "guest" / "new.py").write_text("x = 2")
    seen.add(offline.guest_digest())
    assert len(seen) == 3


def test_the_closure_of_the_interpreter_holds_the_c_library():
    binary = offline.interpreter()
    found = libraries(loader_of(binary), [binary])
    assert found["libc.so.6"].is_file()
    assert not any(name.startswith("ld-linux") for name in found)


def test_what_is_no_program_has_no_loader(tmp_path):
    (tmp_path / "x").write_bytes(b"#!/bin/sh\n" * 20)
    with pytest.raises(ImageError, match="not a 64-bit ELF"):
        loader_of(tmp_path / "x")


def test_the_offline_tree_holds_an_interpreter_and_the_guest_and_no_tests_or_host_paths(tmp_path):
    out = tmp_path / "out"
    write_tree(out, None)
    names = {str(path.relative_to(out)) for path in out.rglob("*")}
    version = offline.version_name()
    assert {f"usr/local/bin/{version}", "usr/local/bin/python3", "opt/rlm/rlm_sandbox/guest/agent.py", "input"} <= names
    assert not [name for name in names if re.search(r"/(test|tests|idlelib|tkinter|ensurepip|pip)(/|$)", name)]
    assert not [name for name in names if name.endswith("/sh") or ("/bin/" in name and "python" not in name)]
    (config,) = out.glob(f"usr/local/lib/{version}/_sysconfigdata*.py")
    assert str(offline.interpreter().parent.parent) not in config.read_text()
    assert any(name.startswith("opt/rlm/rlm_sandbox/guest/__pycache__/agent.") for name in names)
    guest = {name for name in names if name.startswith("opt/rlm/rlm_sandbox/") and name.endswith(".py")}
    assert {name.split("/")[3] for name in guest} == {"__init__.py", "wire", "guest"}


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("numpy/__init__.py", "numpy/__init__.py"),
        ("numpy.libs/libx.so", "numpy.libs/libx.so"),
        ("numpy/core/tests/test_x.py", None),
        ("tests/x.py", None),
        ("pyarrow/include/arrow/api.h", None),
        ("x-1.dist-info/METADATA", "x-1.dist-info/METADATA"),
        ("x-1.dist-info/RECORD", None),
        ("x-1.data/purelib/x.py", "x.py"),
        ("x-1.data/scripts/tool", None),
        ("x-1.data/data", None),
        ("x.pyi", None),
    ],
)
def test_a_wheels_entries_go_where_python_looks_or_nowhere(entry, expected):
    found = packages.installed_path(entry)
    assert (None if found is None else str(found)) == expected


@pytest.mark.parametrize("entry", ["../x", "a/../../x", "/etc/passwd", "a\\..\\x", "x-1.data/purelib/../../../y"])
def test_a_wheel_cannot_leave_its_folder(entry, tmp_path):
    wheel = tmp_path / "x-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(entry, b"x")
    with pytest.raises(ImageError, match="outside"):
        packages.unpack(wheel, tmp_path / "out")


def test_packages_are_pinned_by_hash_and_name_no_index():
    text = packages.REQUIREMENTS.read_text(encoding="utf-8")
    pins = re.findall(r"^([a-z0-9-]+)==\S+ ", text, re.MULTILINE)
    assert {"numpy", "pandas", "polars", "pyarrow", "duckdb"} <= set(pins)
    blocks = re.split(r"^(?=[a-z])", text, flags=re.MULTILINE)[1:]
    assert all("--hash=sha256:" in block for block in blocks)
    assert "index" not in text
    assert "://" not in text


@pytest.mark.parametrize("name", image.NAMES)
def test_a_dockerfile_ends_as_the_offline_image_does(name):
    text = dockerfile.path_of(name).read_text(encoding="utf-8")
    config = image.image_config(name)
    assert f"ENTRYPOINT {json.dumps(config['Entrypoint'])}" in text
    assert f"USER {config['User']}" in text.split("FROM scratch")[1]
    assert f"ENV {config['Env'][0]}" in text
    assert re.search(r"^ARG BASE=\S+@sha256:[0-9a-f]{64}$", text, re.MULTILINE)
    copied = set(re.findall(r"(rlm_sandbox/\S+)", text))
    sent = set(entries(dockerfile.context(name)))
    assert {path for path in copied if path.endswith((".py", ".txt"))} <= sent


def test_an_unknown_image_name_is_refused():
    with pytest.raises(ImageError, match="no image is named huge") as caught:
        image.build(None, "huge")
    assert "base, data" in caught.value.hint
    with pytest.raises(ImageError, match="not installed"):
        dockerfile.path_of("huge")
