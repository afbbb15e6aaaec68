import pytest

from rlm_sandbox.container.languages import OTHER, SHOWN, Languages, language_of

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("src/app.py", "Python"),
        ("A.PY", "Python"),
        ("Makefile", "Make"),
        ("x/readme", "Notes"),
        ("data.tar.gz", "archive"),
        ("py", OTHER),
        (".py", "Python"),
        ("dir.py/binary", OTHER),
        ("", OTHER),
        ("trailing.", OTHER),
    ],
)
def test_a_kind_is_told_by_the_ending_of_the_name(path, name):
    assert language_of(path) == name


def test_the_largest_kinds_come_first_and_what_is_unknown_last():
    found = Languages()
    for path, size in (("a.py", 10), ("b.unknown", 999), ("c.md", 50), ("d.py", 5)):
        found.add(path, size)
    assert found.summary() == [
        {"language": "Markdown", "files": 1, "bytes": 50},
        {"language": "Python", "files": 2, "bytes": 15},
        {"language": OTHER, "files": 1, "bytes": 999},
    ]


def test_a_summary_is_short_and_loses_nothing():
    found = Languages()
    endings = [
        "c",
        "cpp",
        "cs",
        "css",
        "csv",
        "clj",
        "dart",
        "ex",
        "erl",
        "go",
        "html",
        "hs",
        "ini",
        "json",
        "java",
        "js",
    ]
    for size, ending in enumerate(endings, start=1):
        found.add(f"a.{ending}", size)
    summary = found.summary()
    assert len(summary) == SHOWN + 1
    assert sum(each["files"] for each in summary) == len(endings)
    assert sum(each["bytes"] for each in summary) == sum(range(1, len(endings) + 1))
    assert summary[-1] == {"language": OTHER, "files": 4, "bytes": 1 + 2 + 3 + 4}


def test_an_empty_one_is_empty():
    assert Languages().summary() == []
