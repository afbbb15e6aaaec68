"""The forms in which a run can be looked at elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rlm_sandbox.record.recording import Recording

KINDS = ("html", "inspect", "otel")


def make(recording: Recording, kind: str) -> bytes:
    """Return a run as ``html``, ``inspect`` or ``otel``."""
    if kind == "inspect":
        from rlm_sandbox.record import inspect_log  # noqa: PLC0415 - one of three

        return inspect_log.build(recording)
    if kind == "otel":
        from rlm_sandbox.record import otel  # noqa: PLC0415 - one of three

        return otel.build(recording)
    from rlm_sandbox.record import report  # noqa: PLC0415 - one of three

    return report.build(recording)
