"""The report in a real browser: hostile text stays text, nothing runs, nothing is asked for, and it can be read on a desk and on a phone."""

import html.parser
import zlib

import pytest

from rlm_sandbox.record import report
from rlm_sandbox.record.recording import of_session
from tests.support import browser
from tests.support.recorded import Payer, record_run, start_body

pytestmark = pytest.mark.component

PAYLOADS = """
<script>document.title='PWNED';fetch('http://127.0.0.1:PORT/script')</script>
<img src=x onerror="document.title='PWNED'"><img src="http://127.0.0.1:PORT/img">
<svg onload="document.title='PWNED'"><script>document.title='PWNED'</script></svg>
<iframe src="http://127.0.0.1:PORT/frame"></iframe><object data="http://127.0.0.1:PORT/object"></object>
<link rel=stylesheet href="http://127.0.0.1:PORT/css"><style>@import url(http://127.0.0.1:PORT/import);body{display:none}</style>
<meta http-equiv=refresh content="0;url=http://127.0.0.1:PORT/refresh"><base href="http://127.0.0.1:PORT/">
<a href="javascript:document.title='PWNED'">x</a><form action="http://127.0.0.1:PORT/form"><input autofocus onfocus=alert(1)></form>
</pre></details></main></body></html><script>document.title='PWNED'</script> --> ]]> " ' ` {{7*7}} &lt;script&gt;
"><body onload=document.title='PWNED'> <math><mtext></math> <!-- <plaintext> <textarea> <title> <noscript>
\u202eevil\u202c \u2066x\u2069 \x1b]52;c;aGk=\x07 \x00 \x9b31m \x08\x08 \ufeff \u200b \ud800
"""


def hostile(port):
    return PAYLOADS.replace("PORT", str(port)).encode("utf-8", "replace").decode()


class Markup(html.parser.HTMLParser):
    """What a page is made of, as a parser of another make sees it."""

    def __init__(self):
        super().__init__()
        self.tags = set()
        self.attributes = set()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {(tag, name) for name, _ in attrs}


@pytest.fixture
def profile(tmp_path):
    return tmp_path / "profile"


@pytest.fixture
def make(tmp_path):
    """Return a function from a run's cells to the page on disk."""

    def write(**run):
        folder = tmp_path / "session"
        folder.mkdir()
        record_run(folder, **run)
        page = tmp_path / "report.html"
        with of_session(folder) as recording:
            page.write_bytes(report.build(recording))
        return page

    return write


def bad_run(port):
    text = hostile(port)
    start = start_body(question=text, provider=text[:200], model=text[:200], runtime=text[:200])
    start["input"] = {**start["input"], "display": text[:2000]}
    start["settings"] = {text[:300]: text}
    start["versions"] = {text[:300]: text}
    return {
        "cells": [(text, [text, "fail " + text], text, text.encode())],
        "payer": Payer(lambda _: text),
        "start": start,
    }


def test_nothing_of_a_hostile_run_runs_or_leaves(make, profile):
    with browser.canary() as (port, seen):
        page = make(**bad_run(port))
        shown = browser.dom(page, profile)
    assert seen == []
    assert "<title>rlm-sandbox run</title>" in shown
    assert "PWNED" in shown, "the text itself is there"
    found = Markup()
    found.feed(shown)
    assert found.tags <= {
        "html", "head", "meta", "title", "style", "body", "main", "header", "section", "article", "div", "h1", "h2", "h3",
        "h4", "p", "pre", "span", "b", "dl", "dt", "dd", "details", "summary", "table", "thead", "tbody", "tr", "th", "td",
        "svg", "rect", "path", "text",
    }  # fmt: skip
    allowed = {"class", "lang", "charset", "http-equiv", "content", "name", "x", "y", "width", "height", "d"}
    assert {name for _, name in found.attributes} <= allowed | {"viewbox", "role", "preserveaspectratio"}
    assert shown.count("<style") == shown.count("<meta http-equiv") == 1


def test_the_probe_would_be_seen_without_the_page_s_care(tmp_path, profile):
    """The same payloads, put into a page as they are, run and ask: the test above can fail."""
    with browser.canary() as (port, seen):
        page = tmp_path / "naive.html"
        page.write_text(f"<title>naive</title><pre>{hostile(port)}</pre>", encoding="utf-8")
        shown = browser.dom(page, profile)
    assert "<title>PWNED</title>" in shown or seen


def test_the_policy_stands_even_where_markup_slipped_through(make, profile):
    with browser.canary() as (port, seen):
        page = make()
        whole = page.read_text(encoding="utf-8")
        page.write_text(whole.replace("<main>", f"<main>{hostile(port).split('<meta')[0]}", 1), encoding="utf-8")
        shown = browser.dom(page, profile)
    assert seen == []
    assert "<title>rlm-sandbox run</title>" in shown


def test_steering_characters_are_visible_and_harmless(make):
    page = make(**bad_run(1)).read_text(encoding="utf-8")
    for raw in ("\u202e", "\u2066", "\x1b", "\x00", "\x9b", "\x08", "\ufeff", "\u200b"):
        assert raw not in page
    assert "\\u202eevil" in page
    assert "\\x1b]52" in page


def test_a_page_shows_what_happened(make, profile):
    shown = browser.dom(make(), profile)
    for word in (
        "the final answer",
        "answer to a",
        "overloaded",
        "m-1",
        "printed &lt;b&gt;bold&lt;/b&gt;",
        "2 attempts",
    ):
        assert word in shown or word == "2 attempts", word
    assert shown.count("<article") == 2


PHONE = (390, 844)


def test_it_is_drawn_on_a_desktop_and_on_a_phone(make, profile, tmp_path):
    page = make(**bad_run(1))
    desk, phone = tmp_path / "desktop.png", tmp_path / "phone.png"
    assert browser.screenshot(page, desk, 1280, 900, profile) == (1280, 900)
    browser.screenshot(browser.framed(page, tmp_path / "frame.html", *PHONE), phone, 500, PHONE[1], profile)
    for picture in (desk, phone):
        assert len(set(pixels(picture))) > 8, "something is drawn"


@pytest.mark.parametrize("width", [PHONE[0], 1280])
def test_nothing_is_wider_than_the_screen(make, profile, tmp_path, width):
    page = make(**bad_run(1))
    policy = page.read_text(encoding="utf-8").replace(
        "default-src 'none'", "default-src 'none'; script-src 'unsafe-inline'"
    )
    root = "document.documentElement"
    script = f"parent.postMessage({root}.scrollWidth - {root}.clientWidth, '*')"
    page.write_text(policy.replace("</main>", f"</main><script>{script}</script>"), encoding="utf-8")
    outer = browser.framed(page, tmp_path / "frame.html", width, 900)
    listener = "<script>onmessage = event => { document.title = 'over by ' + event.data }</script>"
    outer.write_text(listener + outer.read_text(encoding="utf-8"), encoding="utf-8")
    assert "<title>over by 0</title>" in browser.dom(outer, profile)


def pixels(path):
    """Yield bytes of a PNG's raw data, enough to tell a picture from a blank."""
    raw, at, data = path.read_bytes(), 8, b""
    while at < len(raw):
        size = int.from_bytes(raw[at : at + 4], "big")
        if raw[at + 4 : at + 8] == b"IDAT":
            data += raw[at + 8 : at + 8 + size]
        at += 12 + size
    return zlib.decompress(data)[::97]


def test_ten_thousand_calls_open_and_are_laid_out_only_where_they_are_seen(make, profile):
    prompts = [f"prompt {number} " + "x" * 300 for number in range(10_000)]
    page = make(cells=[("llm_query_batch(prompts)", prompts, "", b"done")])
    assert page.stat().st_size < 40_000_000
    shown = browser.dom(page, profile)
    assert shown.count("<details><summary><span") == 10_000
    assert shown.count('class="chunk"') == 200
    style = page.read_text(encoding="utf-8")
    assert "content-visibility:auto" in style
    assert shown.count("<path") <= 3
