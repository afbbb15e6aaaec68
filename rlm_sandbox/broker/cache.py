"""Answers that were paid for, by the key of their request.

One file per answer under ``home/cache/<scope>/``, named by the key: a digest of the body, then the zstd-compressed body. It
appears by rename, so it is whole or absent; it is verified on every read, and one that fails is removed and counts as absent.
Only clean answers are kept. An answer is kept *before* its attempt is settled: a crash between both leaves an answer that
is not bought again and a charge at the full hold, never a paid answer that is lost. The file is not synced: it survives the death of
any process, and a power cut within seconds of an answer makes it at worst an entry that fails its digest. How much is kept, and
how long, is :mod:`.upkeep`'s.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import threading
import uuid
from typing import TYPE_CHECKING

import zstandard

from rlm_sandbox.broker.keeper import Keeper
from rlm_sandbox.broker.types import Reply, Usage

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

log = logging.getLogger(__name__)

BODY_MAX = 64 * 1024 * 1024
"""Bytes of one entry when decompressed: far above the longest answer (64,000 tokens), far below what hurts."""

CLEAN_STOPS = frozenset({None, "end_turn", "stop", "stop_sequence", "tool_use"})
"""Reasons to stop that mean the model had said what it had to say."""


def folder_of(home: Path, scope: str) -> Path:
    """Return where a scope's answers are."""
    return home / "cache" / hashlib.sha256(scope.encode()).hexdigest()[:32]


def is_clean(reply: Reply) -> bool:
    """Tell whether a reply may answer the same question again: complete, and not empty."""
    return reply.stop_reason in CLEAN_STOPS and bool(reply.text.strip())


_local = threading.local()


class ResponseCache:
    """The store of one scope."""

    def __init__(
        self, home: Path, scope: str, keeper: Keeper | None = None, wrote: Callable[[int], None] = lambda _: None
    ) -> None:
        self._keeper = keeper or Keeper()
        self._wrote = wrote
        self._folder = folder_of(home, scope)
        for folder in (home, self._folder.parent, self._folder):  # parents=True would make the middle one for everybody
            folder.mkdir(mode=0o700, exist_ok=True)

    @staticmethod
    def drop(home: Path, scope: str) -> bool:
        """Remove a scope's answers; False when there were none."""
        folder = folder_of(home, scope)
        found = folder.is_dir()
        shutil.rmtree(folder, ignore_errors=True)
        return found

    def get(self, key: str) -> Reply | None:
        """Return the kept reply, or None. Reads one small file; short enough for the event loop."""
        path = self._path(key)
        try:
            data = path.read_bytes()
            with contextlib.suppress(OSError):
                os.utime(path)  # used now: see upkeep
        except OSError as error:
            unwritten = self._keeper.unwritten(path)
            if unwritten is None and not isinstance(error, FileNotFoundError):
                log.warning("a cached answer cannot be read (%s); it is bought again", error)
            return None if unwritten is None else _decode(key, unwritten)
        reply = _decode(key, data)
        if reply is None:
            log.warning("a cached answer was damaged and is removed: %s", key[:16])
            path.unlink(missing_ok=True)
        return reply

    async def put(self, key: str, reply: Reply) -> bool:
        """Keep a reply; False when the disk refuses and it is kept in memory only."""
        try:
            self._wrote(await self._keeper.submit(lambda: self._write(key, reply)))
        except OSError as error:
            log.warning("an answer cannot be written to the cache (%s) and is kept in memory", error)
            return False
        return True

    def _path(self, key: str) -> Path:
        return self._folder / key[:2] / f"{key}.zst"

    def _write(self, key: str, reply: Reply) -> int:
        data = _encode(key, reply)
        self._keeper.write(self._path(key), data, _appear)
        return len(data)


def _appear(path: Path, data: bytes) -> None:
    """Make a file that is whole from the moment it is there."""
    path.parent.mkdir(mode=0o700, exist_ok=True)
    draft = path.with_name(f".{uuid.uuid4().hex}")
    try:
        descriptor = os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        draft.replace(path)
    except OSError:
        draft.unlink(missing_ok=True)
        raise


def _compressor() -> zstandard.ZstdCompressor:
    """Return this thread's compressor: making one costs ten times what compressing an ordinary answer does."""
    if not hasattr(_local, "compressor"):
        _local.compressor = zstandard.ZstdCompressor(level=3)
    compressor: zstandard.ZstdCompressor = _local.compressor
    return compressor


def _encode(key: str, reply: Reply) -> bytes:
    usage = reply.usage
    form = {
        "key": key,
        "text": reply.text,
        "model": reply.model,
        "stop_reason": reply.stop_reason,
        "request_id": reply.request_id,
        "usage": [usage.input_tokens, usage.output_tokens, usage.cache_read_tokens, usage.cache_write_tokens],
    }
    body = _compressor().compress(json.dumps(form, ensure_ascii=True).encode())
    return hashlib.sha256(body).digest() + body


def _decode(key: str, data: bytes) -> Reply | None:
    digest, body = data[:32], data[32:]
    if hashlib.sha256(body).digest() != digest:
        return None
    try:
        if zstandard.frame_content_size(body) > BODY_MAX:
            return None
        form = json.loads(zstandard.ZstdDecompressor().decompress(body, max_output_size=BODY_MAX))
    except (zstandard.ZstdError, ValueError):
        return None
    if form.get("key") != key:
        return None
    return Reply(
        text=form["text"],
        usage=Usage(*form["usage"]),
        model=form["model"],
        stop_reason=form["stop_reason"],
        request_id=form["request_id"],
    )
