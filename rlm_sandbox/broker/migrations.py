"""The ledger's schema, as named functions that are only ever appended.

The schema itself is the last line of defence: whatever the code above it believes, SQLite refuses a hold that does not fit
(``accounts_hold_fits``), a sum above its cap that nobody declared (the CHECKs with ``*_over``), a hold after the deadline
(``attempts_in_time``), and any change to an event (``events_are_final``).

``*_over`` is by how much an account stands above its cap for one of the two reasons that are no overspending of ours: the
provider reported more than the worst case that was held, or the host lowered the cap below what was spent. While it is
not zero no hold fits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable

SUMS = (
    "calls",
    "calls_held",
    "tokens_in",
    "tokens_out",
    "tokens_unreported",
    "tokens_held",
    "micro",
    "micro_held",
    "cache_reads",
    "cache_writes",
    "cached_calls",
    "unpriced_calls",
)
"""Columns of ``accounts`` that are sums of the columns of the same name in ``events``; the second are the changes."""


def m001_accounts_attempts_events(connection: sqlite3.Connection) -> None:
    """Create accounts, attempts, events and owners."""
    sums = ",\n".join(
        f"{name} INTEGER NOT NULL DEFAULT 0 CHECK (typeof({name}) = 'integer' AND {name} >= 0)" for name in SUMS
    )
    deltas = ",\n".join(f"{name} INTEGER NOT NULL DEFAULT 0 CHECK (typeof({name}) = 'integer')" for name in SUMS)
    connection.execute(f"""
        CREATE TABLE accounts (
            id INTEGER PRIMARY KEY,
            name TEXT NOT NULL UNIQUE,
            kind TEXT NOT NULL CHECK (kind IN ('session', 'day')),
            opened_ms INTEGER NOT NULL,
            limits_given TEXT NOT NULL DEFAULT '{{}}',
            calls_cap INTEGER CHECK (calls_cap >= 0),
            tokens_cap INTEGER CHECK (tokens_cap >= 0),
            micro_cap INTEGER CHECK (micro_cap >= 0),
            token_warning INTEGER,
            deadline_ms INTEGER,
            calls_over INTEGER NOT NULL DEFAULT 0 CHECK (calls_over >= 0),
            tokens_over INTEGER NOT NULL DEFAULT 0 CHECK (tokens_over >= 0),
            micro_over INTEGER NOT NULL DEFAULT 0 CHECK (micro_over >= 0),
            warned INTEGER NOT NULL DEFAULT 0,
            latched TEXT,
            {sums},
            CHECK (calls_cap IS NULL OR calls + calls_held <= calls_cap + calls_over),
            CHECK (tokens_cap IS NULL
                   OR tokens_in + tokens_out + tokens_unreported + tokens_held <= tokens_cap + tokens_over),
            CHECK (micro_cap IS NULL OR micro + micro_held <= micro_cap + micro_over)
        )""")
    connection.execute("""
        CREATE TRIGGER accounts_hold_fits BEFORE UPDATE ON accounts
        WHEN (NEW.calls_held > OLD.calls_held AND NEW.calls + NEW.calls_held > NEW.calls_cap)
          OR (NEW.tokens_held > OLD.tokens_held
              AND NEW.tokens_in + NEW.tokens_out + NEW.tokens_unreported + NEW.tokens_held > NEW.tokens_cap)
          OR (NEW.micro_held > OLD.micro_held AND NEW.micro + NEW.micro_held > NEW.micro_cap)
        BEGIN SELECT RAISE(ABORT, 'a hold would exceed a cap'); END""")
    connection.execute("""
        CREATE TABLE attempts (
            id INTEGER PRIMARY KEY,
            account INTEGER NOT NULL REFERENCES accounts (id),
            day INTEGER NOT NULL REFERENCES accounts (id),
            owner TEXT NOT NULL,
            state TEXT NOT NULL DEFAULT 'sent' CHECK (state IN ('sent', 'settled', 'released', 'lost')),
            opened_ms INTEGER NOT NULL,
            closed_ms INTEGER,
            cell INTEGER NOT NULL,
            ordinal INTEGER NOT NULL,
            number INTEGER NOT NULL,
            provider TEXT NOT NULL,
            destination TEXT NOT NULL,
            model TEXT NOT NULL,
            request_key TEXT NOT NULL,
            prompt_sha256 TEXT NOT NULL,
            bytes_out INTEGER NOT NULL,
            priced INTEGER NOT NULL CHECK (priced IN (0, 1)),
            prices TEXT,
            held_tokens_in INTEGER NOT NULL CHECK (held_tokens_in >= 0),
            held_tokens_out INTEGER NOT NULL CHECK (held_tokens_out >= 0),
            held_micro INTEGER NOT NULL CHECK (held_micro >= 0),
            tokens_in INTEGER,
            tokens_out INTEGER,
            cache_reads INTEGER,
            cache_writes INTEGER,
            micro INTEGER,
            outcome TEXT,
            request_id TEXT,
            CHECK ((state = 'sent') = (closed_ms IS NULL))
        )""")
    connection.execute("CREATE INDEX attempts_open ON attempts (owner) WHERE state = 'sent'")
    connection.execute("CREATE INDEX attempts_by_account ON attempts (account, id)")
    connection.execute("""
        CREATE TRIGGER attempts_in_time BEFORE INSERT ON attempts
        WHEN NEW.opened_ms >= (SELECT deadline_ms FROM accounts WHERE id = NEW.account)
        BEGIN SELECT RAISE(ABORT, 'a hold after the deadline'); END""")
    connection.execute(f"""
        CREATE TABLE events (
            id INTEGER PRIMARY KEY,
            at_ms INTEGER NOT NULL,
            kind TEXT NOT NULL
                CHECK (kind IN ('open', 'limits', 'hold', 'settle', 'release', 'lost', 'cached', 'latch')),
            account INTEGER NOT NULL REFERENCES accounts (id),
            day INTEGER REFERENCES accounts (id),
            attempt INTEGER REFERENCES attempts (id),
            detail TEXT,
            {deltas}
        )""")
    connection.execute("CREATE INDEX events_by_account ON events (account)")
    connection.execute("CREATE INDEX events_by_day ON events (day)")
    for change in ("UPDATE", "DELETE"):
        connection.execute(f"""
            CREATE TRIGGER events_are_final_{change.lower()} BEFORE {change} ON events
            BEGIN SELECT RAISE(ABORT, 'events are final'); END""")
    connection.execute("CREATE TABLE owners (id TEXT PRIMARY KEY, pid INTEGER NOT NULL, started_ms INTEGER NOT NULL)")


def m002_hits(connection: sqlite3.Connection) -> None:
    """Create hits: calls that were answered for free. Beside their event, which cannot be erased and so names no prompt."""
    connection.execute("""
        CREATE TABLE hits (
            id INTEGER PRIMARY KEY,
            account INTEGER NOT NULL REFERENCES accounts (id),
            at_ms INTEGER NOT NULL,
            cell INTEGER NOT NULL,
            ordinal INTEGER NOT NULL,
            provider TEXT NOT NULL,
            destination TEXT NOT NULL,
            model TEXT NOT NULL,
            request_key TEXT NOT NULL,
            prompt_sha256 TEXT NOT NULL,
            bytes INTEGER NOT NULL,
            source TEXT NOT NULL CHECK (source IN ('cache', 'flight')),
            tokens_in INTEGER NOT NULL,
            tokens_out INTEGER NOT NULL,
            request_id TEXT
        )""")
    connection.execute("CREATE INDEX hits_by_account ON hits (account, id)")


MIGRATIONS: tuple[Callable[[sqlite3.Connection], None], ...] = (m001_accounts_attempts_events, m002_hits)


def migrate(connection: sqlite3.Connection) -> int:
    """Bring the database up to date inside the caller's transaction; return how many migrations ran.

    Raises:
        LookupError: the database was written by a newer version of this program.
    """
    connection.execute("CREATE TABLE IF NOT EXISTS migrations (name TEXT PRIMARY KEY)")
    done = {name for (name,) in connection.execute("SELECT name FROM migrations")}
    known = [step.__name__ for step in MIGRATIONS]
    if unknown := done.difference(known):
        raise LookupError(f"unknown migrations: {', '.join(sorted(unknown))}")
    missing = [step for step in MIGRATIONS if step.__name__ not in done]
    for step in missing:
        step(connection)
        connection.execute("INSERT INTO migrations VALUES (?)", (step.__name__,))
    return len(missing)
