"""What a healthy system writes, with the traps that make a naive search wrong.

Most lines say that something worked. About one in fifty carries a word such as *error*, *failed*, *timeout* or *panic* and still
means nothing bad: a counter at zero, a setting, a file name, a recovery.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rlm_sandbox.demo.parts import Stamp, address, hexadecimal, java, pid, service, syslog, worker

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

    from rlm_sandbox.demo.parts import Line

_PAGES = ("/", "/cart", "/search?q=lamp", "/assets/app.4f2a.js", "/assets/site.css", "/login", "/checkout", "/help/faq")
_AGENTS = (
    "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0",
    "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/17.5 Safari/605.1.15",
    "curl/8.5.0",
    "kube-probe/1.30",
)
_ROUTES = ("/v1/cart", "/v1/orders", "/v1/users/me", "/v1/catalog", "/v1/stock")
_TABLES = ("orders", "stock", "users", "sessions")


def _access(rng: Random, path: str | None = None) -> Line:
    path = path or (rng.choice(_PAGES) if rng.getrandbits(1) else f"/products/{rng.randrange(1, 9000)}")
    status = rng.choices((200, 304, 301, 404), (88, 8, 2, 2))[0]
    return (
        f"{address(rng)} - - [",
        Stamp.ACCESS,
        f'] "GET {path} HTTP/1.1" {status} {rng.randrange(180, 90_000)} "-" "{rng.choice(_AGENTS)}"\n',
    )


def _gateway(rng: Random) -> Line:
    extra = (
        f'"route":"{rng.choice(_ROUTES)}","status":200,"ms":{rng.randrange(2, 400)},"trace":"{hexadecimal(rng, 16)}"'
    )
    return service(rng, "info", "gateway", "request completed", extra)


def _orders(rng: Random) -> Line:
    order = f"ORD-{rng.randrange(10**6, 10**7)}"
    text = rng.choice(
        (
            f"Order {order} accepted in {rng.randrange(3, 90)} ms",
            f"Order {order} moved to state SHIPPED",
            f"Reserved {rng.randrange(1, 6)} items for {order} in warehouse {rng.randrange(1, 5)}",
        )
    )
    return java(rng, "INFO", "OrderService", text)


def _system(rng: Random) -> Line:
    return rng.choice(
        (
            lambda: syslog(f"CRON[{pid(rng)}]", "(root) CMD (/usr/lib/sysstat/sa1 1 1)"),
            lambda: syslog(
                f"sshd[{pid(rng)}]", f"Accepted publickey for deploy from {address(rng)} port {pid(rng)} ssh2"
            ),
            lambda: syslog("systemd[1]", f"Started session-{rng.randrange(1, 9999)}.scope - Session of user deploy."),
        )
    )()


def _database(rng: Random) -> Line:
    text = rng.choice(
        (
            f"LOG:  duration: {rng.random() * 40:.3f} ms  execute fetch_{rng.choice(_TABLES)}: SELECT * WHERE id = $1",
            f"LOG:  checkpoint complete: wrote {rng.randrange(40, 9000)} buffers",
        )
    )
    return syslog(f"postgres[{pid(rng)}]", text)


def _tasks(rng: Random) -> Line:
    name = rng.choice(("invoice.render", "mail.send", "stock.sync"))
    return worker(rng, "INFO", f"task {name} id={hexadecimal(rng, 8)} done in {rng.random() * 3:.2f}s")


def _near_miss(rng: Random) -> Line:
    return rng.choice(
        (
            lambda: _access(rng, "/assets/error-page.css"),
            lambda: _access(rng, "/docs/timeouts-and-retries"),
            lambda: service(
                rng, "info", "gateway", "health check", f'"errors":0,"failed":0,"ms":{rng.randrange(1, 9)}'
            ),
            lambda: service(rng, "info", "billing", "error rate within limits", f'"rate":{rng.random() / 100:.4f}'),
            lambda: java(rng, "INFO", "Settings", f"Loaded timeout={rng.randrange(1, 60) * 1000} failFast=false"),
            lambda: java(rng, "INFO", "ReplicaManager", f"Replica {rng.randrange(1, 4)} failed over successfully"),
            lambda: java(
                rng, "DEBUG", "RetryPolicy", f"Attempt {rng.randrange(2, 5)} succeeded after an earlier timeout"
            ),
            lambda: syslog("systemd[1]", "Reached target panic-free.target - Self test passed, no errors."),
            lambda: syslog("kernel", f"oom_score_adj of process {pid(rng)} set to 0"),
            lambda: syslog(f"postgres[{pid(rng)}]", "LOG:  automatic vacuum: 0 errors, 0 pages refused"),
            lambda: worker(rng, "INFO", f"batch {hexadecimal(rng, 8)} finished: {rng.randrange(9, 999)} ok, 0 failed"),
            lambda: worker(rng, "INFO", "error=0 retries=0 fatal=0"),
        )
    )()


_MIX: tuple[tuple[Callable[[Random], Line], int], ...] = (
    (_access, 44),
    (_gateway, 20),
    (_orders, 15),
    (_system, 8),
    (_database, 6),
    (_tasks, 5),
    (_near_miss, 2),
)


def pool(rng: Random, size: int) -> list[Line]:
    """Render ``size`` lines in the proportions of the mix, for the writer to draw from."""
    kinds = rng.choices([kind for kind, _ in _MIX], [weight for _, weight in _MIX], k=size)
    return [kind(rng) for kind in kinds]
