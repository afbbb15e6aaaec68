"""The real image with the real agent, up to the host's decision whether to go on."""

import io
import json
import tarfile

import pytest

from rlm_sandbox.container import image
from rlm_sandbox.container.admission import admit
from rlm_sandbox.container.launch import launch
from rlm_sandbox.container.profile import RunProfile
from rlm_sandbox.container.selfcheck import verify
from rlm_sandbox.errors import ControlMissing, ImageError
from rlm_sandbox.wire import PROTOCOL_VERSION
from rlm_sandbox.wire import messages as m
from rlm_sandbox.wire.connection import HostConnection

pytestmark = pytest.mark.container


class Talk:
    """One container and its conversation."""

    def __init__(self, container):
        self.container = container
        self.connection = HostConnection()

    def send(self, message):
        self.container.write(self.connection.send(message))

    async def until(self, kind):
        while True:
            data = await self.container.read()
            assert data, self.container.stderr_tail
            for message in self.connection.receive(data):
                if isinstance(message, kind):
                    return message

    async def report(self):
        self.send(m.Hello(PROTOCOL_VERSION, "s", 1000, 60_000, 1 << 20, []))
        return await self.until(m.Report)

    async def run(self, admitted, code):
        self.send(m.Go(json.dumps({"session": "s", "input": admitted.config}).encode()))
        await self.until(m.Ready)
        self.send(m.CellBegin(1, 30_000))
        self.send(m.Cell(1, code.encode()))
        output, result = b"", None
        while True:
            data = await self.container.read()
            assert data, self.container.stderr_tail
            for message in self.connection.receive(data):
                if isinstance(message, m.Output):
                    output += message.payload
                elif isinstance(message, m.Result):
                    result = message
                    self.send(m.CellEnd(1))
                elif isinstance(message, m.CellClosed):
                    assert result.status == "ok", result.payload.decode()
                    return output.decode()


@pytest.fixture
def session(engine, base, tmp_path):
    async def go(path, *, before_start=None, **options):
        admitted = admit(path, stage_dir=tmp_path / "home" / "stage", **options)
        if before_start:
            before_start()
        container = await launch(engine, base, RunProfile(), admitted, {"rlm-sandbox.test": "guest"})
        return Talk(container), admitted

    yield go
    left = engine.api.containers(all=True, filters={"label": ["rlm-sandbox.test=guest"]})
    for row in left:
        engine.api.remove_container(row["Id"], force=True)
    assert left == []


async def finish(talk, admitted):
    await talk.container.close()
    admitted.close()


@pytest.fixture
def log(tmp_path):
    path = tmp_path / "a b'\"\n.log"
    path.write_bytes(b"hello\nworld\n")
    path.chmod(0o644)
    return path


async def test_every_control_is_in_force_on_this_engine(session, log):
    talk, admitted = await session(log)
    verify(await talk.report(), RunProfile(), admitted)
    assert await talk.run(admitted, "print(context, end='')") == "hello\nworld\n"
    await finish(talk, admitted)


async def test_a_limit_that_is_not_what_was_asked_for_stops_the_start(session, log):
    talk, admitted = await session(log)
    report = await talk.report()
    with pytest.raises(ControlMissing, match="memory limit"):
        verify(report, RunProfile().with_limits(memory=1 << 30), admitted)
    await finish(talk, admitted)


async def test_a_file_others_may_not_read_is_read_from_its_copy(session, log):
    log.chmod(0o600)
    talk, admitted = await session(log)
    verify(await talk.report(), RunProfile(), admitted)
    assert await talk.run(admitted, "print(len(context))") == "12\n"
    await finish(talk, admitted)


async def test_a_path_that_was_replaced_after_it_was_admitted_is_noticed(session, log):
    def replace():
        other = log.with_name("other")
        other.write_bytes(b"something else")
        other.chmod(0o644)
        other.rename(log)

    talk, admitted = await session(log, before_start=replace)
    with pytest.raises(ControlMissing, match="input identity"):
        verify(await talk.report(), RunProfile(), admitted)
    await finish(talk, admitted)


async def test_a_directory_shows_what_was_admitted_and_nothing_else(session, tmp_path):
    root = tmp_path / "project"
    (root / "sub").mkdir(parents=True)
    (root / "a.txt").write_text("alpha")
    (root / "sub" / "b.txt").write_text("beta")
    (root / ".env").write_text("KEY=1")
    (root / "link").symlink_to("/etc/passwd")
    talk, admitted = await session(root)
    verify(await talk.report(), RunProfile(), admitted)
    seen = await talk.run(
        admitted,
        "import os, json\n"
        "walk = sorted(os.path.join(d, f) for d, _, fs in os.walk('/input') for f in fs)\n"
        "print(json.dumps([walk, len(context), context_files, list(files)]))",
    )
    walk, length, spans, names = json.loads(seen)
    assert walk == ["/input/index.jsonl", "/input/tree/a.txt", "/input/tree/sub/b.txt"]
    assert length == admitted.total_chars
    assert [span["path"] for span in spans] == names == ["a.txt", "sub/b.txt"]
    await finish(talk, admitted)
    assert not (tmp_path / "home" / "stage").exists()


async def test_a_bound_directory_is_read_only_and_complete(session, tmp_path):
    root = tmp_path / "project"
    root.mkdir(mode=0o755)
    (root / "a.txt").write_text("alpha")
    (root / "b.bin").write_text("other")
    for path in (root, *root.iterdir()):
        path.chmod(0o755)
    talk, admitted = await session(root, mode="bind", glob="*.txt")
    verify(await talk.report(), RunProfile(), admitted)
    seen = await talk.run(
        admitted,
        "import os\nprint(list(files), sorted(os.listdir('/input/tree')))\n"
        "try: open('/input/tree/new', 'w')\nexcept OSError as e: print(e.strerror)",
    )
    assert seen == "['a.txt'] ['a.txt', 'b.bin']\nRead-only file system\n"
    await finish(talk, admitted)


async def test_a_large_sparse_file_is_mounted_at_once(session, tmp_path):
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(10 * 1024**3)
    path.chmod(0o644)
    talk, admitted = await session(path)
    report = await talk.report()
    verify(report, RunProfile(), admitted)
    assert report.input_size == 10 * 1024**3
    await finish(talk, admitted)


def test_an_image_that_is_not_ours_is_refused_by_name(engine, base, tmp_path):
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("x"))
    engine.api.import_image_from_data(raw.getvalue(), repository="rlm-sandbox-test/foreign", tag="1")
    try:
        with pytest.raises(ImageError, match="not an rlm-sandbox image"):
            image.ensure(engine, "rlm-sandbox-test/foreign:1")
    finally:
        engine.api.remove_image("rlm-sandbox-test/foreign:1")
    with pytest.raises(ImageError, match="not on this engine"):
        image.ensure(engine, "rlm-sandbox-test/absent:1")
