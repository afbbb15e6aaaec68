"""Which provider a name gives, and what is refused before anything is sent."""

import subprocess
import sys

import pytest

from rlm_sandbox.broker.providers import NAMES, create
from rlm_sandbox.broker.types import Credentials, Secret
from rlm_sandbox.errors import PolicyError, PrerequisiteError, UsageError

pytestmark = pytest.mark.unit

KEY = Secret("sk-secret")


@pytest.mark.parametrize(
    ("name", "gives"), [("anthropic", "anthropic"), (" OpenAI-compat ", "openai"), ("scripted", "scripted")]
)
def test_a_name_gives_its_provider(name, gives):
    provider = create(name, Credentials(api_key=KEY))
    assert provider.name == gives
    assert provider.default_model()


def test_an_unknown_name_is_told_the_known_ones():
    with pytest.raises(UsageError) as caught:
        create("bogus", Credentials())
    assert all(name in caught.value.hint for name in NAMES)


@pytest.mark.parametrize(("name", "variable"), [("anthropic", "ANTHROPIC_API_KEY"), ("openai", "OPENAI_API_KEY")])
def test_a_missing_key_names_its_variable(name, variable):
    with pytest.raises(PrerequisiteError) as caught:
        create(name, Credentials())
    assert variable in caught.value.hint


@pytest.mark.parametrize("name", ["anthropic", "openai"])
@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:9/v1", "http://localhost:9", "http://[::1]:9", "https://example.org"]
)
def test_a_key_may_go_to_this_machine_or_over_tls(name, url):
    assert create(name, Credentials(api_key=KEY, base_url=url)).name == name


@pytest.mark.parametrize("name", ["anthropic", "openai"])
def test_a_key_does_not_travel_unencrypted_unless_that_is_named(name):
    url = "http://10.0.0.5:8000/v1"
    with pytest.raises(PolicyError, match="unencrypted"):
        create(name, Credentials(api_key=KEY, base_url=url))
    assert create(name, Credentials(api_key=KEY, base_url=url, extra={"allow_http": "1"})).name == name


@pytest.mark.parametrize(
    "url",
    [
        "ftp://example.org",
        "example.org",
        "https://user:pw@example.org",
        "https://",
        "http://[::1",
        "http://127.0.0.1:99999",
        "http://127.0.0.1:x",
        "https://example.org\n",
        "https://exa mple.org",
    ],
)
def test_a_base_url_that_is_none_is_refused(url):
    with pytest.raises(UsageError):
        create("anthropic", Credentials(api_key=KEY, base_url=url))


@pytest.mark.parametrize("name", ["anthropic", "openai"])
def test_a_loopback_server_needs_no_key(name):
    assert create(name, Credentials(base_url="http://127.0.0.1:9/v1")).name == name


def test_the_default_model_can_be_set():
    assert create("anthropic", Credentials(api_key=KEY, extra={"default_model": "mine"})).default_model() == "mine"


def test_creating_a_provider_loads_no_sdk():
    code = (
        "import sys\n"
        "from rlm_sandbox.broker.providers import create\n"
        "from rlm_sandbox.broker.types import Credentials, Secret\n"
        "for name in ('anthropic', 'openai', 'scripted'): create(name, Credentials(api_key=Secret('k')))\n"
        "print(sorted({'anthropic', 'openai', 'httpx2', 'genai_prices'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
