"""How a command runs in a sandbox elsewhere: started, its end noticed, its process tree ended."""

from __future__ import annotations

from collections.abc import Sequence

_RUN = """\
umask 022
if [ "$2" -gt 0 ]; then
  f=$(mktemp) && head -c "$2" >"$f" || exit 125
  set -- "$1" "$2" "$3" "$4" "$f"
else
  f=
fi
if cd -- "$3"; then
  if [ -n "$f" ]; then
    timeout -s KILL "$4" bash "$f" </dev/null
  else
    timeout -s KILL "$4" bash -c "$5" bash </dev/null
  fi
  code=$?
else
  code=1
fi
[ -n "$f" ] && rm -f "$f"
printf '@@%s:%d@@' "$1" "$code"
printf '@@%s:%d@@' "$1" "$code" >&2
"""
"""Arguments: token, length of a script that comes on standard input or 0, directory, seconds, script.

Engines keep the streams of a command open while anything the command left behind holds them. So
the end is marked in both streams, with a token the script does not know.
"""

_KILL = """\
import os, signal, sys, time
token = b"AGENT_RUNNER_COMMAND=" + sys.argv[1].encode()
until, quickly = time.monotonic() + 5, 50
while quickly > 0 or time.monotonic() < until:
    found = False
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == os.getpid():
            continue
        try:
            with open("/proc/" + name + "/environ", "rb") as file:
                if token in file.read().split(b"\\0"):
                    with open("/proc/" + name + "/stat", "rb") as stat:
                        if stat.read().rpartition(b")")[2].split()[0] != b"Z":
                            os.kill(int(name), signal.SIGKILL)
                            found = True
        except OSError:
            continue
    if not found:
        print("ended")
        break
    quickly -= 1
    if quickly < 0:
        time.sleep(0.01)
"""
"""No API of an engine ends a command with all it began, so this does, inside: it kills all processes with
the command's mark among their variables, which children inherit, however they detach themselves. It says
so at the end, as it cannot even begin where the sandbox may have no further process. At first it is quick,
to be ahead of what forks; then it waits some seconds for what was killed, which takes a while to be gone on a
busy machine."""

KILLED = b"ended"

INLINE_LIMIT = 96 << 10
"""Longer scripts come on standard input: Linux takes 128 KiB for one argument."""


def run_command(token: str, script: bytes, cwd: str, seconds: int) -> Sequence[str]:
    """The argument list which runs the script; longer than INLINE_LIMIT it is to be sent after."""
    inline = len(script) <= INLINE_LIMIT
    text = script.decode("utf-8", "surrogateescape") if inline else ""
    return (
        "bash",
        "-p",
        "-c",
        _RUN,
        "run",
        token,
        str(0 if inline else len(script)),
        cwd,
        str(seconds),
        text,
    )


def kill_command(mark: str) -> Sequence[str]:
    """The argument list which ends everything that carries the mark, and prints KILLED once all is."""
    return ("python3", "-I", "-c", _KILL, mark)


class EndMark:
    """Finds the mark of the end in one stream, and holds nothing back that cannot be part of it."""

    def __init__(self, token: str) -> None:
        self._mark = b"@@" + token.encode() + b":"
        self._held = b""
        self.code: int | None = None
        """The exit code, once the mark was seen."""

    def feed(self, data: bytes) -> bytes:
        """What of the stream is output for sure."""
        if self.code is not None:
            return b""
        data = self._held + data
        self._held = b""
        start = data.find(self._mark)
        if start >= 0:
            number, end, _ = data[start + len(self._mark) :].partition(b"@@")
            if end:
                self.code = int(number)
            else:
                self._held = data[start:]
            return data[:start]
        for size in range(min(len(self._mark) - 1, len(data)), 0, -1):
            if data.endswith(self._mark[:size]):
                self._held = data[-size:]
                return data[:-size]
        return data
