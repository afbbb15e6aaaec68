import shutil

import pytest

from rlm_sandbox.container import dockerfile, gc, image, offline
from rlm_sandbox.container.engine import Engine
from rlm_sandbox.container.launch import launch
from rlm_sandbox.container.profile import RunProfile
from rlm_sandbox.doctor import checks
from rlm_sandbox.errors import EngineError, ImageError

pytestmark = pytest.mark.container

TEST_TAG = "rlm-sandbox-test/built:1"


@pytest.fixture
def still(tmp_path, monkeypatch):
    """A copy of the package that nobody edits meanwhile."""
    copy = tmp_path / "rlm_sandbox"
    shutil.copytree(offline.PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(offline.PACKAGE.parent / "images", tmp_path / "images")
    monkeypatch.setattr(offline, "PACKAGE", copy)
    return copy


@pytest.fixture
def tag(monkeypatch, engine):
    monkeypatch.setattr(image, "tag_of", lambda name: TEST_TAG)
    yield TEST_TAG
    if image.find(engine, TEST_TAG):
        engine.api.remove_image(TEST_TAG, force=True)


def test_the_same_interpreter_and_guest_give_the_same_image_and_another_guest_another(engine, still, tag):
    first = image.build(engine, "base")
    assert image.build(engine, "base").id == first.id
    assert image.ensure(engine, "base") == first
    with (still / "guest" / "agent.py").open("a") as file:
        file.write("\n")
    assert "guest code" in image.misfit(first)
    rebuilt = image.ensure(engine, "base")
    assert rebuilt.id != first.id
    assert image.misfit(rebuilt) is None


async def test_an_image_built_by_dockerfile_keeps_the_contract(engine, still, tag, run):
    said = []
    built = image.build(engine, "base", base=image.ensure(engine, "base").id, progress=said.append)
    assert image.misfit(built) is None
    assert any("assemble" in line for line in said)
    data = engine.api.inspect_image(tag)["Config"]
    assert data["User"] == "65534:65534"
    assert data["Entrypoint"] == image.entrypoint()

    class NoInput:
        mounts = ()

    container = await launch(engine, built, RunProfile(), NoInput(), {"rlm-sandbox.test": "1"})
    container.write(b"not a frame, and so the agent ends")
    while await container.read():
        pass
    facts = await container.exit_facts()
    assert facts.code == 70, "the agent ran, and refused what it does not know"
    await container.close()


def test_a_dockerfile_that_cannot_build_says_which_step(engine, still, tag):
    with pytest.raises(ImageError):
        dockerfile.build(engine, "base", base="rlm-sandbox-test/absent:1", tag=tag, labels={}, say=lambda text: None)


def test_images_without_a_name_are_collected(engine, still, tag):
    (still / "guest" / "only_here.py").write_text("# one")
    first = image.build(engine, "base")
    (still / "guest" / "only_here.py").write_text("# two")
    image.build(engine, "base")
    gc.collect_images(engine)
    assert image.find(engine, first.id) is None
    assert image.find(engine, tag) is not None


DATA = """
import json, multiprocessing
import duckdb, numpy, pandas, polars, pyarrow.csv
frame = pandas.DataFrame({"a": range(1000), "b": ["x", "y"] * 500})
frame.to_parquet("/tmp/a.parquet")
frame.to_csv("/tmp/a.csv", index=False)
def work(n):
    return float(numpy.ones((100, 100)).dot(numpy.ones((100, 100))).sum()) + n
if __name__ == "__main__":
    with multiprocessing.get_context("fork").Pool(2) as pool:
        pooled = pool.map(work, range(2))
    print(json.dumps([
        pandas.read_parquet("/tmp/a.parquet").a.sum().item(),
        polars.read_parquet("/tmp/a.parquet").group_by("b").agg(polars.col("a").sum()).sort("b")["a"].to_list(),
        duckdb.sql("select sum(a) from '/tmp/a.csv'").fetchall()[0][0],
        pyarrow.csv.read_csv("/tmp/a.csv").num_rows,
        str(pandas.Timestamp("2024-01-01", tz="Europe/Berlin")),
        pooled,
    ]))
"""


async def test_the_data_image_analyses_data_under_the_same_confinement(engine, run):
    built = image.ensure(engine, "data")
    printed = await run(DATA, using=built)
    assert printed == (
        '[499500, [249500, 250000], 499500, 1000, "2024-01-01 00:00:00+01:00", [1000000.0, 1000001.0]]\n'
    )


def test_an_engines_facts_are_known(engine):
    info = engine.info()
    assert info.os == "linux"
    assert info.seccomp
    assert info.cgroup in {1, 2}
    assert info.default_runtime in info.runtimes
    assert info.local
    assert engine.alive()


def test_an_engine_is_looked_at_line_by_line(engine, base, tmp_path):
    found = {finding.check: finding for finding in checks.run(tmp_path, {"RLM_PROVIDER": "scripted"}, None)}
    assert {"engine", "limits", "seccomp", "runc", "capacity", "image base", "image data"} <= set(found)
    assert not [finding for finding in found.values() if finding.level == "fail"]
    assert all(finding.fix for finding in found.values() if finding.level != "ok")


def test_an_engine_that_is_not_there_is_an_engine_error(tmp_path):
    with pytest.raises(EngineError) as caught:
        Engine.connect(f"unix://{tmp_path}/nothing.sock")
    assert "make setup" in caught.value.hint
    with pytest.raises(EngineError, match="no Docker context named"):
        Engine.connect(context="no-such-context")
