"""The dozen things that went wrong, each with its exact number of occurrences.

An occurrence is one record of one or more lines written together. ``signature`` is a text that stands in exactly one line of each
record and nowhere else in the log, so the true count can also be had with ``grep -c``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlm_sandbox.demo.parts import Stamp, address, hexadecimal, java, pid, service, syslog, trace, worker

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

    from rlm_sandbox.demo.parts import Line


@dataclass(frozen=True, slots=True)
class Incident:
    """One planted kind of failure. ``count`` is its number in a log of the full size."""

    id: str
    title: str
    signature: str
    count: int
    bursts: int
    """In how many places of the log its occurrences gather."""
    render: Callable[[Random], list[Line]]


def _out_of_memory(rng: Random) -> list[Line]:
    victim = pid(rng)
    return [
        syslog("kernel", "java invoked oom-killer: gfp_mask=0xcc0(GFP_KERNEL), order=0, oom_score_adj=0"),
        syslog("kernel", f"Out of memory: Killed process {victim} (java) total-vm:{rng.randrange(4, 9) * 10**6}kB"),
        syslog("kernel", f"oom_reaper: reaped process {victim} (java), now anon-rss:0kB, file-rss:0kB"),
    ]


def _payment_timeout(rng: Random) -> list[Line]:
    order = f"ORD-{rng.randrange(10**6, 10**7)}"
    return [
        java(rng, "ERROR", "PaymentClient", f"Payment gateway did not answer for order {order} after 30000 ms"),
        *trace(
            "java.net.SocketTimeoutException: Read timed out",
            "\tat java.base/sun.nio.ch.NioSocketImpl.timedRead(NioSocketImpl.java:288)",
            "\tat com.acme.orders.PaymentClient.authorise(PaymentClient.java:117)",
            "\tat com.acme.orders.OrderService.accept(OrderService.java:64)",
            "\t... 38 more",
        ),
    ]


def _deadlock(rng: Random) -> list[Line]:
    return [
        java(rng, "ERROR", "StockRepository", f"Could not reserve stock for item {rng.randrange(1, 9000)}"),
        *trace(
            "org.springframework.dao.CannotAcquireLockException: could not execute statement",
            "\tat com.acme.orders.StockRepository.reserve(StockRepository.java:203)",
            "Caused by: java.sql.SQLException: Deadlock found when trying to get lock; try restarting transaction",
            "\t... 51 more",
        ),
    ]


def _bad_signature(rng: Random) -> list[Line]:
    extra = f'"kid":"{hexadecimal(rng, 8)}","user":{rng.randrange(1, 99999)},"ip":"{address(rng)}"'
    return [service(rng, "error", "auth", "token signature verification failed", extra)]


def _upstream_refused(rng: Random) -> list[Line]:
    client, path = address(rng), f"/products/{rng.randrange(1, 9000)}"
    refused = "connect() failed (111: Connection refused) while connecting to upstream"
    text = f" [error] {pid(rng)}#0: *{rng.randrange(10**6)} {refused}, client: {client}"
    return [
        (
            "",
            Stamp.NGINX,
            f'{text}, request: "GET {path} HTTP/1.1", upstream: "http://10.0.3.7:8080{path}"\n',
        ),
        (f"{client} - - [", Stamp.ACCESS, f'] "GET {path} HTTP/1.1" 502 157 "-" "-"\n'),
    ]


def _password_guessing(rng: Random) -> list[Line]:
    user = rng.choice(("admin", "oracle", "test", "ubuntu", "git", "pi", "backup"))
    return [
        syslog(f"sshd[{pid(rng)}]", f"Failed password for invalid user {user} from {address(rng)} port {pid(rng)} ssh2")
    ]


def _filesystem(rng: Random) -> list[Line]:
    inode = rng.randrange(1, 10**7)
    text = (
        f"EXT4-fs error (device sdb1): ext4_find_entry:1455: inode #{inode}: comm postgres: reading directory lblock 0"
    )
    return [syslog("kernel", text)]


def _connection_slots(rng: Random) -> list[Line]:
    text = "FATAL:  remaining connection slots are reserved for non-replication superuser connections"
    return [syslog(f"postgres[{pid(rng)}]", text)]


def _certificate(rng: Random) -> list[Line]:
    extra = f'"peer":"rates.example.net:443","attempt":{rng.randrange(1, 4)},"trace":"{hexadecimal(rng, 16)}"'
    return [service(rng, "error", "billing", "x509: certificate has expired or is not yet valid", extra)]


def _missing_key(rng: Random) -> list[Line]:
    return [
        worker(rng, "ERROR", f"task invoice.render id={hexadecimal(rng, 8)} raised an unexpected exception"),
        *trace(
            "Traceback (most recent call last):",
            '  File "/srv/worker/tasks.py", line 88, in run',
            "    return handler(payload)",
            '  File "/srv/worker/invoice.py", line 41, in render',
            '    tenant = payload["tenant_id"]',
            "KeyError: 'tenant_id'",
        ),
    ]


def _nil_pointer(rng: Random) -> list[Line]:
    return [
        *trace(
            "panic: runtime error: invalid memory address or nil pointer dereference",
            f"[signal SIGSEGV: segmentation violation code=0x1 addr=0x0 pc=0x{hexadecimal(rng, 6)}]",
            "",
            f"goroutine {rng.randrange(1, 9000)} [running]:",
            "main.(*Catalog).Price(0x0, 0x2a)",
            "\t/src/catalog/price.go:57 +0x1d",
        ),
    ]


def _disk_full(rng: Random) -> list[Line]:
    path = f"/var/lib/uploads/{hexadecimal(rng, 2)}/{hexadecimal(rng, 12)}.part"
    return [worker(rng, "ERROR", f"cannot write {path}: No space left on device")]


INCIDENTS = (
    Incident("oom", "the kernel killed java for lack of memory", "Out of memory: Killed process", 7, 3, _out_of_memory),
    Incident("payment", "the payment gateway timed out", "Payment gateway did not answer", 412, 2, _payment_timeout),
    Incident("deadlock", "reserving stock ran into deadlocks", "Could not reserve stock", 58, 4, _deadlock),
    Incident(
        "signature", "tokens with a bad signature", "token signature verification failed", 1337, 1, _bad_signature
    ),
    Incident("upstream", "nginx could not reach its upstream", "connect() failed (111", 2204, 2, _upstream_refused),
    Incident("ssh", "password guessing over ssh", "Failed password for invalid user", 3850, 5, _password_guessing),
    Incident("ext4", "the database's disk is failing", "EXT4-fs error", 23, 2, _filesystem),
    Incident("slots", "the database ran out of connections", "remaining connection slots", 96, 1, _connection_slots),
    Incident("x509", "the rates service's certificate expired", "certificate has expired", 611, 1, _certificate),
    Incident("keyerror", "invoices without a tenant", "raised an unexpected exception", 149, 3, _missing_key),
    Incident("panic", "the catalogue service crashed", "nil pointer dereference", 5, 5, _nil_pointer),
    Incident("disk", "the upload volume was full", "No space left on device", 31, 1, _disk_full),
)
