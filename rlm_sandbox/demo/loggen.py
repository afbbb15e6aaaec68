"""Writes one day (or as long as the size asks) of a small shop's logs, all services in one file, with planted incidents.

The same size and seed give the same bytes. What was planted is written beside the log, in a file that a run never reads: it is
what the report is held against afterwards.

    python -m rlm_sandbox.demo.loggen services.log --size-mb 200 --seed 7
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from rlm_sandbox.demo.incidents import INCIDENTS, Incident
from rlm_sandbox.demo.noise import pool
from rlm_sandbox.demo.parts import stamps

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rlm_sandbox.demo.parts import Line

MEGABYTE = 1_000_000
FULL_SIZE = 200 * MEGABYTE
"""The size for which the incidents' counts are stated; a smaller log holds proportionally fewer of each."""

LINES_PER_SECOND = 16
"""At about 138 bytes a line, 200 MB are one day."""

POOL_SIZE = 20_000
"""Rendered noise lines to draw from: enough that neighbours differ, small enough to render in a fifth of a second."""

BURST_SHARE = 0.004
"""Standard deviation of a burst, as a share of the log's time: six minutes of a day."""

START = datetime(2026, 3, 14, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Planted:
    """One line of the sidecar: what was planted, and how often."""

    id: str
    title: str
    signature: str
    count: int


def truth_path(log: Path) -> Path:
    """Return where the sidecar of a log lies."""
    return log.with_name(log.name + ".truth.json")


def read_truth(log: Path) -> list[Planted]:
    """Read what was planted in a generated log."""
    data = json.loads(truth_path(log).read_text(encoding="utf-8"))
    return [Planted(**item) for item in data["incidents"]]


def generate(log: Path, *, size: int = FULL_SIZE, seed: int = 7) -> list[Planted]:
    """Write a log of about ``size`` bytes (within 3 %) and its sidecar; return what was planted."""
    rng = Random(seed)  # noqa: S311 - has to repeat itself, not to be secret
    noise = pool(rng, POOL_SIZE)
    width = sum(len(head) + len(tail) for head, _, tail in noise) / len(noise) + 20  # 20: the usual time stamp
    seconds = max(60, int(size / width / LINES_PER_SECOND))
    planted = [Planted(item.id, item.title, item.signature, _scaled(item, size)) for item in INCIDENTS]
    agenda = _agenda(rng, planted, seconds)
    with log.open("w", encoding="utf-8", newline="\n") as out:
        out.writelines(_text(rng, noise, agenda, seconds))
    sidecar = {"seed": seed, "bytes": log.stat().st_size, "incidents": [asdict(item) for item in planted]}
    truth_path(log).write_text(json.dumps(sidecar, indent=1) + "\n", encoding="utf-8")
    return planted


def _scaled(incident: Incident, size: int) -> int:
    return incident.count if size >= FULL_SIZE else max(2, round(incident.count * size / FULL_SIZE))


def _agenda(rng: Random, planted: list[Planted], seconds: int) -> dict[int, list[list[Line]]]:
    """Deal every occurrence to a second: incidents gather in bursts, as they do."""
    agenda: dict[int, list[list[Line]]] = defaultdict(list)
    for incident, item in zip(INCIDENTS, planted, strict=True):
        centres = [rng.uniform(0.05, 0.95) for _ in range(incident.bursts)]
        for _ in range(item.count):
            moment = rng.gauss(rng.choice(centres), BURST_SHARE) * seconds
            agenda[min(seconds - 1, max(0, int(moment)))].append(incident.render(rng))
    return agenda


def _text(rng: Random, noise: list[Line], agenda: dict[int, list[list[Line]]], seconds: int) -> Iterator[str]:
    """Yield the log second by second; a record's lines stay together."""
    for second in range(seconds):
        stamp = stamps(START + timedelta(seconds=second))
        drawn = rng.choices(noise, k=LINES_PER_SECOND)
        lines = [head + stamp[kind] + tail for head, kind, tail in drawn]
        for record in agenda.get(second, ()):
            text = "".join([head + stamp[kind] + tail for head, kind, tail in record])
            lines.insert(rng.randrange(len(lines) + 1), text)
        yield "".join(lines)


def main() -> None:
    """Write the log named on the command line."""
    parser = argparse.ArgumentParser(description="Write a large log with planted incidents of known counts.")
    parser.add_argument("log", type=Path)
    parser.add_argument("--size-mb", type=int, default=FULL_SIZE // MEGABYTE)
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    options.log.parent.mkdir(parents=True, exist_ok=True)
    generate(options.log, size=options.size_mb * MEGABYTE, seed=options.seed)


if __name__ == "__main__":
    main()
