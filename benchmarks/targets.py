"""The ratios that matter, derived from one run's figures, each with what it must not pass."""


def at(report, *names):
    for name in names:
        if not isinstance(report, dict) or name not in report:
            return None
        report = report[name]
    return report


def derive(report):
    """Return ``[(name, value, bound, "at most" | "at least")]``; what a run left out is left out."""
    steps = report.get("steps", {})
    sizes = steps.get("by size", {})
    python = at(steps, "python3 -c pass", "median")
    docker = at(steps, "docker run, hardened", "median")
    small, large = at(sizes, "1 KiB", "start", "median"), at(sizes, "1 GiB", "start", "median")
    biggest = list(sizes)[-1] if sizes else None
    cold = at(steps, "without daemon", "median")
    rows = [
        ("start on 1 GiB over start on 1 KiB", over(large, small), 1.1, "at most"),
        ("start over a hardened docker run", over(at(sizes, biggest, "start", "median"), docker), 1.5, "at most"),
        ("the very first start, daemon included, over a hardened docker run", over(cold, docker), None, ""),
        (
            "a cell as a command over python3 -c pass",
            over(at(sizes, biggest, "exec", "median"), python),
            4.0,
            "at most",
        ),
        ("a cell by the Python API, ms", at(sizes, biggest, "exec in process", "median"), 1.0, "at most"),
        ("sub-calls through the broker over the SDK alone", at(report, "calls", "ratio"), 1.15, "at most"),
        ("what the broker adds to a call, ms", at(report, "calls", "added_ms"), 2.0, "at most"),
        ("a kept answer, ms", at(report, "calls", "kept_ms"), 1.0, "at most"),
        (
            "a batch on one prefix over its uncached price",
            at(report, "calls", "shared prefix", "share"),
            0.2,
            "at most",
        ),
        ("spent over a cap", at(report, "calls", "over"), 0, "at most"),
        ("host memory for each further session, MiB", each_session(report), 10.0, "at most"),
        ("daemon, MiB", at(sizes, biggest, "daemon_mib"), 150.0, "at most"),
    ]
    rows += [
        (f"grep, {name}, over grep -c", row["speed_over_beside"], 0.5, "at least")
        for name, row in (at(report, "reading", "grep") or {}).items()
    ]
    return [row for row in rows if row[1] is not None]


def over(value, base):
    return None if value is None or not base else round(value / base, 2)


def each_session(report):
    found = [
        row["daemon_mib_each"] for row in report.get("sessions", {}).values() if row.get("daemon_mib_each") is not None
    ]
    return max(found) if found else None


def kept(value, bound, sense):
    if bound is None:
        return True
    return value <= bound if sense == "at most" else value >= bound
