"""Programs that stay, in the same confinement as every command of the session."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from agent_runner.adapters.sandbox.longrunning import PipedProcess
from agent_runner.adapters.sandbox.names import check_environment, sandbox_path
from agent_runner.adapters.sandbox.processes import Finished
from agent_runner.errors import InvalidRequestError, SandboxUnavailableError

if TYPE_CHECKING:
    from agent_runner.adapters.sandbox.local.sandbox import LocalSandbox

_BASIC: Final = frozenset({"PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "TERM", "TMPDIR", "TZ"})
"""Variables of the session every program needs; the others may be secrets it was not given."""


async def open_process(
    sandbox: LocalSandbox, argv: Sequence[str], env: Mapping[str, str], cwd: str
) -> PipedProcess:
    """Start a program that ends with the sandbox; see `KeepsProcesses`."""
    from agent_runner.adapters.sandbox.local import sandbox as local

    directory = _checked(argv, cwd)
    basic = {name: value for name, value in sandbox._env.items() if name in _BASIC}
    variables = {**basic, **check_environment(env)}
    null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    try:
        with local._memory_file("seccomp", sandbox._seccomp) as seccomp:
            options = sandbox._wrapping.options(seccomp=seccomp, status=null, cwd=directory, env=variables)
            with local._memory_file("options", local._joined(options)) as arguments:
                view = [] if sandbox._wrapping.view is None else [sandbox._wrapping.view]
                process = await PipedProcess.start(
                    await sandbox._wrapping.launcher(arguments, argv),
                    env=local._LAUNCHER_ENVIRONMENT,
                    pass_fds=[seccomp, null, arguments, *view],
                )
    except OSError as error:
        raise SandboxUnavailableError(f"The process could not be started: {error}") from error
    finally:
        os.close(null)
    sandbox._commands.begin(_until_end(process))
    return process


def _checked(argv: Sequence[str], cwd: str) -> str:
    if not argv or not argv[0] or any("\0" in word for word in argv):
        raise InvalidRequestError.of("command", "must name a program, and hold no NUL character.")
    try:
        return sandbox_path(cwd)
    except ValueError:
        raise InvalidRequestError.of("cwd", "is not a path.") from None


async def _until_end(process: PipedProcess) -> Finished:
    """Stand among the session's commands, so that stopping the sandbox ends the program."""
    try:
        code = await process.wait()
    finally:
        process.kill()
    return Finished(code, b"", b"", timed_out=False, truncated=False)
