"""What tokens cost, where it is known.

List prices of the providers for standard use and prompts of usual length, in US dollars per million
tokens, as published by 2026-11. Writing to a cache counts as input. They are for orientation and for
the limit `cost_usd`; the bill is the provider's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from agent_runner.v1.status_pb2 import Usage


@dataclass(frozen=True, slots=True)
class Price:
    """US dollars per million tokens; `cached` is for input read from the provider's cache."""

    input: float
    output: float
    cached: float


_PRICES: tuple[tuple[re.Pattern[str], Price], ...] = tuple(
    (re.compile(pattern), price)
    for pattern, price in (
        (r"anthropic:claude-opus-5-5", Price(4, 20, 0.2)),
        (r"anthropic:claude-opus-(5|4-[5-9])", Price(5, 25, 0.5)),
        (r"anthropic:claude-sonnet-5-5", Price(2, 10, 0.1)),
        (r"anthropic:claude-sonnet-5", Price(2, 10, 0.2)),
        (r"anthropic:claude-sonnet-4", Price(3, 15, 0.3)),
        (r"anthropic:claude-haiku-5-5", Price(0.1, 0.5, 0.01)),
        (r"anthropic:claude-haiku-4", Price(1, 5, 0.1)),
        (r"anthropic:claude-fable-5-1", Price(10, 50, 0.25)),
        (r"openai:gpt-6\.1-sol", Price(2, 10, 0.1)),
        (r"openai:gpt-6-sol", Price(2, 10, 0.2)),
        (r"openai:gpt-6-luna", Price(0.1, 0.5, 0.01)),
        (r"openai:gpt-5\.4-mini", Price(0.75, 4.5, 0.075)),
        (r"openai:gpt-5\.4(-20|$)", Price(2.5, 15, 0.25)),
        (r"openai:gpt-5(\.1)?-nano", Price(0.05, 0.4, 0.005)),
        (r"openai:gpt-5(\.1)?-mini", Price(0.25, 2, 0.025)),
        (r"openai:gpt-5(\.1)?(-20|-chat|-codex|$)", Price(1.25, 10, 0.125)),
        (r"openai:gpt-4\.1-nano", Price(0.1, 0.4, 0.025)),
        (r"openai:gpt-4\.1-mini", Price(0.4, 1.6, 0.1)),
        (r"openai:gpt-4\.1", Price(2, 8, 0.5)),
        (r"openai:gpt-4o-mini", Price(0.15, 0.6, 0.075)),
        (r"openai:gpt-4o", Price(2.5, 10, 1.25)),
        (r"google_genai:gemini-2\.5-flash-lite", Price(0.1, 0.4, 0.01)),
        (r"google_genai:gemini-2\.5-flash(-|$)", Price(0.3, 2.5, 0.03)),
        (r"google_genai:gemini-2\.5-pro", Price(1.25, 10, 0.125)),
    )
)


def price_of(model: str) -> Price | None:
    """The price of `provider:model`; None where it is not known. First match wins."""
    return next((price for pattern, price in _PRICES if pattern.match(model)), None)


def cost_of(price: Price | None, usage: Usage) -> float:
    """US dollars of one call; 0 without a price."""
    if price is None:
        return 0.0
    fresh = usage.input_tokens - usage.cached_input_tokens
    total = (
        fresh * price.input + usage.cached_input_tokens * price.cached + usage.output_tokens * price.output
    )
    return total / 1_000_000
