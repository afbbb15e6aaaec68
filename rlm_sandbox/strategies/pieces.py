"""Cuts the context into pieces that a sub-model can take, and says how much of it they hold."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rlm_sandbox.strategies.guest_names import PIECE_CHARS, context, context_files


def spread(count: int) -> "list[tuple[int, int]]":
    """Return at most ``count`` ranges of at most ``PIECE_CHARS`` characters, in order.

    They cover the whole context if it fits, and are spread evenly over it if it does not.
    """
    total = len(context)
    needed = -(-total // PIECE_CHARS)
    if needed <= count:
        return [(start, min(total, start + PIECE_CHARS)) for start in range(0, total, PIECE_CHARS)]
    return [(start, start + PIECE_CHARS) for start in (total * place // count for place in range(count))]


def sections(count: int) -> "list[tuple[str, int, int]]":
    """Return at most ``count`` named ranges of whole files, or of equal length where there is only one file."""
    total = len(context)
    if len(context_files) <= 1:
        bounds = [total * place // count for place in range(count + 1)]
        return [
            (f"part {place + 1}", low, bounds[place + 1])
            for place, low in enumerate(bounds[:-1])
            if low < bounds[place + 1]
        ]
    files = list(context_files)
    per = -(-len(files) // count)
    bundles = [files[place : place + per] for place in range(0, len(files), per)]
    return [
        (
            bundle[0]["path"] + (f" and {len(bundle) - 1} more" if len(bundle) > 1 else ""),
            bundle[0]["start"],
            bundle[-1]["end"],
        )
        for bundle in bundles
    ]


def coverage(read: int) -> str:
    """Return one line on what was left out, empty when nothing was."""
    total = len(context)
    if read >= total:
        return ""
    return f"The model read {read} of {total} characters ({read / total:.2%}), spread over the whole: a larger --budget reads more."
