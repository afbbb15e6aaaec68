"""What a user waits for at each step, by size of the input: start, a cell as a command, a cell by the Python API; and memory."""

import contextlib
import os
import random
import subprocess
import sys

from measure import PROGRAM, PYTHON_IN_IMAGE, command, container_mib, milliseconds, resident_mib, run, seconds, summary

from rlm_sandbox import Session
from rlm_sandbox.container.profile import RunProfile

DAEMON_AT_REST = "daemon_mib"


def hardened(base):
    """Return the command line of ``docker run`` with the hardening that a session has."""
    host = RunProfile().to_config(base.id, (), {})["HostConfig"]
    words = [
        "docker",
        "run",
        "--rm",
        "--network",
        "none",
        "--read-only",
        "--user",
        "65534:65534",
        "--log-driver",
        "none",
    ]
    words += ["--ipc", "private", "--memory", str(host["Memory"]), "--memory-swap", str(host["MemorySwap"])]
    words += ["--pids-limit", str(host["PidsLimit"]), "--cpus", "2"]
    words += [word for cap in host["CapDrop"] for word in ("--cap-drop", cap)]
    words += [word for path, options in host["Tmpfs"].items() for word in ("--tmpfs", f"{path}:{options}")]
    words += [word for option in host["SecurityOpt"] if "seccomp" not in option for word in ("--security-opt", option)]
    return words


def seccomp_option(base, folder):
    """``docker run`` takes the profile as a file."""
    host = RunProfile().to_config(base.id, (), {})["HostConfig"]
    profile = next(option.split("=", 1)[1] for option in host["SecurityOpt"] if option.startswith("seccomp="))
    path = folder / "seccomp.json"
    path.write_text(profile)
    return ["--security-opt", f"seccomp={path}"]


def baselines(base, folder):
    """Return what is measured beside our commands, as actions by name."""
    image = ["--entrypoint", PYTHON_IN_IMAGE, base.id, "-c", "pass"]
    strict = [*hardened(base), *seccomp_option(base, folder), *image]
    return {
        "docker run": lambda: run("docker", "run", "--rm", *image),
        "docker run, hardened": lambda: run(*strict),
        "python3 -c pass": lambda: run(sys.executable, "-c", "pass"),
    }


def measure(engine, base, inputs, folder, rounds):
    beside = baselines(base, folder)
    found = {name: [] for name in beside}
    by_size = {name: {"start": [], "exec": [], "stop": []} for name in inputs.paths}
    with keeping_daemon(inputs):
        for _ in range(rounds):  # interleaved, so that a busy moment falls on everything alike
            for name, action in beside.items():
                found[name].append(milliseconds(action))
            for name, path in random.sample(list(inputs.paths.items()), len(inputs.paths)):
                cycle(path, by_size[name])
    report = {name: summary(samples) for name, samples in found.items()}
    sizes = {name: {step: summary(samples) for step, samples in steps.items()} for name, steps in by_size.items()}
    for name, path in inputs.paths.items():
        sizes[name] |= held(engine, path)
        sizes[name]["exec in process"] = in_process(path, 40 * rounds)
    report["without daemon"] = summary([from_nothing(next(iter(inputs.paths.values()))) for _ in range(min(rounds, 5))])
    report["by size"] = sizes
    return report


@contextlib.contextmanager
def keeping_daemon(inputs):
    """The daemon starts before the clock does: what it costs to start it is measured by itself."""
    path = next(iter(inputs.paths.values()))
    kept = command("start", "--input", path, "--provider", "scripted")["session"]
    try:
        yield
    finally:
        command("stop", "--session", kept)


def cycle(path, samples):
    took, document = seconds(lambda: command("start", "--input", path, "--provider", "scripted", "--new"))
    samples["start"].append(1000 * took)
    session = document["session"]
    command("exec", "--session", session, "-c", "import json")
    for _ in range(3):
        samples["exec"].append(milliseconds(lambda: run(PROGRAM, "exec", "--session", session, "-c", "x = 1")))
    samples["stop"].append(milliseconds(lambda: run(PROGRAM, "stop", "--session", session)))


def from_nothing(path):
    """A first start, when not even the daemon runs."""
    subprocess.run([PROGRAM, "broker", "stop"], check=False, capture_output=True)
    took, document = seconds(lambda: command("start", "--input", path, "--provider", "scripted"))
    command("stop", "--session", document["session"])
    return 1000 * took


def in_process(path, count):
    """A cell through the Python API, without daemon and command line."""
    with Session(path, provider="scripted", in_process=True) as session:
        for _ in range(20):
            session.exec("x = 1")
        return summary([milliseconds(lambda: session.exec("x = 1")) for _ in range(count)])


def held(engine, path):
    """Memory of container and daemon after a start and a cell that does nothing."""
    session = command("start", "--input", path, "--provider", "scripted")["session"]
    try:
        command("exec", "--session", session, "-c", "x = 1")
        ident = command("status", "--session", session)["container"]
        daemon = command("broker", "status")["pid"]
        return {"container_mib": round(container_mib(engine, ident), 1), DAEMON_AT_REST: round(resident_mib(daemon), 1)}
    finally:
        command("stop", "--session", session)


def many(engine, path, counts):
    """Start that many sessions at once; what the daemon holds more for each, and what a container holds."""
    report = {}
    for count in counts:
        subprocess.run([PROGRAM, "broker", "stop"], check=False, capture_output=True)
        first = command("start", "--input", path, "--provider", "scripted", "--new")["session"]
        daemon = command("broker", "status")["pid"]
        before = resident_mib(daemon)
        words = [PROGRAM, "start", "--input", str(path), "--provider", "scripted", "--new"]
        took, _ = seconds(lambda words=words, count=count: all_of(words, count - 1))
        sessions = command("list")["sessions"]
        idents = [command("status", "--session", each["session"])["container"] for each in sessions[:5]]
        report[str(count)] = {
            "seconds": round(took, 2),
            "sessions": len(sessions),
            "daemon_mib": round(resident_mib(daemon), 1),
            "daemon_mib_each": round((resident_mib(daemon) - before) / (count - 1), 2) if count > 1 else None,
            "container_mib": round(max(container_mib(engine, ident) for ident in idents), 1),
            "first": first,
        }
        command("stop", "--all")
    return report


def all_of(words, count):
    started = [subprocess.Popen(words, stdout=subprocess.DEVNULL, env=os.environ) for _ in range(count)]
    for process in started:
        if process.wait():
            raise SystemExit(f"{' '.join(words)} failed")
