"""The whole way on real logs, by commands alone: cells group the lines, sub-calls name the groups, the answer is a variable.

The groups are compared, line by line, with the templates that people published for the same logs.
"""

import csv
import json
import re
from collections import defaultdict
from importlib import resources
from pathlib import Path

import pytest

pytestmark = pytest.mark.container

LOGHUB = Path(__file__).resolve().parents[3] / "shared" / "data" / "loghub"

RIGHT = {"Apache": 1.0, "HDFS": 0.99, "OpenSSH": 0.99, "Linux": 0.8}
"""Share of lines in exactly right groups. Linux stays below: its templates join lines of different programs."""

GROUP = """
grouper, merged_into = Grouper(), {}
absorb = Group.absorb
def watched(self, other):
    merged_into[id(other)] = self
    absorb(self, other)
Group.absorb = watched
rows = [str(line) for line in lines()]
own = [grouper.add(line, number) for number, line in enumerate(rows)]
groups = grouper.groups()
def root(group):
    while id(group) in merged_into:
        group = merged_into[id(group)]
    return id(group)
members = {}
for number, group in enumerate(own):
    members.setdefault(root(group), []).append(number)
print(len(rows), 'lines,', len(groups), 'groups')
"""

ASK = """
answers = llm_query_batch(
    [f'What does this log message mean? {group.pattern}' for group in groups], prefix='You read logs.', on_error='return'
)
report = [
    {'pattern': group.pattern, 'count': group.count, 'lines': members[id(group)], 'meaning': meaning}
    for group, meaning in zip(groups, answers)
]
FINAL_VAR('report')
"""


def labels(folder, lines):
    """Label each line with the most specific published template that it ends with."""
    rows = list(csv.DictReader((folder / f"{folder.name}_2k.log_templates.csv").open(encoding="utf-8")))
    known = []
    for row in sorted(rows, key=lambda row: -len(row["EventTemplate"].replace("<*>", ""))):
        literal = ".*?".join(re.escape(part) for part in row["EventTemplate"].strip().split("<*>"))
        known.append((row["EventId"], re.compile(rf"(?:^|[\s:\]]){literal}\s*$")))
    return [next(label for label, pattern in known if pattern.search(line)) for line in lines]


@pytest.mark.skipif(not LOGHUB.is_dir(), reason=f"no loghub samples at {LOGHUB}")
@pytest.mark.parametrize("name", sorted(RIGHT))
def test_a_real_log_is_grouped_asked_about_and_answered(cli, name):
    path = LOGHUB / name / f"{name}_2k.log"
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    with cli.session(path, "--budget", "500") as started:
        named = ("--session", started["session"])
        tools = resources.files("rlm_sandbox.strategies").joinpath("templates.py").read_text(encoding="utf-8")
        assert cli.exec(tools, *named)["status"] == "ok"
        grouped = cli.exec(GROUP, *named)
        assert (grouped["status"], grouped["error"]) == ("ok", None)
        done = cli.exec(ASK, *named)
        assert (done["final"]["kind"], done["final"]["name"]) == ("var", "report")
        report = json.loads(cli("final", *named).out)
        spent = cli.ok("budget", *named)
    assert grouped["stdout"] == f"{len(lines)} lines, {len(report)} groups\n"
    assert sum(group["count"] for group in report) == len(lines)
    assert all(group["meaning"].startswith("Scripted answer") for group in report)
    assert spent["calls"] == len(report)

    by_label = defaultdict(set)
    for number, label in enumerate(labels(LOGHUB / name, lines)):
        by_label[label].add(number)
    published = list(by_label.values())
    right = sum(len(group["lines"]) for group in report if set(group["lines"]) in published)
    assert right / len(lines) >= RIGHT[name]
