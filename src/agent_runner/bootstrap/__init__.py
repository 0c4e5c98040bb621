"""Reads the settings, builds the adapters and hands them out: the processes of the product.

Nothing heavy is imported before it is used, since the command line starts here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from agent_runner.bootstrap.imports import import_clients, import_logs, import_temporal
from agent_runner.settings import Settings

if TYPE_CHECKING:
    from agent_runner.bootstrap.models import ModelFile
    from agent_runner.domain.masking import LiveSecrets

__all__ = ["doctor", "model_file", "run_server", "run_stack", "run_worker"]


def run_stack(settings: Settings, on_ready: Callable[[], None], *, colors: bool | None = None) -> int:
    """Run Temporal, control plane and runner until SIGINT or SIGTERM.

    Args:
        on_ready: called when everything serves; `stack.json` is written by then.
        colors: whether log lines for people have them; None where stderr is a terminal. So below.

    Returns:
        The exit code.
    """
    import_logs()
    import_clients()
    from agent_runner.bootstrap.process import run_service
    from agent_runner.bootstrap.stack import serve_stack

    secrets = _configure_logs(settings, colors)
    return run_service(lambda stop: serve_stack(settings, stop, on_ready, secrets))


def run_server(settings: Settings, *, colors: bool | None = None) -> int:
    """Run the control plane alone until SIGINT or SIGTERM; returns the exit code."""
    import_logs()
    import_temporal()
    from agent_runner.bootstrap.controlplane import serve_control_plane
    from agent_runner.bootstrap.process import run_service

    _configure_logs(settings, colors)
    return run_service(lambda stop: serve_control_plane(settings, stop))


def run_worker(settings: Settings, *, colors: bool | None = None) -> int:
    """Run a runner alone until SIGINT or SIGTERM; returns the exit code."""
    import_logs()
    import_clients()
    from agent_runner.bootstrap.process import run_service
    from agent_runner.bootstrap.runner import serve_runner

    secrets = _configure_logs(settings, colors)
    return run_service(lambda stop: serve_runner(settings, stop, secrets))


def doctor(settings: Settings) -> Iterator[tuple[str, bool | None, str]]:
    """What works here: (name, whether it does, detail for people); None: no, and nobody asked for it."""
    from agent_runner.bootstrap.doctor import checks

    return checks(settings)


def model_file(settings: Settings) -> ModelFile:
    """The file of the model that runs on this machine."""
    from agent_runner.bootstrap import models

    return models.model_file(settings)


def _configure_logs(settings: Settings, colors: bool | None) -> LiveSecrets:
    """Set up logging; returns what learns which secrets of executions it must not show."""
    import structlog

    from agent_runner import logs
    from agent_runner.bootstrap.keys import provider_keys
    from agent_runner.domain.masking import LiveSecrets

    redaction = logs.configure(settings.log_level, settings.log_format, colors=colors)
    # A process of ours sets its logs up once; looking the set-up up again cost a percent of a turn.
    structlog.configure(cache_logger_on_first_use=True)
    for secret in provider_keys(settings):
        redaction.add(lambda text, secret=secret: text.replace(secret, logs.MASK))  # type: ignore[misc]
    secrets = LiveSecrets()
    redaction.add(secrets.text)
    return secrets
