"""Measures what a user waits for and pays, each figure beside a plain program's in the same run.

    python benchmarks/run.py [--quick] [--only steps,reading,far,calls,sessions,peers] [-o FOLDER] [--peer NAME=COMMAND] [--readme]

Writes ``results.json`` (every figure, and the machine), ``table.md`` and ``plot.svg``, and prints the table. Sub-calls in sessions are answered by
the scripted provider, those of ``calls`` by a loopback server: what is measured is this tool and not a model. A full run takes about ten minutes
and 22 GiB of disk while it lasts; ``--quick`` takes one and 3 GiB.
"""

import argparse
import json
import os
import subprocess
import tempfile
import time
from pathlib import Path

import calls
import peers
import reading
import steps
from inputs import GIB, Inputs
from measure import PROGRAM, machine
from readme import update
from show import picture, table

from rlm_sandbox.container import image
from rlm_sandbox.container.engine import Engine

PARTS = ("steps", "reading", "far", "calls", "sessions", "peers")


def main():
    options = arguments()
    with tempfile.TemporaryDirectory(prefix="rlm-bench-", dir=options.folder) as name:
        folder = Path(name)
        os.environ["RLM_SANDBOX_HOME"] = f"{name}/home"
        began = time.monotonic()
        try:
            report = measure(folder, options)
        finally:
            subprocess.run([PROGRAM, "broker", "stop"], check=False, capture_output=True)
    report["seconds"] = round(time.monotonic() - began)
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "results.json").write_text(json.dumps(report, indent=1) + "\n")
    (options.output / "table.md").write_text(table(report) + "\n")
    (options.output / "plot.svg").write_text(picture(report))
    if options.readme:
        update(report)
    print(table(report))


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, and nothing larger than 1 GiB")
    parser.add_argument("--only", default=",".join(PARTS), help="which parts, comma-separated")
    parser.add_argument("--folder", default=None, help="where the inputs lie meanwhile (default: the system's)")
    parser.add_argument("-o", dest="output", type=Path, default=Path(__file__).with_name("results"))
    parser.add_argument(
        "--peer", action="append", default=[], metavar="NAME=COMMAND", help="a program with start and exec"
    )
    parser.add_argument("--readme", action="store_true", help="bring the ratios in README.md up to date")
    options = parser.parse_args()
    options.only = options.only.split(",")
    return options


def measure(folder, options):
    engine = Engine.connect()
    base = image.ensure(engine, "base")
    report = {"machine": machine(engine), "quick": options.quick}
    inputs = Inputs(folder, largest=GIB if options.quick else 10 * GIB)
    report["left out for want of room or time"] = inputs.left_out
    rounds = 5 if options.quick else 12
    gigabyte = inputs.paths.get("1 GiB")
    parts = {
        "steps": lambda: steps.measure(engine, base, inputs, folder, rounds),
        "reading": lambda: reading.measure(gigabyte, 3) if gigabyte else {},
        "far": lambda: reading.far(inputs.paths["10 GiB"]) if "10 GiB" in inputs.paths else {},
        "calls": lambda: calls.measure(folder, 300 if options.quick else 1000, 2 if options.quick else 4),
        "sessions": lambda: steps.many(engine, inputs.paths["1 MiB"], (1, 10) if options.quick else (1, 10, 30)),
        "peers": lambda: peers.measure(inputs, options.peer),
    }
    for name in PARTS:
        if name in options.only:
            began = time.monotonic()
            report[name] = parts[name]()
            print(f"{name}: {time.monotonic() - began:.0f} s", flush=True)
    return report


if __name__ == "__main__":
    main()
