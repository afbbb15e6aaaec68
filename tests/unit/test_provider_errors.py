"""No error of an SDK or of its HTTP library is left untranslated."""

import anthropic
import httpx2
import openai
import pytest

from rlm_sandbox.broker.providers import http
from rlm_sandbox.broker.types import ProviderFault

pytestmark = pytest.mark.unit

CODES = {
    "authentication", "bad_answer", "bad_request", "billing", "connection_lost", "context_length", "failed", "not_found",
    "overloaded", "permission", "rate_limited", "redirect", "server_error", "spend_limit", "timeout", "too_large",
    "too_large_answer", "unavailable", "unreachable",
}  # fmt: skip


def tree(cls):
    return {cls, *(sub for child in cls.__subclasses__() for sub in tree(child))}


STATUS = tree(anthropic.APIStatusError) | tree(openai.APIStatusError)
SDK = (tree(anthropic.AnthropicError) | tree(openai.OpenAIError)) - STATUS
LIBRARY = tree(httpx2.HTTPError) | tree(httpx2.StreamError) | {httpx2.InvalidURL, httpx2.CookieConflict}


def blank(cls):
    """An instance without running a constructor: these take requests, responses and bodies of their own kinds."""
    error = cls.__new__(cls)
    error.request_id = None  # some print it
    return error


@pytest.mark.parametrize("cls", sorted(SDK | LIBRARY, key=str), ids=lambda cls: f"{cls.__module__}.{cls.__name__}")
def test_every_error_that_is_no_status_becomes_a_fault(cls):
    assert issubclass(cls, (anthropic.AnthropicError, openai.OpenAIError, *http.FOREIGN)), (
        "would pass through the adapters"
    )
    fault = http.wire_fault(blank(cls), "it")
    assert isinstance(fault, ProviderFault)
    assert fault.code in CODES
    assert fault.billable in {"no", "unknown"}


def test_the_sdks_own_connection_errors_are_read_by_their_cause():
    request = httpx2.Request("POST", "http://127.0.0.1/")
    for sdk in (anthropic, openai):
        error = sdk.APIConnectionError(request=request)
        error.__cause__ = httpx2.ConnectError("refused")
        assert http.wire_fault(error, "it").billable == "no"
        error.__cause__ = httpx2.ReadError("reset")
        assert http.wire_fault(error, "it").billable == "unknown"
        assert http.wire_fault(sdk.APITimeoutError(request=request), "it").billable == "unknown"


@pytest.mark.parametrize("cls", sorted(STATUS, key=str), ids=lambda cls: f"{cls.__module__}.{cls.__name__}")
def test_every_status_error_has_a_status_that_is_read(cls):
    status = getattr(cls, "status_code", None)
    status = status if isinstance(status, int) else 500
    fault = http.status_fault("it", status, {}, {"error": {"message": "m"}}, request_id=None, secret="k")
    assert fault.code in CODES
    assert fault.status == status


BODIES = [None, "text", {}, [], 3, {"error": None}, {"error": "x"}, {"error": {"message": 3, "type": []}}]


@pytest.mark.parametrize("body", BODIES, ids=str)
def test_any_status_with_any_body_is_a_fault(body):
    for status in (*range(300, 600), 999):
        fault = http.status_fault("it", status, {}, body, request_id=None, secret="k")
        assert fault.code in CODES
        assert not (fault.billable == "no" and status in {504, 524, 499})


@pytest.mark.parametrize("code", ["enforced_spend_limit_reached", "contract_spend_limit_reached"])
def test_a_spend_limit_is_not_tried_again(code):
    body = {"error": {"type": "rate_limit_error", "details": {"error_code": code}}}
    fault = http.status_fault("it", 429, {"retry-after": "5"}, body, request_id=None, secret="k")
    assert (fault.code, fault.retryable, fault.rate_limited) == ("spend_limit", False, False)


async def collect(*chunks):
    async def source():
        for chunk in chunks:
            yield chunk

    return [data async for data in http.sse(source())]


STREAM = b"event: a\ndata: one\n\n: comment\n\ndata: two\r\ndata: lines\r\n\r\nid: 1\ndata:three"


@pytest.mark.parametrize("size", [1, 2, 7, len(STREAM)])
async def test_events_are_the_same_however_the_bytes_are_cut(size):
    chunks = [STREAM[at : at + size] for at in range(0, len(STREAM), size)]
    assert await collect(*chunks) == [b"one", b"two\nlines", b"three"]
