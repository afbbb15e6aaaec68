"""A canary on the network: any container reaches it, a session does not, by name, by address or by any kind of socket."""

import os

import pytest

os.environ.setdefault(
    "TESTCONTAINERS_RYUK_DISABLED", "true"
)  # its reaper is an image of its own, and there may be no registry

from testcontainers.core.container import DockerContainer

pytestmark = pytest.mark.container

PORT = 8099

CANARY = f"""
import http.server
class Canary(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        print('VISITED', self.path, flush=True)
        self.send_response(200); self.end_headers(); self.wfile.write(b'sang')
http.server.HTTPServer(('0.0.0.0', {PORT}), Canary).serve_forever()
"""

VISIT = """
import time, urllib.request
for attempt in range(50):
    try:
        print(urllib.request.urlopen('http://{host}:{port}/{who}', timeout=5).read().decode())
        break
    except OSError as exc:
        print(type(exc).__name__, exc)
        time.sleep({pause})
"""

OTHER_WAYS = """
import socket
for family, kind in [('AF_INET', 'SOCK_STREAM'), ('AF_INET', 'SOCK_DGRAM'), ('AF_INET6', 'SOCK_STREAM'), ('AF_UNIX', 'SOCK_STREAM'),
                     ('AF_NETLINK', 'SOCK_RAW'), ('AF_PACKET', 'SOCK_RAW'), ('AF_VSOCK', 'SOCK_STREAM'), ('AF_ALG', 'SOCK_SEQPACKET')]:
    try:
        socket.socket(getattr(socket, family), getattr(socket, kind)).close()
        print(family, kind, 'OPENED')
    except OSError as exc:
        print(family, kind, 'refused')
try:
    print(socket.getaddrinfo('example.com', 80))
except OSError as exc:
    print('no name service')
import os
print(os.listdir('/sys/class/net') if os.path.isdir('/sys/class/net') else ['lo'])
"""


def python(image_id, code):
    return DockerContainer(image_id).with_kwargs(entrypoint=["/usr/local/bin/python3", "-c", code], init=True)


@pytest.fixture(scope="module")
def canary(base):
    with python(base.id, CANARY) as running:
        inner = running.get_wrapped_container()
        inner.reload()
        (network,) = inner.attrs["NetworkSettings"]["Networks"].values()

        def visits():
            return running.get_logs()[0].decode().split("VISITED")[1:]

        yield network["IPAddress"], visits


def test_a_plain_container_reaches_the_canary_and_a_session_does_not(live, base, canary):
    address, visits = canary
    with python(base.id, VISIT.format(host=address, port=PORT, who="plain", pause=0.2)) as plain:
        assert plain.get_wrapped_container().wait(timeout=60)["StatusCode"] == 0
        assert plain.get_logs()[0].decode().endswith("sang\n")
    assert [visit.split() for visit in visits()] == [["/plain"]]

    done = live.exec(VISIT.format(host=address, port=PORT, who="session", pause=0).replace("range(50)", "range(2)"))
    assert done["status"] == "ok"
    assert "sang" not in done["stdout"]
    assert "Error" in done["stdout"]
    assert len(visits()) == 1, "the canary was visited from a session"


def test_a_session_opens_no_socket_of_any_family(live):
    done = live.exec(OTHER_WAYS)
    assert done["status"] == "ok", done["error"]
    assert "OPENED" not in done["stdout"]
    assert "no name service" in done["stdout"]
    assert done["stdout"].splitlines()[-1] in {"['lo']", "[]"}
