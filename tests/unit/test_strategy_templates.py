"""Grouping of lines by template: on cases that matter one by one, and on real logs against the templates people made for them."""

import csv
import json
import re
from collections import defaultdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlm_sandbox.strategies import templates
from rlm_sandbox.strategies.templates import Grouper, template

pytestmark = pytest.mark.unit

LOGHUB = Path(__file__).resolve().parents[3] / "shared" / "data" / "loghub"

FLOORS = {"Apache": 1.0, "HDFS": 0.997, "OpenSSH": 0.998, "Linux": 0.819}
"""Share of lines in exactly right groups, as measured. Linux stays below because its templates join lines of different programs
(``su`` and ``sshd``, say) that this grouping keeps apart on purpose."""


def grouped(lines):
    """Return the merged groups of some lines as ``{pattern: count}``."""
    grouper = Grouper()
    for number, line in enumerate(lines):
        grouper.add(line, number)
    return {group.pattern: group.count for group in grouper.groups()}


def group_numbers(lines, monkeypatch):
    """Return each line's group, by watching which groups take in which."""
    grouper = Grouper()
    owner = {}
    absorb = templates.Group.absorb

    def watched(self, other):
        owner[id(other)] = (self, other)
        absorb(self, other)

    monkeypatch.setattr(templates.Group, "absorb", watched)
    first = [grouper.add(line, number) for number, line in enumerate(lines)]
    grouper.groups()

    def root(group):
        while id(group) in owner:
            group = owner[id(group)][0]
        return id(group)

    return [root(group) for group in first]


def true_labels(folder):
    """Label each line with the most specific published template that it ends with."""
    name = folder.name
    rows = list(csv.DictReader((folder / f"{name}_2k.log_templates.csv").open(encoding="utf-8")))
    known = []
    for row in sorted(rows, key=lambda row: -len(row["EventTemplate"].replace("<*>", ""))):
        literal = ".*?".join(re.escape(part) for part in row["EventTemplate"].strip().split("<*>"))
        known.append((row["EventId"], re.compile(rf"(?:^|[\s:\]]){literal}\s*$")))
    lines = (folder / f"{name}_2k.log").read_text(encoding="utf-8", errors="replace").splitlines()
    return lines, [next(label for label, pattern in known if pattern.search(line)) for line in lines]


def accuracy(labels, groups):
    """Return the share of lines whose group holds exactly the lines of one label."""
    by_label, by_group = defaultdict(set), defaultdict(set)
    for line, (label, group) in enumerate(zip(labels, groups, strict=True)):
        by_label[label].add(line)
        by_group[group].add(line)
    right = sum(len(lines) for lines in by_group.values() if by_label[labels[min(lines)]] == lines)
    return right / len(labels)


@pytest.mark.skipif(not LOGHUB.is_dir(), reason="the loghub samples do not lie beside this checkout")
@pytest.mark.parametrize("name", sorted(FLOORS))
def test_groups_of_real_logs_match_the_published_templates(name, monkeypatch):
    lines, labels = true_labels(LOGHUB / name)
    assert accuracy(labels, group_numbers(lines, monkeypatch)) >= FLOORS[name]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("took 12 ms", "took 3.5 ms"),
        ("2026-03-14T02:11:09.123Z started", "2026-03-15T12:00:00.001Z started"),
        ("Mar 14 02:11:09 host sshd[12]: bye", "Dec  1 12:11:09 host sshd[40000]: bye"),
        ("peer 192.0.2.1:80 gone", "peer 198.51.100.20:8080 gone"),
        ("id=00b82067 gone", "id=bbdafcde17 gone"),
        ("blk_-6952295868487656571 ok", "blk_38865049064139660 ok"),
        ("open /var/lib/a/b failed", "open /srv/x failed"),
        ('relation "users" missing', 'relation "old orders" missing'),
        ('{"ts":1,"level":"error","msg":"no 5"}', '{"ts":2,"level":"error","msg":"no 77"}'),
        (
            '192.0.2.1 - - [14/Mar/2026:08:39:33 +0000] "GET /a HTTP/1.1" 502 1',
            '192.0.2.9 - - [15/Mar/2026:08:39:33 +0000] "GET /b?c HTTP/1.1" 502 99',
        ),
    ],
)
def test_lines_that_differ_in_values_have_one_template(one, other):
    assert template(one) == template(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Accepted password for root", "Failed password for root"),
        ("sda1 is full", "sdb1 is full"),
        ("can't open it, don't retry", "can't close it, don't retry"),
        ('{"level":"error","msg":"expired"}', '{"level":"error","msg":"revoked"}'),
        (
            '192.0.2.1 - - [14/Mar/2026:08:39:33 +0000] "GET /a HTTP/1.1" 502 1',
            '192.0.2.1 - - [14/Mar/2026:08:39:33 +0000] "GET /a HTTP/1.1" 200 1',
        ),
        ("com.acme.Orders - gone", "com.acme.Stock - gone"),
    ],
)
def test_lines_that_say_different_things_stay_apart(one, other):
    assert len(grouped([one] * 50 + [other] * 3)) == 2


def test_names_after_a_word_that_announces_one_are_merged():
    lines = [f"Failed password for user {name} on tty" for name in ("root", "oracle", "git")]
    assert grouped(lines) == {"Failed password for user <*> on tty": 3}


def test_a_word_in_the_place_of_a_number_joins_the_numbers():
    assert grouped(["batch 12 done", "batch 13 done", "batch deadbeefcafe done"]) == {"batch <*> done": 3}


def test_a_few_different_words_elsewhere_do_not_make_a_place_variable():
    lines = ["link up again", "link down again", "link flapping again"]
    assert len(grouped(lines)) == 3


def test_more_templates_than_there_is_room_for_are_merged_in_passing(monkeypatch):
    monkeypatch.setattr(Grouper, "ROOM", 50)
    lines = [
        f"host {'abcdefghij'[n % 10]}{'klmnopqrst'[n // 10 % 10]}{'uvwxyzabcd'[n // 100]} is down" for n in range(1000)
    ]
    assert grouped(lines) == {"host <*> is down": 1000}


def test_a_group_remembers_its_first_and_last_line_across_merges():
    grouper = Grouper()
    for number, line in ((5, "user root left"), (7, "user git left"), (9, "user root left")):
        grouper.add(line, number)
    (group,) = grouper.groups()
    assert (group.first, group.last, group.example) == (5, 9, "user root left")


@given(st.lists(st.text(alphabet="ab1 ={}\"':/<*>.\u2028[]", max_size=30), max_size=60))
def test_every_line_is_counted_exactly_once_whatever_it_holds(lines):
    assert sum(grouped(lines).values()) == len(lines)


@given(st.text(max_size=300) | st.dictionaries(st.text(max_size=5), st.text(max_size=9)).map(json.dumps))
def test_a_template_is_one_line_however_odd_the_text(line):
    assert len(template(line).splitlines()) <= 1
