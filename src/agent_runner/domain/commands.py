"""What a shell script does, as far as its words tell: for sending risky ones to the isolated sandbox.

The rule (ours, after the execution mode `auto` of Stigmer's documents): what installs packages, changes
the system, writes outside of the session's files or cannot be understood is isolated; all else, such
as reading, searching, `git status` or running a script, stays local. It is a choice between two places
to run a script and no security boundary: a program may do anything, whatever it is called.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

UNKNOWN = "\ufffc"
"""Stands in a word for what only the running shell knows: a variable, a command's output."""

_PACKAGE_MANAGERS = re.compile(
    r"pip(x|\d(\.\d+)?)?|uvx?|poetry|pdm|pipenv|conda|mamba|micromamba|npm|npx|yarn|pnpm|pnpx|bunx?"
    r"|apt|apt-get|aptitude|apt-key|dpkg|yum|dnf|microdnf|rpm|zypper|pacman|apk|snap|flatpak|brew|port"
    r"|nix(-env)?|corepack|gem|bundler?|cargo|rustup|composer|cpanm?|luarocks|opam|stack|cabal|easy_install\S*"
)
_ASKING = {
    "list", "ls", "show", "freeze", "check", "info", "search", "view", "why", "outdated", "help", "version",
    "--version", "-V", "-v", "--help", "-h", "policy", "config", "tree", "metadata", "depends",
}  # fmt: skip
"""First arguments with which a package manager only answers."""

_CLUSTER_CHANGES = ("apply", "create", "delete", "patch", "replace", "scale", "drain", "edit", "rollout")
_RELEASE_CHANGES = ("install", "upgrade", "uninstall", "rollback")
_SUBCOMMANDS: Mapping[str, Mapping[str, str]] = {
    "go": dict.fromkeys(("install", "get"), "installs packages"),
    "make": {"install": "installs packages"},
    "kubectl": dict.fromkeys(_CLUSTER_CHANGES, "changes a cluster"),
    "helm": dict.fromkeys(_RELEASE_CHANGES, "changes a cluster"),
    "terraform": dict.fromkeys(("apply", "destroy", "import"), "changes infrastructure"),
}
_INTERPRETERS = re.compile(r"(python|pypy)(\d(\.\d+)?)?|node|ruby|perl|php|deno")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_SYSTEM_PROGRAMS = _words(
    """
    sudo su doas pkexec systemctl service init telinit mount umount losetup swapon swapoff modprobe insmod
    rmmod sysctl iptables ip6tables nft ufw firewall-cmd useradd userdel usermod groupadd groupdel groupmod
    adduser deluser addgroup passwd chpasswd chsh visudo crontab at reboot shutdown halt poweroff mkfs fdisk
    sfdisk parted wipefs cryptsetup lvm chroot unshare nsenter setcap update-alternatives dpkg-reconfigure
    ldconfig hostnamectl timedatectl localectl killall pkill docker podman nerdctl
    """
)
_WRITERS = _words("rm rmdir mv cp ln install tee touch mkdir chmod chown chgrp truncate shred dd rsync")
_SHELLS = _words("sh bash dash zsh ksh ash fish busybox")
_RESERVED = _words("if then elif else fi do done while until ! { } time coproc esac")
_WRAPPERS = _words("env nohup nice ionice stdbuf setsid timeout xargs exec command builtin strace ltrace")
_OWN_PLACES = ("/workspace", "/tmp")  # noqa: S108 - the sandbox's own
_HARMLESS = _words("/dev/null /dev/stdout /dev/stderr /dev/tty")
_ASSIGNMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\+?=")
_REDIRECTION = re.compile(r"(?:\d*|&)(<<<|<<-?|<>|>>|>\||>&|<&|<|>)(?!\()")
_SEPARATOR = re.compile(r"\|\||&&|\|&|;;?&?|[|&()]")
_VARIABLE = re.compile(r"\$([A-Za-z_]\w*|[\d@*#?$!-])")
_DEPTH = 20


class UnclearScriptError(ValueError):
    """The script is not whole, or nested too deeply to follow."""


@dataclass(frozen=True, slots=True)
class SimpleCommand:
    """One command of a script.

    Attributes:
        words: the program and its arguments, quotes removed, UNKNOWN for what is not known.
        written: files its output is redirected to.
        reads_pipe: whether it reads another command's output.
    """

    words: tuple[str, ...]
    written: tuple[str, ...] = ()
    reads_pipe: bool = False


def reason_to_isolate(script: str) -> str:
    """Why a script should not run locally, in words for people; empty when it may."""
    try:
        commands = list(simple_commands(script))
        for command in commands:
            if reason := _reason(command, 0):
                return reason
    except UnclearScriptError as error:
        return f"is not understood: {error}"
    return ""


def simple_commands(script: str) -> Iterator[SimpleCommand]:
    """All commands of a bash script, those in substitutions and subshells included, in no fixed order.

    Raises:
        UnclearScriptError: a quote or bracket has no end, or the nesting is too deep.
    """
    return iter(_Reader(script, 0).read())


@dataclass(slots=True)
class _Parts:
    """The command being read."""

    words: list[str] = field(default_factory=list)
    written: list[str] = field(default_factory=list)
    piped: bool = False


class _Reader:
    """Reads a script once, from left to right."""

    def __init__(self, text: str, depth: int) -> None:
        if depth > _DEPTH:
            raise UnclearScriptError("it is nested too deeply")
        self._text = text
        self._at = 0
        self._depth = depth
        self._found: list[SimpleCommand] = []
        self._now = _Parts()
        self._heredocs: list[tuple[str, bool]] = []

    def read(self) -> list[SimpleCommand]:
        while self._at < len(self._text):
            self._step()
        self._finish(piped=False)
        return self._found

    def _step(self) -> None:
        char = self._text[self._at]
        if char == "\n":
            self._at += 1
            self._finish(piped=False)
            self._skip_heredocs()
        elif char in " \t\r":
            self._at += 1
        elif self._text.startswith("\\\n", self._at):
            self._at += 2
        elif char == "#":
            self._at = self._find("\n", self._at, whole=False)
        elif match := _REDIRECTION.match(self._text, self._at):
            self._at = match.end()
            self._redirect(match.group(1))
        elif match := _SEPARATOR.match(self._text, self._at):
            self._at = match.end()
            self._finish(piped=match.group() in ("|", "|&"))
        else:
            self._now.words.append(self._word())

    def _finish(self, *, piped: bool) -> None:
        parts = self._now
        if parts.words or parts.written:
            self._found.append(SimpleCommand(tuple(parts.words), tuple(parts.written), parts.piped))
        self._now = _Parts(piped=piped)

    def _redirect(self, operator: str) -> None:
        while self._text[self._at : self._at + 1] in (" ", "\t") and self._at < len(self._text):
            self._at += 1
        begun = self._at
        word = self._word()
        if operator in ("<<", "<<-"):
            self._heredocs.append((word, not re.search(r"['\"\\]", self._text[begun : self._at])))
        elif operator in (">", ">>", ">|", "<>") or (operator == ">&" and not re.fullmatch(r"\d+-?|-", word)):
            self._now.written.append(word)

    def _skip_heredocs(self) -> None:
        for delimiter, expands in self._heredocs:
            match = re.compile(rf"^\t*{re.escape(delimiter)}$", re.MULTILINE).search(self._text, self._at)
            if match is None:
                raise UnclearScriptError(f"the text up to {delimiter} has no end")
            if expands:
                self._expansions(self._text[self._at : match.start()])
            self._at = match.end()
        self._heredocs.clear()

    def _expansions(self, text: str) -> None:
        """Take in the commands in substitutions of a text which is not a command itself."""
        inner = _Reader(text, self._depth + 1)
        while inner._at < len(text):
            if text[inner._at] in "$`":
                inner._dollar_or_backtick()
            else:
                inner._at += 2 if text[inner._at] == "\\" else 1
        self._found += inner._found

    def _word(self) -> str:
        parts: list[str] = []
        while self._at < len(self._text):
            char = self._text[self._at]
            if char in " \t\r\n;|&()" or (char in "<>" and self._text[self._at + 1 : self._at + 2] != "("):
                break
            parts.append(self._piece(char))
        return "".join(parts)

    def _piece(self, char: str) -> str:
        begun = self._at
        if char == "\\":
            self._at += 2
            return self._text[begun + 1 : begun + 2].replace("\n", "")
        if char == "'":
            self._at = self._find("'", begun + 1) + 1
            return self._text[begun + 1 : self._at - 1]
        if char == '"':
            return self._double_quoted()
        if char in "$`":
            return self._dollar_or_backtick()
        if char in "<>":
            self._at += 2
            self._substitution()
            return UNKNOWN
        self._at += 1
        return char

    def _double_quoted(self) -> str:
        self._at += 1
        parts: list[str] = []
        while True:
            if self._at >= len(self._text):
                raise UnclearScriptError("a double quote has no end")
            char = self._text[self._at]
            if char == '"':
                self._at += 1
                return "".join(parts)
            if char == "\\":
                parts.append(self._text[self._at + 1 : self._at + 2])
                self._at += 2
            elif char in "$`":
                parts.append(self._dollar_or_backtick())
            else:
                parts.append(char)
                self._at += 1

    def _dollar_or_backtick(self) -> str:
        rest = self._text[self._at : self._at + 3]
        if rest[0] == "`":
            end = self._find("`", self._at + 1)
            inner = self._text[self._at + 1 : end].replace("\\`", "`")
            self._found += _Reader(inner, self._depth + 1).read()
            self._at = end + 1
        elif rest == "$((":
            self._at = self._find("))", self._at) + 2
        elif rest.startswith("$("):
            self._at += 2
            self._substitution()
        elif rest.startswith("${"):
            end = self._find("}", self._at)
            self._expansions(self._text[self._at + 2 : end])
            self._at = end + 1
        elif rest.startswith(("$'", '$"')):
            self._at += 1
            return ""
        elif match := _VARIABLE.match(self._text, self._at):
            self._at = match.end()
        else:
            self._at += 1
            return "$"
        return UNKNOWN

    def _substitution(self) -> None:
        """Read commands up to the bracket which closes them; the one that opened them is behind us."""
        begun, depth = self._at, 1
        scan = _Reader(self._text, self._depth + 1)
        scan._at = begun
        while depth:
            if scan._at >= len(self._text):
                raise UnclearScriptError("a bracket has no end")
            char = self._text[scan._at]
            if char in "'\"\\$`":
                scan._piece(char)
            else:
                depth += (char == "(") - (char == ")")
                scan._at += 1
        self._found += _Reader(self._text[begun : scan._at - 1], self._depth + 1).read()
        self._at = scan._at

    def _find(self, what: str, start: int, *, whole: bool = True) -> int:
        found = self._text.find(what, start)
        if found < 0 and whole:
            raise UnclearScriptError(f"{what} is missing")
        return len(self._text) if found < 0 else found


def _reason(command: SimpleCommand, depth: int) -> str:
    if depth > _DEPTH:
        raise UnclearScriptError("it is nested too deeply")
    for path in command.written:
        if _outside(path):
            return f"writes to {_shown(path)}, outside of the session's files"
    words = _without_prefix(command.words)
    if not words:
        return ""
    program = posixpath.basename(words[0])
    arguments = words[1:]
    if UNKNOWN in words[0]:
        return "runs a program whose name only shows when it runs"
    if program in ("for", "case", "select", "function"):
        return ""
    return _reason_of_program(program, arguments, command, depth)


def _reason_of_program(program: str, arguments: Sequence[str], command: SimpleCommand, depth: int) -> str:
    if program in _SYSTEM_PROGRAMS or program.startswith("mkfs."):
        return f"changes the system ({program})"
    if _PACKAGE_MANAGERS.fullmatch(program):
        asks = bool(arguments) and arguments[0] in _ASKING
        return "" if asks else f"installs or runs packages ({program})"
    if reason := _SUBCOMMANDS.get(program, {}).get(_first_plain(arguments), ""):
        return f"{reason} ({program} {_first_plain(arguments)})"
    if program in _SHELLS:
        return _reason_of_shell(arguments, command, depth)
    if program == "eval":
        return _reason_of_text(" ".join(arguments), depth)
    if _INTERPRETERS.fullmatch(program):
        return _reason_of_interpreter(program, arguments, command)
    if program in _WRITERS:
        return _reason_of_writer(program, arguments)
    if program == "find":
        return _reason_of_find(arguments, depth)
    return ""


def _reason_of_shell(arguments: Sequence[str], command: SimpleCommand, depth: int) -> str:
    for index, argument in enumerate(arguments):
        if re.fullmatch(r"-[a-z]*c[a-z]*", argument):
            return _reason_of_text(arguments[index + 1] if index + 1 < len(arguments) else "", depth)
        if not argument.startswith("-"):
            return ""
    return "runs what another command prints" if command.reads_pipe else ""


def _reason_of_text(text: str, depth: int) -> str:
    if UNKNOWN in text:
        return "runs a script which only shows when it runs"
    for command in _Reader(text, depth + 1).read():
        if reason := _reason(command, depth + 1):
            return reason
    return ""


def _reason_of_interpreter(program: str, arguments: Sequence[str], command: SimpleCommand) -> str:
    if "-m" in arguments[:-1]:
        module = arguments[list(arguments).index("-m") + 1]
        after = arguments[list(arguments).index("-m") + 2 :]
        if _PACKAGE_MANAGERS.fullmatch(module) and not (after and after[0] in _ASKING):
            return f"installs or runs packages ({program} -m {module})"
        if module in ("ensurepip", "venv", "virtualenv"):
            return f"installs or runs packages ({program} -m {module})"
    if not arguments and command.reads_pipe:
        return "runs what another command prints"
    return ""


def _reason_of_writer(program: str, arguments: Sequence[str]) -> str:
    paths = [word for word in arguments if not word.startswith("-")]
    if program in ("cp", "ln", "rsync", "install"):
        paths = paths[-1:]  # the others are only read
    if program in ("chmod", "chown", "chgrp"):
        paths = paths[1:]
    if program == "dd":
        paths = [word.removeprefix("of=") for word in paths if word.startswith("of=")]
    for path in paths:
        if _outside(path):
            return f"changes {_shown(path)}, outside of the session's files ({program})"
    return ""


def _reason_of_find(arguments: Sequence[str], depth: int) -> str:
    for index, argument in enumerate(arguments):
        if argument in ("-exec", "-execdir", "-ok", "-okdir"):
            inner = arguments[index + 1 :]
            if reason := _reason(SimpleCommand(tuple(inner)), depth + 1):
                return reason
    if "-delete" in arguments and any(_outside(word) for word in arguments[:1]):
        return f"deletes in {_shown(arguments[0])}, outside of the session's files (find)"
    return ""


def _without_prefix(words: Sequence[str]) -> Sequence[str]:
    """The words from the program on: without assignments, reserved words, and programs that run another."""
    words = list(words)
    while words:
        if words[0] in _RESERVED or _ASSIGNMENT.match(words[0]):
            words = words[1:]
            continue
        wrapper = posixpath.basename(words[0])
        if wrapper not in _WRAPPERS:
            return words
        rest = words[1:]
        while rest and (rest[0].startswith("-") or _ASSIGNMENT.match(rest[0])):
            # Options with a value of their own: its value is no program.
            takes_value = rest[0] in ("-n", "-u", "-s", "-k", "-I", "-P", "-L", "-d", "-c", "-C", "-S", "-a")
            rest = rest[2:] if takes_value and len(rest) > 2 else rest[1:]
        if wrapper == "timeout" and rest:
            rest = rest[1:]
        words = rest
    return words


def _first_plain(arguments: Sequence[str]) -> str:
    return next((word for word in arguments if not word.startswith("-")), "")


def _outside(path: str) -> bool:
    """Whether a path is for sure outside of what belongs to the session."""
    if path in _HARMLESS:
        return False
    if path.startswith("~"):
        return True
    normal = posixpath.normpath(posixpath.join("/workspace", path))
    return not any(normal == place or normal.startswith(f"{place}/") for place in _OWN_PLACES) and not (
        path.startswith(UNKNOWN)
    )


def _shown(path: str) -> str:
    return path.replace(UNKNOWN, "…")[:80]
