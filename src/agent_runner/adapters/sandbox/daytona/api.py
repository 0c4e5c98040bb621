"""Daytona's SDK: imported when first used, its errors in our words, its limits waited for."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

from agent_runner.errors import SandboxRefusedError, SandboxUnavailableError

if TYPE_CHECKING:
    from daytona import AsyncDaytona

T = TypeVar("T")

_ATTEMPTS = 4
_FIRST_PAUSE = 0.2
_LONGEST_PAUSE = 30.0


class GoneError(SandboxUnavailableError):
    """Daytona knows no such sandbox, file or process."""


class TakenError(SandboxUnavailableError):
    """The name is taken, or the sandbox is not in a state for this."""


def connect(api_key: str, api_url: str, target: str) -> AsyncDaytona:
    """A client with all settings given, so that the SDK reads no variables and no `.env` files.

    Raises:
        SandboxRefusedError: the SDK is not installed.
    """
    try:
        from daytona import AsyncDaytona, DaytonaConfig
    except ImportError:
        raise SandboxRefusedError(
            "Daytona sandboxes need one more package: pip install 'agent-runner-platform[daytona]'"
        ) from None
    configuration = DaytonaConfig(
        api_key=api_key,
        api_url=api_url,
        target=target or None,
        use_deprecated_polling=True,
        otel_enabled=False,
    )
    with warnings.catch_warnings():
        # Polling asks every 0.1 s whether a sandbox is up; the event socket falls back to once a second.
        warnings.simplefilter("ignore", DeprecationWarning)
        return AsyncDaytona(configuration)


async def call(work: Callable[[], Awaitable[T]], *, seconds: float, again: bool = True) -> T:
    """Make a request within a deadline per attempt, again after refusals which pass.

    Args:
        again: whether the request may be repeated when it is unknown what became of it.

    Raises:
        GoneError, TakenError: Daytona said so.
        SandboxRefusedError: the key is wrong, or may not do this.
        SandboxUnavailableError: Daytona is away, busy or slow, also after all attempts.
    """
    import daytona

    pause = _FIRST_PAUSE
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            async with asyncio.timeout(seconds):
                return await work()
        except daytona.DaytonaRateLimitError as error:
            # Refused before anything was done: it may always be tried again.
            problem: Exception = error
            wait = _retry_after(error) or pause
        except daytona.DaytonaNotFoundError as error:
            raise GoneError(f"Daytona: {error}") from error
        except daytona.DaytonaConflictError as error:
            raise TakenError(f"Daytona: {error}") from error
        except (daytona.DaytonaAuthenticationError, daytona.DaytonaForbiddenError) as error:
            raise SandboxRefusedError(f"Daytona refused the key: {error}. Check DAYTONA_API_KEY.") from error
        except (daytona.DaytonaError, TimeoutError, OSError) as error:
            if not again or not _may_pass(error):
                raise _unavailable(error) from error
            problem, wait = error, pause
        if attempt == _ATTEMPTS or wait > _LONGEST_PAUSE:
            raise _unavailable(problem) from problem
        await asyncio.sleep(wait)
        pause *= 3
    raise AssertionError("unreachable")


def _may_pass(error: Exception) -> bool:
    status = getattr(error, "status_code", None)
    return status is None or status >= 500 or status == 408


def _retry_after(error: Exception) -> float | None:
    headers = getattr(error, "headers", None) or {}
    with suppress(ValueError, TypeError):
        lowered = {str(name).lower(): value for name, value in dict(headers).items()}
        return float(lowered["retry-after"]) if "retry-after" in lowered else None
    return None


def _unavailable(error: Exception) -> SandboxUnavailableError:
    what = "did not answer in time" if isinstance(error, TimeoutError) else str(error)[:500]
    return SandboxUnavailableError(f"Daytona: {what}")
