"""Answers a question about how parts of a text relate: each part is summarised once, then every two summaries are compared.

Comparing summaries, not texts, keeps the number of long prompts linear in the number of parts.
"""

from itertools import combinations
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rlm_sandbox.strategies.calls import Sub, fenced, is_word
    from rlm_sandbox.strategies.guest_names import FINAL, MAX_CALLS, PIECE_CHARS, QUESTION, context
    from rlm_sandbox.strategies.pieces import coverage, sections

UNRELATED = "UNRELATED"


def sections_for(calls: int) -> int:
    """Return how many parts can be summarised, compared in pairs, and concluded from, in so many calls."""
    count = 2
    while (count + 1) + (count + 1) * count // 2 + 1 <= calls:
        count += 1
    return count


def about_section(name: str, text: str) -> str:
    """Return what is asked about one part."""
    return (
        f"Question, to be answered later by comparing parts: {QUESTION}\n"
        f"Below is one part of a larger text, named {name!a}.\n{fenced(text)}\n"
        "Summarise what in it matters for the question, with names and numbers as they stand there."
    )


def about_pair(first: "tuple[str, str]", second: "tuple[str, str]") -> str:
    """Return what is asked about two summaries."""
    both = "\n\n".join(f"Part {name!a}: {summary}" for name, summary in (first, second))
    return (
        f"Question: {QUESTION}\nBelow are summaries of two parts of one text.\n{fenced(both)}\n"
        f"Say in a few sentences how the two relate in view of the question, or write {UNRELATED}."
    )


def unrelated(parts: int, summaries: "list[tuple[str, str]]", relations: "list[str | None]") -> str:
    """Return what is to be said where no relation was found: that there is none only if every pair was looked at."""
    if relations and all(relations):
        return "No two parts relate to each other in view of the question."
    if any(relations):
        return "No two of the parts that were compared relate to each other in view of the question."
    why = "No two parts were compared." if parts > 1 else "There were no two parts to compare."
    return "\n".join([why, "", "What the parts say:", *(f"- {name!a}: {text.strip()}" for name, text in summaries)])


def answer() -> str:
    """Do it all and return the answer."""
    sub = Sub()
    found = [(name, low, min(high, low + PIECE_CHARS)) for name, low, high in sections(sections_for(MAX_CALLS))]
    said = sub.ask([about_section(name, str(context[low:high])) for name, low, high in found], max_tokens=300)
    sub.insist()
    summaries = [(name, text) for (name, _, _), text in zip(found, said, strict=True) if text]
    read = sum(high - low for (_, low, high), text in zip(found, said, strict=True) if text)

    pairs = list(combinations(summaries, 2))
    relations = sub.ask([about_pair(first, second) for first, second in pairs], max_tokens=200)
    related = [
        f"- {first[0]!a} and {second[0]!a}: {text.strip()}"
        for (first, second), text in zip(pairs, relations, strict=True)
        if text and not is_word(text, UNRELATED)
    ]
    findings = "\n".join(related)
    final = (
        sub.ask(
            [f"Question: {QUESTION}\nFindings:\n{fenced(findings)}\nAnswer the question from the findings."],
            max_tokens=500,
        )
        if related
        else [None]
    )

    parts = [
        final[0] or ("" if related else unrelated(len(found), summaries, relations)),
        findings,
        coverage(read),
        sub.note(),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


FINAL(answer())
