"""The stopped clock and the seeds, each in a process of its own, since they change the interpreter for good."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.unit

EPOCH = 1_700_000_000


def run(code, *, clock="frozen"):
    setup = (
        "from rlm_sandbox.guest import config, determinism\n"
        f"determinism.apply(config.Config({{'seed': 7, 'clock': {clock!r}, 'epoch': {EPOCH}}}))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", setup + code], capture_output=True, text=True, check=True, timeout=60, env={"TZ": "UTC"}
    )
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("import time; print(time.time(), time.time_ns())", f"{EPOCH}.0 {EPOCH}000000000"),
        ("import time; print(time.strftime('%Y-%m-%d', time.gmtime()), time.localtime().tm_year)", "2023-11-14 2023"),
        ("import time; print(time.ctime(), time.asctime())", "Tue Nov 14 22:13:20 2023 Tue Nov 14 22:13:20 2023"),
        ("import time; print(time.gmtime(0).tm_year, time.strftime('%Y', time.gmtime(0)))", "1970 1970"),
        ("import time; print(time.clock_gettime(time.CLOCK_REALTIME))", f"{EPOCH}.0"),
        ("import time; print(time.clock_gettime_ns(time.CLOCK_REALTIME), time.clock_gettime_ns(5))", f"{EPOCH}000000000 {EPOCH}000000000"),
        ("import logging, sys; logging.basicConfig(format='%(asctime)s', stream=sys.stdout); logging.warning('x')", "2023-11-14 22:13:20,000"),
        ("import time\nclass A: now, at = time.time, time.gmtime\nprint(A().now(), A().at().tm_year)", f"{EPOCH}.0 2023"),
        ("from datetime import datetime; print(datetime.now(), datetime.utcnow())", "2023-11-14 22:13:20 2023-11-14 22:13:20"),
        ("import datetime; print(datetime.date.today())", "2023-11-14"),
        ("import datetime as d; print(repr(d.datetime.now()))", "datetime.datetime(2023, 11, 14, 22, 13, 20)"),
        ("import datetime as d; print(repr(d.date.today()))", "datetime.date(2023, 11, 14)"),
    ],
)  # fmt: skip
def test_a_stopped_clock_shows_one_moment(code, expected):
    assert run(code) == expected


@pytest.mark.parametrize(
    "code",
    [
        "import time; a = time.monotonic(); time.sleep(0.01); print(time.monotonic() > a)",
        "import datetime as d; print(isinstance(d.datetime.now(), d.date) and isinstance(d.date.today(), d.date))",
        "import datetime as d; x = d.datetime(2020, 1, 1) + d.timedelta(1); print(x == d.datetime(2020, 1, 2))",
        "import datetime as d, pickle; x = d.datetime.now(); print(pickle.loads(pickle.dumps(x)) == x)",
        "import datetime as d; print(type(d.datetime.strptime('2020', '%Y')) is d.datetime)",
        "import datetime as d; print(d.datetime.now(d.timezone.utc).tzinfo is d.timezone.utc)",
        "import sqlite3; print(True)",
        "import zoneinfo, email.utils, logging, json; print(True)",
    ],
)
def test_everything_else_about_time_works_on(code):
    assert run(code) == "True"


def test_the_real_clock_is_left_alone():
    assert float(run("import time; print(time.time())", clock="real")) > EPOCH + 10**7


def test_randomness_is_seeded():
    code = "import random; print(random.random())"
    assert run(code) == run("import random; random.seed(7); print(random.random())")


def test_numpys_randomness_is_seeded_when_it_is_loaded_however_late(tmp_path):
    (tmp_path / "numpy" / "random").mkdir(parents=True)
    (tmp_path / "numpy" / "__init__.py").write_text("import numpy.random\n")
    (tmp_path / "numpy" / "random" / "__init__.py").write_text("seeded = []\nseed = seeded.append\n")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import json, numpy; print(numpy.random.seeded, numpy.random.__name__)"
    assert run(code) == "[7] numpy.random"
