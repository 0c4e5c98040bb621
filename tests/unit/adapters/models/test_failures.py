from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from types import SimpleNamespace
from typing import Any

import pytest

from agent_runner.adapters.agents.model_calls import RetryPolicy
from agent_runner.adapters.models.failures import Diagnosis, Trouble, diagnose, explain
from agent_runner.adapters.models.prices import cost_of, price_of
from agent_runner.errors import ModelUnavailableError
from agent_runner.v1.status_pb2 import Usage


class ProviderError(Exception):
    """Shaped like the errors of most client libraries."""

    def __init__(self, text: str, status: int | None = None, headers: dict[str, str] | None = None) -> None:
        super().__init__(text)
        if status is not None:
            self.status_code = status
        self.response = SimpleNamespace(headers=headers or {})


@pytest.mark.parametrize(
    ("error", "trouble"),
    [
        (ProviderError("x", 401), Trouble.NO_KEY),
        (ProviderError("x", 403), Trouble.DENIED),
        (ProviderError("x", 404), Trouble.UNKNOWN_MODEL),
        (ProviderError("x", 422), Trouble.REFUSED),
        (ProviderError("x", 429), Trouble.BUSY),
        (ProviderError("insufficient_quota", 429), Trouble.NO_CREDIT),
        (ProviderError("Your credit balance is too low", 400), Trouble.NO_CREDIT),
        (ProviderError("maximum context length is 8", 400), Trouble.TOO_LONG),
        (ProviderError("request (9 tokens) exceeds the available context size (8)", 400), Trouble.TOO_LONG),
        (ProviderError("x", 500), Trouble.AWAY),
        (ProviderError("x", 529), Trouble.AWAY),
        (ProviderError("overloaded_error"), Trouble.BUSY),
        (ConnectionResetError("x"), Trouble.AWAY),
        (TimeoutError(), Trouble.AWAY),
        (RuntimeError("x"), Trouble.BROKEN),
    ],
)
def test_errors_of_any_client_are_understood(error: Exception, trouble: Trouble) -> None:
    assert diagnose(error).trouble is trouble


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after-ms": "1500"}, 1.5),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-3"}, 0.0),
    ],
)
def test_the_wait_is_read_from_the_headers(headers: dict[str, str], seconds: float | None) -> None:
    assert diagnose(ProviderError("x", 429, headers)).retry_after == seconds


def test_the_wait_may_be_a_date() -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)
    wait = diagnose(ProviderError("x", 429, {"retry-after": date})).retry_after
    assert wait is not None
    assert 3300 < wait <= 3600


def test_words_that_may_hold_a_key_are_not_repeated() -> None:
    error = ProviderError("Incorrect API key provided: sk-abc", 401)
    assert "sk-abc" not in str(explain(diagnose(error), "openai:x", error))


def test_long_words_of_the_provider_are_cut() -> None:
    error = ProviderError("y" * 5000, 400)
    assert len(str(explain(diagnose(error), "openai:x", error))) < 500


def test_only_what_may_pass_is_worth_a_retry() -> None:
    policy = RetryPolicy(attempts=3, first_delay=1.0, longest_delay=10.0)
    busy: Any = Diagnosis(Trouble.BUSY)
    assert 1.0 <= (policy.delay(1, busy) or 0) <= 1.25
    assert 2.0 <= (policy.delay(2, busy) or 0) <= 2.5
    assert policy.delay(3, busy) is None
    assert policy.delay(1, Diagnosis(Trouble.BUSY, retry_after=4.0)) == 4.0
    assert policy.delay(1, Diagnosis(Trouble.BUSY, retry_after=11.0)) is None
    assert policy.delay(1, Diagnosis(Trouble.NO_KEY)) is None
    assert isinstance(explain(busy, "x:y", RuntimeError()), ModelUnavailableError)


@pytest.mark.parametrize(
    ("model", "dollars"),
    [
        ("anthropic:claude-sonnet-4-6", 3 * 0.6 + 0.3 * 0.4 + 15),
        ("openai:gpt-5", 1.25 * 0.6 + 0.125 * 0.4 + 10),
        ("openai:gpt-5-mini", 0.25 * 0.6 + 0.025 * 0.4 + 2),
        ("ollama:qwen3", 0),
        ("script:demo", 0),
    ],
)
def test_cost_follows_the_list_price(model: str, dollars: float) -> None:
    usage = Usage(input_tokens=1_000_000, cached_input_tokens=400_000, output_tokens=1_000_000)
    assert cost_of(price_of(model), usage) == pytest.approx(dollars)
