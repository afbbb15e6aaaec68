"""A run of 200 sub-calls, with one of its processes killed at a random moment: the same answer, and nothing bought twice."""

import json
import random
import time
from collections import Counter

import pytest

from tests.support.clumsy import VICTIMS, Caller
from tests.support.counting_server import CountingServer, answer_to

pytestmark = pytest.mark.container

CALLS = 200
ITEMS = 10
"""Runs for each victim: five victims make fifty moments."""

CELLS = [
    "import random, json\nseed = random.random()\nprompts = [f'item {n} of {len(context)}' for n in range(200)]",
    "half = llm_query_batch(prompts[:100])",
    "rest = llm_query_batch(prompts[100:])\nleft = budget()['limit']",
    "FINAL(json.dumps([seed, left, half, rest]))",
]


@pytest.fixture(scope="module")
def provider():
    with CountingServer(latency_s=0.02) as server:
        yield server


@pytest.fixture
def arguments(provider, log_file):
    return ["--input", str(log_file), "--provider", "openai", "--model", "m", "--budget", "1000"]


@pytest.fixture
def home(provider, fresh):
    fresh.environment = {"OPENAI_API_KEY": "sk-not-a-key", "OPENAI_BASE_URL": provider.openai_url}
    return fresh


def check(final, asked, log_file, killed_at=None):
    prompts = [f"item {n} of {len(log_file.read_text())}" for n in range(CALLS)]
    seed, left, half, rest = json.loads(final)
    assert seed == random.Random(0).random()
    assert left == 1000
    assert half + rest == [answer_to(prompt) for prompt in prompts]
    counts = Counter(entry.prompt for entry in asked)
    assert counts.keys() == set(prompts)
    twice = [prompt for prompt, count in counts.items() if count > 1]
    for prompt in twice:  # an answer on its way to a broker that dies is nobody's: it is asked for again, once
        first = next(entry for entry in asked if entry.prompt == prompt)
        assert killed_at is not None
        assert counts[prompt] == 2
        assert first.since <= killed_at + 0.1
        assert first.until is None or first.until >= killed_at - 0.1
    return len(twice)


def test_an_undisturbed_run_asks_every_prompt_once(home, provider, arguments, log_file):
    before = len(provider.asked)
    final = Caller(home, "calm", arguments).run(CELLS)
    assert check(final, provider.asked[before:], log_file) == 0


class Moment:
    """Lasts until the provider has been asked so often, and then so many seconds: a fast machine is struck at the same places as a slow one."""

    def __init__(self, provider, asked, then_s):
        self._provider = provider
        self._asked = asked
        self._then_s = then_s

    def __call__(self):
        give_up = time.monotonic() + 60
        while len(self._provider.asked) < self._asked and time.monotonic() < give_up:
            time.sleep(0.002)
        time.sleep(self._then_s)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("victim", VICTIMS)
def test_ten_random_deaths_change_nothing(home, provider, arguments, log_file, victim):
    chance = random.Random(f"moments of {victim}")
    struck = 0
    for number in range(ITEMS):
        before = len(provider.asked)
        caller = Caller(home, f"{victim}-{number}", arguments)
        moment = Moment(provider, before + chance.randrange(CALLS), chance.uniform(0.0, 0.05))
        final = caller.run(CELLS, victim, moment)
        again = check(final, provider.asked[before:], log_file, caller.killed_at)
        assert again <= 20, "no more than were in flight"
        struck += caller.struck
        home("stop", "--session", caller.session)
    assert struck >= ITEMS - 1, "the moments missed the run"
