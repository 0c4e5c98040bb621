"""What a provider's error means, told in plain words, and whether to ask again."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import Enum
from typing import Any

from langchain_core import exceptions as known

from agent_runner.adapters.models.names import PROVIDERS
from agent_runner.errors import ModelError, ModelUnavailableError

_LONGEST_QUOTE = 300


class Trouble(Enum):
    """Why a model call failed."""

    BUSY = "busy"
    AWAY = "away"
    NO_KEY = "no_key"
    NO_CREDIT = "no_credit"
    DENIED = "denied"
    UNKNOWN_MODEL = "unknown_model"
    TOO_LONG = "too_long"
    REFUSED = "refused"
    BROKEN = "broken"


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """An error, understood.

    Attributes:
        retry_after: seconds the provider asks to wait; None: it does not say.
        quote: the provider's words, shortened; empty where they may hold a key.
    """

    trouble: Trouble
    retry_after: float | None = None
    quote: str = ""

    @property
    def worth_retrying(self) -> bool:
        return self.trouble in (Trouble.BUSY, Trouble.AWAY)


_BY_TYPE: tuple[tuple[type[BaseException], Trouble], ...] = (
    (known.ContextOverflowError, Trouble.TOO_LONG),
    (known.ModelAuthenticationError, Trouble.NO_KEY),
    (known.ModelPermissionDeniedError, Trouble.DENIED),
    (known.ModelNotFoundError, Trouble.UNKNOWN_MODEL),
    (known.ModelRateLimitError, Trouble.BUSY),
    (known.ModelAPIError, Trouble.AWAY),
    (known.ModelConnectionError, Trouble.AWAY),
    (known.ModelTimeoutError, Trouble.AWAY),
    (ConnectionError, Trouble.AWAY),
    (TimeoutError, Trouble.AWAY),
)
_BY_STATUS = {
    400: Trouble.REFUSED,
    401: Trouble.NO_KEY,
    402: Trouble.NO_CREDIT,
    403: Trouble.DENIED,
    404: Trouble.UNKNOWN_MODEL,
    408: Trouble.AWAY,
    409: Trouble.BUSY,
    413: Trouble.TOO_LONG,
    422: Trouble.REFUSED,
    429: Trouble.BUSY,
}
_NO_CREDIT_WORDS = ("insufficient_quota", "credit balance", "exceeded your current quota", "billing")
_TOO_LONG_WORDS = (
    "context length",
    "context_length",
    "context window",
    "available context size",  # llama.cpp
    "prompt is too long",
    "too many tokens",
)
_BUSY_WORDS = ("rate_limit", "rate limit", "overloaded", "resource_exhausted")


def diagnose(error: BaseException) -> Diagnosis:
    """What an error of a model call means. Works on any provider's: by type, status code and words."""
    quote = str(getattr(error, "message", "") or error).strip()[:_LONGEST_QUOTE]
    trouble = _trouble(error, f"{quote} {getattr(error, 'code', '')}".lower())
    if trouble in (Trouble.NO_KEY, Trouble.DENIED):
        quote = ""
    return Diagnosis(trouble, _retry_after(error), quote)


def _trouble(error: BaseException, words: str) -> Trouble:
    status = getattr(error, "status_code", None)
    if status in (400, 402, 403, 429) and any(word in words for word in _NO_CREDIT_WORDS):
        return Trouble.NO_CREDIT
    if status in (None, 400, 413, 422) and any(word in words for word in _TOO_LONG_WORDS):
        return Trouble.TOO_LONG
    for kind, trouble in _BY_TYPE:
        if isinstance(error, kind):
            return trouble
    # Clients bring HTTP libraries of their own, alike in names: httpx, httpx2, httpcore.
    if any(ancestor.__name__ == "TransportError" for ancestor in type(error).__mro__):
        return Trouble.AWAY
    if isinstance(status, int):
        return Trouble.AWAY if status >= 500 else _BY_STATUS.get(status, Trouble.REFUSED)
    # An error inside a stream has no status; its words are all there is.
    if any(word in words for word in _BUSY_WORDS):
        return Trouble.BUSY
    return Trouble.BROKEN


def _retry_after(error: BaseException) -> float | None:
    """Seconds, from an attribute or the response's headers, whichever is there."""
    said = getattr(error, "retry_after", None)
    if isinstance(said, int | float):
        return float(said)
    headers: Any = getattr(getattr(error, "response", None), "headers", None) or {}
    if milliseconds := headers.get("retry-after-ms"):
        return _number(milliseconds, 1000)
    if value := headers.get("retry-after"):
        seconds = _number(value, 1)
        return seconds if seconds is not None else _until(value)
    return None


def _number(text: str, divisor: int) -> float | None:
    try:
        return max(0.0, float(text) / divisor)
    except ValueError:
        return None


def _until(date: str) -> float | None:
    try:
        moment = parsedate_to_datetime(date)
    except ValueError:
        return None
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())


def explain(diagnosis: Diagnosis, model: str, error: BaseException) -> ModelError:
    """The error to raise, in words for people.

    Args:
        model: `provider:model`.
    """
    provider = model.partition(":")[0]
    facts = PROVIDERS.get(provider)
    key = " or ".join(facts.keys) if facts and facts.keys else "its key"
    said = f" The provider says: {diagnosis.quote}" if diagnosis.quote else ""
    text = {
        Trouble.BUSY: f"The provider of {model} is busy: too many requests or tokens per minute.{said}",
        Trouble.AWAY: f"The provider of {model} cannot be reached or does not answer.{said}",
        Trouble.NO_KEY: f"The provider of {model} does not accept the key. Check {key}.",
        Trouble.NO_CREDIT: f"The account of {model} has no credit or quota left. Check its billing.{said}",
        Trouble.DENIED: f"The key in {key} may not use {model}.",
        Trouble.UNKNOWN_MODEL: f"The provider does not know the model {model}. Check its name.{said}",
        Trouble.TOO_LONG: (
            f"The conversation is too long for {model}. Begin a new session, or ask a model that reads more."
            f"{said}"
        ),
        Trouble.REFUSED: f"The provider of {model} refused the request.{said}",
        Trouble.BROKEN: f"The call of {model} failed: {type(error).__name__}.{said}",
    }[diagnosis.trouble]
    return ModelUnavailableError(text) if diagnosis.worth_retrying else ModelError(text)
