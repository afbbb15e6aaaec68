"""Answers that were bought, kept for the same question, so that it is never bought twice.

An entry is named by its scope and the digest of the canonical request, and holds a digest of its body and the zstd-compressed body; it is
verified on every read, and one that fails is removed and counts as absent. Only clean answers are kept. An answer is kept *before* its
attempt is settled: a crash between both leaves an answer that is not bought again and a charge at the full hold, never a paid answer
that is lost. Where answers are is :mod:`.keeper`'s; how much is kept, and how long, is :mod:`.upkeep`'s.
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
from typing import TYPE_CHECKING

import zstandard

from rlm_sandbox.broker.types import Reply, Usage

if TYPE_CHECKING:
    from collections.abc import Callable

    from rlm_sandbox.broker.keeper import Keeper

log = logging.getLogger(__name__)

BODY_MAX = 64 * 1024 * 1024
"""Bytes of one entry when decompressed: far above the longest answer (64,000 tokens), far below what hurts."""

CLEAN_STOPS = frozenset({None, "end_turn", "stop", "stop_sequence", "tool_use"})
"""Reasons to stop that mean the model had said what it had to say."""


def is_clean(reply: Reply) -> bool:
    """Tell whether a reply may answer the same question again: complete, and not empty."""
    return reply.stop_reason in CLEAN_STOPS and bool(reply.text.strip())


_local = threading.local()


class ResponseCache:
    """The answers of one scope."""

    def __init__(self, keeper: Keeper, scope: str, wrote: Callable[[int], None] = lambda _: None) -> None:
        self._keeper = keeper
        self._scope = scope
        self._wrote = wrote

    def get(self, key: str) -> Reply | None:
        """Return the kept reply, or None; short enough for the event loop."""
        data = self._keeper.find(self._scope, key)
        if data is None:
            return None
        reply = _decode(self._scope, key, data)
        if reply is None:
            log.warning("a cached answer was damaged and is removed: %s", key[:16])
            self._keeper.discard(self._scope, key)
        return reply

    async def put(self, key: str, reply: Reply) -> bool:
        """Keep a reply; False when the disk refuses and it is kept in memory only."""
        try:
            self._wrote(await self._keeper.submit(self._scope, key, _encode(self._scope, key, reply)))
        except OSError as error:
            log.warning("an answer cannot be written to the cache (%s) and is kept in memory", error)
            return False
        return True


def _compressor() -> zstandard.ZstdCompressor:
    """Return this thread's compressor: making one costs ten times what compressing an ordinary answer does."""
    if not hasattr(_local, "compressor"):
        _local.compressor = zstandard.ZstdCompressor(level=3)
    compressor: zstandard.ZstdCompressor = _local.compressor
    return compressor


def _encode(scope: str, key: str, reply: Reply) -> bytes:
    usage = reply.usage
    form = {
        "scope": scope,
        "key": key,
        "text": reply.text,
        "model": reply.model,
        "stop_reason": reply.stop_reason,
        "request_id": reply.request_id,
        "usage": [usage.input_tokens, usage.output_tokens, usage.cache_read_tokens, usage.cache_write_tokens],
    }
    body = _compressor().compress(json.dumps(form, ensure_ascii=True).encode())
    return hashlib.sha256(body).digest() + body


def _decode(scope: str, key: str, data: bytes) -> Reply | None:
    digest, body = data[:32], data[32:]
    if hashlib.sha256(body).digest() != digest:
        return None
    try:
        if zstandard.frame_content_size(body) > BODY_MAX:
            return None
        form = json.loads(zstandard.ZstdDecompressor().decompress(body, max_output_size=BODY_MAX))
    except (zstandard.ZstdError, ValueError):
        return None
    if (form.get("scope"), form.get("key")) != (scope, key):
        return None
    return Reply(
        text=form["text"],
        usage=Usage(*form["usage"]),
        model=form["model"],
        stop_reason=form["stop_reason"],
        request_id=form["request_id"],
    )
