"""Answers a question over a text by asking about each piece and then joining the answers, level by level.

The pieces cover the context where the calls allow it; where they do not, the answer says how much was read.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rlm_sandbox.strategies.calls import Sub, fenced, is_word
    from rlm_sandbox.strategies.guest_names import FINAL, MAX_CALLS, QUESTION, context
    from rlm_sandbox.strategies.pieces import coverage, spread

FAN = 8
"""Answers joined by one call: few enough that together they are shorter than a piece."""

HELD = 200
"""Pieces that are asked about at once, and held in memory for it: some five megabytes."""

NOTHING = "NOTHING"


def calls_for_pieces(calls: int) -> int:
    """Return how many of ``calls`` may go to pieces, so that the joining of their answers fits in the rest."""
    pieces = (calls * (FAN - 1) + 1) // FAN  # each join has at most FAN - 1 answers fewer, so it cannot be more
    while pieces > 1 and pieces + joins(pieces) > calls:
        pieces -= 1
    return max(1, pieces)


def joins(answers: int) -> int:
    """Return how many calls it takes to join so many answers into one."""
    total = 0
    while answers > 1:
        answers = -(-answers // FAN)
        total += answers
    return total


def about_piece(text: str, place: int, count: int) -> str:
    """Return what is asked about one piece."""
    return (
        f"Question: {QUESTION}\nBelow is piece {place} of {count} of a larger text.\n{fenced(text)}\n"
        f"Write down what this piece says that helps to answer the question, with numbers and names as they stand there. "
        f"If it says nothing about it, write {NOTHING}."
    )


def about_answers(answers: "list[str]") -> str:
    """Return what is asked to join partial answers."""
    notes = "\n\n".join(f"Note {place}: {answer}" for place, answer in enumerate(answers, 1))
    return (
        f"Question: {QUESTION}\nBelow are notes taken from pieces of one text.\n{fenced(notes)}\n"
        "Join them into one answer to the question. Add up what is counted apart; leave nothing out that matters."
    )


def reduced(sub: "Sub", answers: "list[str]") -> "list[str]":
    """Join answers until one is left; those that could not be joined stay side by side."""
    while len(answers) > 1:
        bundles = [answers[start : start + FAN] for start in range(0, len(answers), FAN)]
        joined = sub.ask([about_answers(bundle) for bundle in bundles], max_tokens=600)
        if None in joined:
            return [text for text, bundle in zip(joined, bundles, strict=True) for text in ([text] if text else bundle)]
        answers = [text for text in joined if text]
    return answers


def answer() -> str:
    """Do it all and return the answer."""
    ranges = spread(calls_for_pieces(MAX_CALLS))
    sub = Sub()
    said: list[str | None] = []
    for first in range(0, len(ranges), HELD):
        held = enumerate(ranges[first : first + HELD], first + 1)
        asked = [about_piece(str(context[low:high]), place, len(ranges)) for place, (low, high) in held]
        said += sub.ask(asked, max_tokens=400)
    sub.insist()
    useful = [text.strip() for text in said if text and not is_word(text, NOTHING)]
    read = sum(high - low for text, (low, high) in zip(said, ranges, strict=True) if text)
    final = reduced(sub, useful)
    nothing = (
        "Nothing in the text answers the question." if all(said) else "Nothing in what was read answers the question."
    )
    parts = ["\n\n".join(final) or nothing, coverage(read), sub.note()]
    return "\n\n".join(part for part in parts if part) + "\n"


FINAL(answer())
