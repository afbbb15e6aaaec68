"""Clocks, samples and the machine: what every benchmark here shares."""

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

PROGRAM = str(Path(sys.executable).with_name("rlm-sandbox"))
PYTHON_IN_IMAGE = "/usr/local/bin/python3"


def seconds(action):
    """Return ``(seconds, what the action returned)``."""
    began = time.perf_counter()
    result = action()
    return time.perf_counter() - began, result


def milliseconds(action):
    return 1000 * seconds(action)[0]


def run(*words, **options):
    """Run a program to its successful end, quietly; return its stdout."""
    return subprocess.run([str(word) for word in words], check=True, capture_output=True, **options).stdout


def command(*words):
    """Run a command of ours and return its document."""
    return json.loads(run(PROGRAM, *words))


def summary(samples):
    """Return the shape in which samples are reported; the unit is the samples' own."""
    ordered = sorted(samples)
    last = ordered[min(len(ordered) - 1, round(0.99 * (len(ordered) - 1)))]
    return {
        "median": round(statistics.median(ordered), 3),
        "least": round(ordered[0], 3),
        "p99": round(last, 3),
        "samples": len(ordered),
    }


def resident_mib(pid):
    """Return the private and shared memory that a process holds, in MiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


def container_mib(engine, ident):
    """Return what a container uses without the page cache, which belongs to the host, in MiB."""
    stats = engine.api.stats(ident, stream=False, one_shot=True)["memory_stats"]
    cache = stats["stats"].get("total_inactive_file", stats["stats"].get("inactive_file", 0))
    return (stats["usage"] - cache) / 2**20


def machine(engine):
    """Describe what everything was measured on."""
    model = next((line.split(":", 1)[1] for line in lines("/proc/cpuinfo") if line.startswith("model name")), "")
    memory = next((line.split()[1] for line in lines("/proc/meminfo") if line.startswith("MemTotal")), 0)
    version = engine.api.version()
    return {
        "cpu": model.strip() or platform.machine(),
        "cpus": len(os.sched_getaffinity(0)),
        "memory_gib": round(int(memory) / 2**20, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "engine": version["Version"],
        "load_at_start": round(os.getloadavg()[0], 2),
    }


def lines(path):
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []
