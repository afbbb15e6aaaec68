"""The ratios that README.md quotes, between two marks, from a run's figures."""

from pathlib import Path

from targets import derive

BEGIN, END = "<!-- measured by make bench -->", "<!-- end of what was measured -->"
README = Path(__file__).resolve().parent.parent / "README.md"


def block(report):
    lines = ["| measured | is |", "|---|--:|"]
    ratios = [(name, value) for name, value, _, _ in derive(report) if not name.endswith((", ms", ", MiB"))]
    lines += [f"| {name} | {value:.3g} |" for name, value in ratios]
    busy = report["machine"]["load_at_start"]
    lines += [
        "",
        f"{report['machine']['cpus']} cores; {busy:.1f} other programs were at work on them when the run began.",
    ]
    return "\n".join(lines)


def update(report):
    before, begin, rest = README.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"README.md has no {BEGIN} ... {END}")
    README.write_text(f"{before}{BEGIN}\n\n{block(report)}\n\n{END}{after}")
