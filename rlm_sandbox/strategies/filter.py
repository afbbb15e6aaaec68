"""Finds what went wrong in a log of any size: narrow by regular expression, group and count by code, explain by model.

One pass over the context picks the lines that sound like trouble. They are grouped by template, so every count is exact and
none depends on a model. The sub-model is asked about one example per group, and what it says stands in a column of its own: it
can be wrong there, but it cannot change a number. When the budget ends, the report has fewer explanations and says so.
"""

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rlm_sandbox.strategies.calls import Sub, fenced, one_line
    from rlm_sandbox.strategies.guest_names import FINAL, MAX_CALLS, QUESTION, context
    from rlm_sandbox.strategies.templates import LINE_MAX, Group, Grouper

BLOCK = 1024 * 1024
"""Characters read at once: large enough that the work per block vanishes, small enough to be a plain ``str`` in any session."""

TRACE_MAX = 300
"""Lines that one record, a stack trace at worst, is followed back."""

TROUBLE = (
    r"error|exception|fail|fatal|panic|out of memory|oom.?kill|oom_reaper|timeout|timed out|refused|denied|traceback|critical"
    r"|segfault|sigsegv|abort|corrupt|unavailable|unreachable|no space left|expired|deadlock|reject|invalid|cannot|could not"
    r'|unable to|crash|" 5\d\d '
)
HARMLESS = re.compile(
    r"\b(?:no|0|zero|without)(?: \w+)? (?:error|fail|exception|timeout|refused|denied|reject|abort|invalid)\w*"
    r"|(?<!\w)\w*(?:error|fail|exception|fatal|panic|abort|denied|reject)\w*[\"']?\s*[=:]\s*(?:0(?![\d.]*[1-9])|false\b|none\b|null\b|off\b)"
    r"|(?<!\w)\w*timeouts?\w*[\"']?\s*[=:]\s*\d"
    r"|(?<!\w)\w+[-_]free\b|fail(?:ed)?[ -]?over\w*|fail[-_]?(?:safe|fast)|fail2ban"
)
LEVEL = re.compile(
    r"\b(FATAL|PANIC|CRITICAL|CRIT|EMERG|ALERT|ERROR|SEVERE|WARN|WARNING|NOTICE|INFO|DEBUG|TRACE|LOG)\b"
    r"|\[(emerg|alert|crit|error|warn|notice|info|debug)\]"
    r"|\"(?:level|severity|lvl)\": ?\"(\w+)\""
)
QUIET_LEVELS = {"NOTICE", "INFO", "DEBUG", "TRACE", "LOG"}
WORST_LEVELS = {"FATAL", "PANIC", "CRITICAL", "CRIT", "EMERG", "ALERT"}
WORST = re.compile(r"\bpanic\b|out of memory|segfault|sigsegv|corrupt|ext4-fs error|i/o error", re.IGNORECASE)
SERVED = re.compile(r'" ([1-4]\d\d) ')
REQUEST = re.compile(r'\S+ \S+ \S+ \[[^\]]+\] "')
TRACE = re.compile(r"[ \t]|Caused by: |Traceback \(most recent|\.\.\. \d+ |goroutine \d+ \[|\[signal ")
RAISED = re.compile(r"(?:[A-Za-z_$][\w$]*\.)*[A-Z]\w*(?:Error|Exception|Interrupt|Exit)\b")
COMMON = 0.02
"""Share of lines from which a word of the question is too common to search for."""


def rare_words(question: str) -> "list[str]":
    """Return the words of the question that could narrow the search: not the ones that stand everywhere."""
    sample = context[:1_000_000].lower()
    lines = sample.count("\n") + 1
    words = {word.lower() for word in re.findall(r"[\w.-]{5,}", question)}
    return sorted(word for word in words if 0 < sample.count(word) < COMMON * lines)


def blocks() -> "Iterator[str]":
    """Yield the context in pieces that end where a record ends. A line without end is cut all the same."""
    position = 0
    while text := str(context[position : position + BLOCK]):
        whole = len(text) < BLOCK
        piece = text if whole else text[: record_start(text)]
        yield piece
        if whole:
            return
        position += len(piece)


def record_start(text: str) -> int:
    """Return where the last record begins whose first line is certain to be complete, the whole length if there is none."""
    newline = text.rfind("\n")
    for _ in range(TRACE_MAX):
        start = text.rfind("\n", 0, max(newline, 0)) + 1
        if start == 0:
            break
        if not continues(text, start):
            return start
        newline = start - 1
    return text.rfind("\n") + 1 or len(text)


def continues(text: str, start: int) -> bool:
    """Tell whether the line at ``start`` belongs to the record of the line before it, as those of a stack trace do."""
    if TRACE.match(text, start):
        return True
    if not RAISED.match(text, start):
        return False
    before = text.rfind("\n", 0, max(start - 1, 0)) + 1
    after = text.find("\n", start) + 1
    return text[before : before + 1] in {" ", "\t"} or text[after : after + 1] in {" ", "\t"}


def line_at(text: str, start: int) -> str:
    """Return the line that starts there."""
    end = text.find("\n", start)
    return text[start : end if end >= 0 else len(text)]


def around(text: str, start: int, hit: int) -> str:
    """Return the line that starts there; of one that is too long to look at, the part with the hit in it."""
    line = line_at(text, start)
    if len(line) <= LINE_MAX:
        return line
    low = max(0, hit - start - LINE_MAX // 2)
    return line[low : low + LINE_MAX]


def head_of(text: str, start: int) -> int:
    """Return where the record begins that the line at ``start`` belongs to."""
    for _ in range(TRACE_MAX):
        if start == 0 or not continues(text, start):
            break
        start = text.rfind("\n", 0, start - 1) + 1
    return start


def telling(text: str, start: int) -> int:
    """Return the line that says what a trace is about: of a Python traceback the last one, else the line itself."""
    if not text.startswith("Traceback", start):
        return start
    for _ in range(TRACE_MAX):
        after = text.find("\n", start) + 1
        if after == 0 or not continues(text, after):
            break
        start = after
    return start


def record_at(text: str, start: int) -> str:
    """Return the beginning of the record that starts there: its first lines say why, where a stack trace follows."""
    end = start
    for _ in range(6):
        end = text.find("\n", end) + 1
        if end == 0 or not continues(text, end):
            break
    return text[start : end - 1 if end else len(text)][:LINE_MAX]


def level_of(line: str) -> str:
    """Return the line's own level in capitals, empty if it states none."""
    found = LEVEL.search(line, 0, 200)
    return next(group for group in found.groups() if group).upper() if found else ""


def harmless(line: str, trouble: "re.Pattern[str]") -> bool:
    """Tell whether a line only sounds like trouble: by its level, its status, or because what it reports is none."""
    if REQUEST.match(line):
        return SERVED.search(line) is not None
    if level_of(line) in QUIET_LEVELS:
        return True
    return trouble.search(HARMLESS.sub(" ", line.lower())) is None


class Finds:
    """The two piles: trouble, and what only sounds like it."""

    def __init__(self, trouble: "re.Pattern[str]") -> None:
        self.trouble = trouble
        self.loud = Grouper()
        self.quiet = Grouper()
        self.lines = 0
        self.matched = 0

    def read(self, text: str) -> None:
        """Sort the lines of a block, each record once, under the line that tells the most."""
        low = text.lower()
        if len(low) != len(text):  # one letter in Unicode grows when lowered; positions must not move
            low = text.replace("\u0130", "i").lower()
        counted_to = number = done = 0
        counted_head = -1
        for hit in self.trouble.finditer(low):
            if hit.start() < done:
                continue
            start = text.rfind("\n", 0, hit.start()) + 1
            done = start + len(line_at(text, start)) + 1
            head = head_of(text, start)
            if head == counted_head:
                continue
            number += text.count("\n", counted_to, start)
            counted_to = start
            line = around(text, telling(text, start) if head != start else start, hit.start())
            quiet = harmless(line, self.trouble)
            group = (self.quiet if quiet else self.loud).add(line, self.lines + number + 1)
            if group.count == 1 and head == start:
                group.example = record_at(text, start)
            self.matched += 1
            counted_head = -1 if quiet else head
        self.lines += text.count("\n") + (not text.endswith("\n"))


def rank(group: "Group") -> "tuple[int, int, int]":
    """Order groups for a reader: the worst first, then the most frequent."""
    level = level_of(group.example)
    worst = level in WORST_LEVELS or WORST.search(group.example) is not None
    return (0 if worst else 2 if level.startswith("WARN") else 1, -group.count, group.first)


def cell(text: str, limit: int = 160) -> str:
    """Return a text as one cell of a table: printable, on one line, without the characters that end a cell."""
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text).replace("|", "\\|").replace("`", "'")
    return text if len(text) <= limit else text[: limit - 3] + "..."


def plural(count: int, noun: str) -> str:
    """Return ``1 line``, ``2 lines``."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def question_about(group: "Group") -> str:
    """Return what the sub-model is asked about one group."""
    return f"Log line:\n{fenced(group.example[:500])}\nThe problem, explained in one short sentence:"


def table(groups: "list[Group]", meanings: "list[str]") -> "list[str]":
    """Return the groups as the rows of a Markdown table."""
    rows = ["| count | level | lines | pattern | meaning (by the model) |", "|--:|---|---|---|---|"]
    for group, meaning in zip(groups, meanings, strict=True):
        span = f"{group.first}-{group.last}" if group.last != group.first else str(group.first)
        rows.append(
            f"| {group.count} | {level_of(group.example)} | {span} | `{cell(group.pattern)}` | {cell(meaning)} |"
        )
    return rows


def question_about_all(rows: "list[str]") -> str:
    """Return what the sub-model is asked about the whole: the question, over the first rows of the table."""
    shown = "\n".join(row[:200] for row in rows[:20])
    return f"What a log reports, with counts:\n{fenced(shown)}\nQuestion: {QUESTION}\nAnswer in one or two sentences:"


ROWS = 60
"""Rows of the report at most; what is beyond is counted in one line."""

QUIET_ROWS = 15
"""Rows of what only sounds like trouble: enough to see that nothing was thrown away wrongly."""


def report() -> str:
    """Do it all and return the report as Markdown."""
    words = rare_words(QUESTION)
    finds = Finds(re.compile("|".join([TROUBLE, *map(re.escape, words)])))
    for text in blocks():
        finds.read(text)
    groups = sorted(finds.loud.groups(), key=rank)
    quiet = finds.quiet.groups()

    sub = Sub()
    asked = groups[: max(0, min(MAX_CALLS - 1, ROWS))]
    answers = sub.ask([question_about(group) for group in asked], max_tokens=60)
    meanings = [one_line(answer) for answer in answers] + [""] * (len(groups) - len(asked))

    rows = table(groups[:ROWS], meanings[:ROWS])
    summary = sub.ask([question_about_all(rows)], max_tokens=150) if groups else [None]

    records = sum(group.count for group in groups)
    parts = [
        f"{plural(records, 'record')} of trouble in {plural(len(groups), 'group')}, found in {plural(finds.lines, 'line')}.",
        "Counts are exact: code counted them.",
        *([f"In short, says the model: {one_line(summary[0], 400)}"] if summary[0] else []),
        *([f"Also searched for, from the question: {', '.join(words)}."] if words else []),
        *([sub.note()] if sub.note() else []),
        "",
        *(rows if groups else ["No line reports trouble."]),
    ]
    if len(groups) > ROWS:
        rest = groups[ROWS:]
        parts.append(f"\n{len(rest)} smaller groups with {sum(group.count for group in rest)} records are not shown.")
    if quiet:
        parts += [
            "",
            f"{plural(sum(group.count for group in quiet), 'line')} that only sound like trouble, by level or wording:",
            "",
        ]
        parts += ["| count | pattern |", "|--:|---|"]
        parts += [f"| {group.count} | `{cell(group.pattern)}` |" for group in quiet[:QUIET_ROWS]]
    return "\n".join(parts) + "\n"


FINAL(report())
