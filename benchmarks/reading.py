"""How fast a cell reads, beside ``grep -c``, ``wc -l`` and Python's own iteration over the same file, both in the page cache."""

from measure import milliseconds, run, seconds

from rlm_sandbox import Session

PATTERNS = {"literal": "ERROR", "regular expression": r"ERROR.*timeout|fail(ed|ure)", "rare": "zebra crossing"}

TASKS = {
    "lines": ("n = sum(1 for _ in lines())", "python: for line in file"),
    "chunks by lines": ("n = sum(1 for _ in chunks(2000, by='lines'))", "python: for line in file"),
    "chunks by chars": ("n = sum(len(c) for c in chunks(200_000))", "python: for line in file"),
    "count": ("n = context.count('\\n')", "wc -l"),
}

FAR = {
    "count": "n = context.count('ERROR')",
    "slice at the far end": "tail = context[-1000:]; n = len(tail)",
    "chunked map": "n = sum(c.count('ERROR') for c in chunks(4_000_000))",
}


def python_lines(path):
    with path.open(encoding="utf-8", errors="replace") as stream:
        return sum(1 for _ in stream)


BESIDE = {"wc -l": lambda path: run("wc", "-l", path), "python: for line in file": python_lines}


def cell(session, code):
    """Run a cell that must succeed; return its seconds."""
    took, done = seconds(lambda: session.exec(code, timeout=600))
    if done.status != "ok":
        raise SystemExit(f"{code!r}: {done.error}")
    return took


def measure(path, repeats):
    """Best of a few, in MB/s: throughput has a ceiling, and everything that disturbs it only lowers it."""
    size = path.stat().st_size / 1e6
    run("cat", path)  # into the page cache
    report = {"grep": {}, "read": {}}
    with Session(path, provider="scripted", memory="2g", cpus=2) as session:
        cell(session, "len(context)")
        for name, pattern in PATTERNS.items():
            ours = min(cell(session, f"n = len(grep({pattern!r}))") for _ in range(repeats))
            plain = min(milliseconds(lambda p=pattern: grep_count(p, path)) for _ in range(repeats)) / 1000
            report["grep"][name] = ratio(size, ours, plain, "grep -c")
        beside = {name: min(seconds(lambda a=action: a(path))[0] for _ in range(2)) for name, action in BESIDE.items()}
        for name, (code, rival) in TASKS.items():
            report["read"][name] = ratio(size, min(cell(session, code) for _ in range(2)), beside[rival], rival)
    return report


def grep_count(pattern, path):
    """Count as a user would; a pattern that is nowhere makes grep exit with 1."""
    import subprocess  # noqa: PLC0415 - one exit status

    subprocess.run(["grep", "-cE", pattern, str(path)], check=False, capture_output=True)


def ratio(size, ours, plain, rival):
    return {
        "mb_per_s": round(size / ours),
        "beside": rival,
        "beside_mb_per_s": round(size / plain),
        "speed_over_beside": round(plain / ours, 2),
    }


def far(path):
    """What 10 GiB cost inside a container of 512 MiB."""
    report = {}
    with Session(path, provider="scripted", memory="512m", cpus=2) as session:
        for name, code in FAR.items():
            report[name] = {"seconds": round(cell(session, code), 2)}
        report["slice at the far end, again"] = {"seconds": round(cell(session, FAR["slice at the far end"]), 4)}
    return report
