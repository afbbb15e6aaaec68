"""A headless Chromium: what a page turns into, what it looks like, and what it asks the network for."""

from __future__ import annotations

import http.server
import re
import shutil
import struct
import subprocess
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome")


def program() -> str:
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    assert found, "no Chromium: sh scripts/browser.sh installs it"
    return found


def run(page: Path, *options: str, profile: Path) -> str:
    """Open a page from disk and return what the options make Chromium print."""
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    flags += ["--disable-component-update", "--disable-background-networking", f"--user-data-dir={profile}"]
    done = subprocess.run(
        [program(), *flags, *options, page.as_uri()], capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def dom(page: Path, profile: Path, *options: str) -> str:
    """Return the document as it stands after scripts had their time."""
    return run(page, "--virtual-time-budget=3000", "--dump-dom", *options, profile=profile)


def screenshot(page: Path, target: Path, width: int, height: int, profile: Path) -> tuple[int, int]:
    """Save a picture of the page and return its size as the PNG says."""
    run(page, f"--screenshot={target}", f"--window-size={width},{height}", "--hide-scrollbars", profile=profile)
    head = target.read_bytes()[:24]
    return struct.unpack(">II", head[16:24])


def framed(page: Path, target: Path, width: int, height: int) -> Path:
    """Return a page that shows ``page`` as wide as a phone: a window of Chromium is 500 wide at least."""
    frame = f'<iframe src="{page.as_uri()}" width="{width}" height="{height}" style="border:0"></iframe>'
    target.write_text(f"<!DOCTYPE html><title>frame</title><body style='margin:0'>{frame}", encoding="utf-8")
    return target


@contextmanager
def canary():
    """A loopback web server that remembers who came; yields ``(port, list of paths)``."""
    seen: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            seen.append(self.path)
            self.send_response(204)
            self.end_headers()

        do_POST = do_GET  # noqa: N815 - the library's name

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_address[1], seen
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


def tags(markup: str) -> list[str]:
    """Return the opening tags of a document."""
    return re.findall(r"<[a-zA-Z][^>]*>", markup)
