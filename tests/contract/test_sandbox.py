"""What every kind of sandbox keeps, against the real thing."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import psutil
import pytest
from contract.sandbox_kinds import PROVIDERS

from agent_runner.adapters.sandbox.deepagents_backend import SandboxBackend
from agent_runner.errors import InvalidRequestError, NotFoundError
from agent_runner.ports.sandboxes import FileProblem, Sandbox, SandboxProvider, SandboxSpec

HASH = "a3f5" * 16


@pytest.fixture(params=PROVIDERS)
async def provider(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[SandboxProvider]:
    async with PROVIDERS[request.param](tmp_path) as provider:
        yield provider


@pytest.fixture
async def session_id(provider: SandboxProvider) -> AsyncIterator[str]:
    name = f"ses-{secrets.token_hex(8)}"
    yield name
    await provider.delete(name)


@pytest.fixture
async def sandbox(provider: SandboxProvider, session_id: str, skill: Path) -> Sandbox:
    return await provider.ensure(SandboxSpec(session_id, {"COLOUR": "deep blue"}, {HASH: skill}))


@pytest.fixture
async def backend(sandbox: Sandbox) -> SandboxBackend:
    return SandboxBackend(sandbox)


@pytest.fixture
def skill(tmp_path: Path) -> Path:
    directory = tmp_path / "skill"
    (directory / "scripts").mkdir(parents=True)
    (directory / "SKILL.md").write_text("# Greet\n")
    (directory / "scripts/greet.sh").write_text('#!/bin/bash\necho "greetings, $1"\n')
    (directory / "scripts/greet.sh").chmod(0o755)
    return directory


def marked() -> str:
    """A sleep nobody else runs, to look for in the process table."""
    return f"6{secrets.randbelow(10**9):09d}"


def running(marker: str) -> bool:
    for process in psutil.process_iter():
        try:
            if process.status() != psutil.STATUS_ZOMBIE and marker in process.cmdline():
                return True
        except psutil.Error:
            continue
    return False


async def until(condition: Callable[[], bool]) -> bool:
    """Whether it comes true; what is looked for sleeps for longer than this waits."""
    with suppress(TimeoutError):
        async with asyncio.timeout(300):
            while not condition():  # noqa: ASYNC110 (the kernel tells nobody)
                await asyncio.sleep(0.02)
            return True
    return False


class TestCommands:
    async def test_a_command_answers_with_its_code_and_output(self, sandbox: Sandbox) -> None:
        result = await sandbox.exec("echo out; echo err >&2; exit 3")

        assert result.code == 3
        assert b"out\n" in result.stdout
        assert b"err\n" in result.stdout + result.stderr
        assert not result.timed_out
        assert not result.truncated

    async def test_it_starts_in_the_workspace_as_an_unprivileged_user(self, sandbox: Sandbox) -> None:
        result = await sandbox.exec("pwd; id -u")

        directory, uid = result.stdout.decode().split()
        assert directory == "/workspace"
        assert int(uid) != 0 or sandbox.id.startswith("unconfined-")

    async def test_it_starts_where_it_is_told_to(self, sandbox: Sandbox) -> None:
        await sandbox.exec("mkdir -p deep/er")

        assert (await sandbox.exec("pwd", cwd="/tmp")).stdout == b"/tmp\n"
        assert (await sandbox.exec("pwd", cwd="deep/er")).stdout == b"/workspace/deep/er\n"
        assert (await sandbox.exec("pwd", cwd="/nowhere")).code != 0

    async def test_a_script_ending_by_a_signal_gives_128_and_its_number(self, sandbox: Sandbox) -> None:
        assert (await sandbox.exec("kill -TERM $$")).code == 143

    async def test_standard_input_is_empty(self, sandbox: Sandbox) -> None:
        result = await sandbox.exec("cat; echo after", timeout=timedelta(minutes=5))

        assert (result.code, result.stdout) == (0, b"after\n")

    async def test_bash_python_grep_and_coreutils_are_inside(self, sandbox: Sandbox) -> None:
        script = "[[ $BASH_VERSION ]] && python3 -c 'print(6*7)' && grep --version | head -n1 && stat -c %s /"
        result = await sandbox.exec(script)

        assert result.code == 0
        assert b"42" in result.stdout
        assert b"GNU grep" in result.stdout

    async def test_variables_of_the_session_and_of_the_command_are_set_and_no_others(
        self, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-very-secret")
        script = 'echo "$COLOUR|$SIZE|$ANTHROPIC_API_KEY|$TMPDIR"; cat /proc/*/environ 2>/dev/null'
        result = await sandbox.exec(script, env={"SIZE": 'it\'s "big"\n$(x)'})

        assert result.stdout.startswith(b'deep blue|it\'s "big"\n$(x)||/tmp\n')
        assert b"very-secret" not in result.stdout

    async def test_a_script_of_a_megabyte_runs(self, sandbox: Sandbox) -> None:
        script = "x='" + "y" * 1_000_000 + "'\necho ${#x}"

        assert (await sandbox.exec(script)).stdout == b"1000000\n"

    async def test_a_script_beyond_the_limit_is_refused(self, sandbox: Sandbox) -> None:
        with pytest.raises(InvalidRequestError, match="upload a file"):
            await sandbox.exec("#" * ((16 << 20) + 1))

    async def test_a_variable_which_cannot_be_passed_on_is_refused_by_name(self, sandbox: Sandbox) -> None:
        with pytest.raises(InvalidRequestError, match="TOO_BIG") as raised:
            await sandbox.exec("true", env={"TOO_BIG": "secret" * 100_000})

        assert "secret" not in str(raised.value)

    async def test_of_long_output_the_beginning_and_the_end_are_kept(self, sandbox: Sandbox) -> None:
        result = await sandbox.exec("echo first; seq 1000000; echo last", output_limit=10_000)

        assert result.truncated
        assert result.stdout.startswith(b"first\n1\n2\n")
        assert result.stdout.endswith(b"1000000\nlast\n")
        assert len(result.stdout) < 11_000
        assert b"left out" in result.stdout

    async def test_output_is_seen_while_the_command_runs(self, sandbox: Sandbox) -> None:
        first = asyncio.Event()
        pieces: list[str] = []

        def see(text: str) -> None:
            pieces.append(text)
            first.set()

        # The command goes on only once its first line was seen.
        run = asyncio.ensure_future(
            sandbox.exec("echo one; until [ -e go ]; do sleep 0.05; done; echo zwölf", on_output=see)
        )
        await asyncio.wait_for(first.wait(), 120)
        assert "".join(pieces) == "one\n"
        assert not run.done()
        await sandbox.put([("go", b"")])
        await run

        assert "".join(pieces) == "one\nzwölf\n"


class TestEnding:
    async def test_a_timeout_ends_the_whole_tree_and_keeps_what_was_printed(self, sandbox: Sandbox) -> None:
        marker = marked()
        result = await sandbox.exec(
            f"echo before; setsid nohup sleep {marker} & trap '' TERM; sleep {marker}",
            timeout=timedelta(seconds=5),
        )

        assert (result.code, result.timed_out) == (124, True)
        assert b"before" in result.stdout
        assert await until(lambda: not running(marker))

    async def test_cancelling_ends_the_whole_tree(self, sandbox: Sandbox) -> None:
        marker = marked()
        run = asyncio.ensure_future(sandbox.exec(f"sleep {marker} & sleep {marker}"))
        assert await until(lambda: running(marker))

        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run

        assert await until(lambda: not running(marker))
        assert (await sandbox.exec("echo still here")).stdout == b"still here\n"

    async def test_after_stop_nothing_runs_and_the_files_are_there(
        self, provider: SandboxProvider, sandbox: Sandbox, session_id: str
    ) -> None:
        marker = marked()
        await sandbox.exec(f"echo kept > kept; setsid nohup sleep {marker} >/dev/null 2>&1 &")

        await provider.stop(session_id)

        assert await until(lambda: not running(marker))
        again = await provider.ensure(SandboxSpec(session_id))
        assert (await again.exec("cat kept")).stdout == b"kept\n"

    async def test_after_delete_nothing_is_left(
        self, provider: SandboxProvider, sandbox: Sandbox, session_id: str
    ) -> None:
        await sandbox.exec("mkdir -p a/b; chmod 000 a/b; chmod 500 a; echo x > y")
        assert session_id in await provider.sessions()

        await provider.delete(session_id)

        assert session_id not in await provider.sessions()

    async def test_deleting_what_is_not_there_does_nothing(self, provider: SandboxProvider) -> None:
        await provider.delete("ses-never-was")


class TestSession:
    async def test_the_second_execution_sees_the_files_of_the_first_and_starts_no_new_sandbox(
        self, provider: SandboxProvider, session_id: str
    ) -> None:
        first = await provider.ensure(SandboxSpec(session_id))
        await first.exec("echo one > /workspace/a; echo two > /tmp/b")

        second = await provider.ensure(SandboxSpec(session_id, previous_id=first.id))

        assert (await second.exec("cat /workspace/a /tmp/b")).stdout == b"one\ntwo\n"
        assert second.id == first.id
        assert not any("lost" in warning for warning in second.warnings)
        assert list(await provider.sessions()).count(session_id) == 1

    async def test_ensuring_at_the_same_time_makes_one(
        self, provider: SandboxProvider, session_id: str
    ) -> None:
        found = await asyncio.gather(*(provider.ensure(SandboxSpec(session_id)) for _ in range(4)))

        assert len({sandbox.id for sandbox in found}) == 1

    async def test_a_lost_sandbox_is_replaced_with_a_warning(
        self, provider: SandboxProvider, session_id: str
    ) -> None:
        first = await provider.ensure(SandboxSpec(session_id))
        await provider.delete(session_id)

        second = await provider.ensure(SandboxSpec(session_id, previous_id=first.id))

        assert any("lost" in warning for warning in second.warnings)
        assert (await second.exec("echo works")).stdout == b"works\n"

    async def test_variables_may_change_from_one_execution_to_the_next(
        self, provider: SandboxProvider, session_id: str
    ) -> None:
        await provider.ensure(SandboxSpec(session_id, {"A": "1", "B": "2"}))
        second = await provider.ensure(SandboxSpec(session_id, {"A": "3"}))

        assert (await second.exec("echo $A-$B-")).stdout == b"3--\n"

    async def test_sessions_do_not_see_each_other(self, provider: SandboxProvider, session_id: str) -> None:
        first = await provider.ensure(SandboxSpec(session_id))
        await first.exec("echo hidden-treasure > secret; echo hidden-treasure > /tmp/secret")
        other = await provider.ensure(SandboxSpec(f"{session_id}-b"))
        try:
            found = await other.exec("grep -rsl hidden-treasure /workspace /tmp; ls")

            assert found.stdout == b""
        finally:
            await provider.delete(f"{session_id}-b")

    async def test_an_id_which_is_none_is_refused(self, provider: SandboxProvider) -> None:
        for bad in ("", "..", "a/b", "../x", "a\nb", "x" * 200):
            with pytest.raises(InvalidRequestError):
                await provider.ensure(SandboxSpec(bad))

    async def test_check_finds_nothing_wrong_here(self, provider: SandboxProvider) -> None:
        assert await provider.check() == ""


class TestSkills:
    async def test_a_skill_is_at_its_place_and_its_scripts_run(self, sandbox: Sandbox) -> None:
        result = await sandbox.exec(
            f"cat /bin/skills/{HASH}/SKILL.md; /bin/skills/{HASH}/scripts/greet.sh you"
        )

        assert result.stdout == b"# Greet\ngreetings, you\n"

    async def test_a_skill_cannot_be_altered_by_the_agent(
        self, provider: SandboxProvider, sandbox: Sandbox
    ) -> None:
        if provider.kind == "daytona":
            pytest.skip("noticed and put right at the next turn: tests/integration/test_sandbox_daytona.py")
        place = f"/bin/skills/{HASH}"
        for attempt in (
            f"echo x > {place}/SKILL.md",
            f"touch {place}/new",
            f"rm -rf {place}/scripts",
            f"chmod 777 {place}",
            f"mv {place} /tmp/x",
            f"ln -s x {place}/link",
        ):
            assert (await sandbox.exec(attempt)).code != 0, attempt
        assert await sandbox.put([(f"{place}/SKILL.md", b"x")]) == [FileProblem.DENIED]
        assert (await sandbox.exec(f"cat {place}/SKILL.md")).stdout == b"# Greet\n"

    async def test_a_skill_can_be_read_as_a_file(self, sandbox: Sandbox) -> None:
        assert await sandbox.get([f"/bin/skills/{HASH}/SKILL.md"]) == [(b"# Greet\n", None)]

    async def test_a_later_execution_may_bring_another_skill(
        self, provider: SandboxProvider, sandbox: Sandbox, session_id: str, skill: Path
    ) -> None:
        await sandbox.exec("echo kept > kept")
        again = await provider.ensure(SandboxSpec(session_id, skills={HASH: skill, "b" * 64: skill}))

        result = await again.exec(f"cat /bin/skills/{'b' * 64}/SKILL.md kept")

        assert result.stdout == b"# Greet\nkept\n"


class TestFiles:
    async def test_bytes_come_back_as_they_went_in(self, sandbox: Sandbox) -> None:
        data = bytes(range(256)) * 4096
        assert (
            await sandbox.put([("/workspace/new/dirs/x.bin", data), ("rel.bin", b""), ("/tmp/t", b"1")])
            == [None] * 3
        )

        found = await sandbox.get(["/workspace/new/dirs/x.bin", "/workspace/rel.bin", "/tmp/t"])

        assert list(found) == [(data, None), (b"", None), (b"1", None)]

    async def test_the_agent_owns_what_was_put(self, sandbox: Sandbox) -> None:
        await sandbox.put([("made/file", b"one\n")])

        result = await sandbox.exec(
            "echo two >> made/file && touch made/more && rm made/more && cat made/file"
        )

        assert result.stdout == b"one\ntwo\n"

    async def test_a_script_replaced_stays_executable(self, sandbox: Sandbox) -> None:
        await sandbox.exec("echo 'echo one' > run; chmod 755 run")
        await sandbox.put([("run", b"#!/bin/sh\necho two\n")])

        assert (await sandbox.exec("./run")).stdout == b"two\n"

    async def test_each_file_has_its_own_problem(self, sandbox: Sandbox) -> None:
        await sandbox.exec("mkdir dir; echo 12345 > file; mkfifo pipe")

        assert await sandbox.get(["missing", "dir", "file", "pipe"]) == [
            (None, FileProblem.NOT_FOUND),
            (None, FileProblem.IS_DIRECTORY),
            (b"12345\n", None),
            (None, FileProblem.INVALID_PATH),
        ]
        assert await sandbox.get(["file", "file"], limit=5) == [(None, FileProblem.TOO_LARGE)] * 2
        assert await sandbox.put([("dir", b""), ("ok", b"")]) == [FileProblem.IS_DIRECTORY, None]

    async def test_paths_outside_cannot_be_written(self, sandbox: Sandbox) -> None:
        paths = [
            "/etc/x",
            "/workspace/../etc/x",
            "../x",
            "/usr/bin/ls",
            "/bin/skills/x",
            "/",
            "/workspacex/y",
        ]

        assert await sandbox.put([(path, b"") for path in paths]) == [FileProblem.DENIED] * len(paths)
        assert await sandbox.put([("a\0b", b""), ("", b"")]) == [FileProblem.INVALID_PATH] * 2

    async def test_names_with_newlines_quotes_and_dashes_work(self, sandbox: Sandbox) -> None:
        names = ["two\nlines", "it's", '"quoted" $(x) `y`', "-rf", "ünï.txt", " spaced "]

        assert await sandbox.put([(f"/workspace/odd/{name}", name.encode()) for name in names]) == [None] * 6

        found = await sandbox.get([f"odd/{name}" for name in names])
        assert [content for content, _ in found] == [name.encode() for name in names]
        counted = await sandbox.exec("cd odd; set -- *; echo $#")
        assert counted.stdout == b"6\n"

    async def test_a_sparse_file_of_a_gigabyte_is_too_large(self, sandbox: Sandbox) -> None:
        await sandbox.exec("truncate -s 1000M big")

        assert await sandbox.get(["big"]) == [(None, FileProblem.TOO_LARGE)]


class TestDeepAgentsTools:
    async def test_execute_joins_both_streams_and_is_seen_live(self, sandbox: Sandbox) -> None:
        seen: list[str] = []
        backend = SandboxBackend(sandbox, on_output=seen.append)

        response = await backend.aexecute("echo out; echo err >&2; exit 2")

        assert response.exit_code == 2
        assert {"out", "err"} <= set(response.output.split())
        assert {"out", "err"} <= set("".join(seen).split())

    async def test_file_tools_are_not_shown_live(self, sandbox: Sandbox) -> None:
        seen: list[str] = []
        backend = SandboxBackend(sandbox, on_output=seen.append)
        await backend.awrite("/workspace/a.txt", "alpha")
        await backend.aread("/workspace/a.txt")
        await backend.als("/workspace")
        await backend.agrep("alpha", "/workspace")
        await backend.aglob("*.txt", "/workspace")
        await backend.adelete("/workspace/a.txt")

        assert seen == []

    async def test_write_read_and_overwrite(self, backend: SandboxBackend) -> None:
        assert (await backend.awrite("/workspace/d/a.txt", "one\ntwo\n")).error is None
        assert (await backend.awrite("/workspace/d/a.txt", "three\nfour\n")).error is None

        read = await backend.aread("/workspace/d/a.txt")

        assert read.file_data is not None
        assert read.file_data["content"] == "three\nfour"

    async def test_read_by_pages(self, backend: SandboxBackend) -> None:
        await backend.awrite("/workspace/long", "\n".join(f"line {n}" for n in range(1, 101)))

        page = await backend.aread("/workspace/long", offset=10, limit=5)

        assert page.file_data is not None
        assert page.file_data["content"].split("\n") == [f"line {n}" for n in range(11, 16)]
        assert (page.start_line, page.end_line, page.total_lines, page.next_offset) == (11, 15, 100, 15)

    async def test_reading_a_missing_file_says_so(self, backend: SandboxBackend) -> None:
        assert "file_not_found" in ((await backend.aread("/workspace/none")).error or "")

    async def test_a_file_larger_than_is_fetched_is_read_by_pages_inside(
        self, backend: SandboxBackend
    ) -> None:
        await backend.aexecute("seq 1000000 > big")

        page = await backend.aread("/workspace/big", offset=999_990, limit=3)

        assert page.file_data is not None
        assert page.file_data["content"].split() == ["999991", "999992", "999993"]

    async def test_edit_replaces_once_or_everywhere(self, backend: SandboxBackend) -> None:
        await backend.awrite("/workspace/e", "a b a")

        twice = await backend.aedit("/workspace/e", "a", "c")
        everywhere = await backend.aedit("/workspace/e", "a", "c", replace_all=True)
        missing = await backend.aedit("/workspace/e", "zzz", "c")

        assert "multiple times" in (twice.error or "")
        assert everywhere.occurrences == 2
        assert "not found" in (missing.error or "")
        read = await backend.aread("/workspace/e")
        assert read.file_data is not None
        assert read.file_data["content"] == "c b c"

    async def test_an_edit_keeps_the_ends_of_lines(self, sandbox: Sandbox, backend: SandboxBackend) -> None:
        await sandbox.put([("crlf", b"one\r\ntwo\r\nthree\r\n")])

        assert (await backend.aedit("/workspace/crlf", "one\ntwo", "1\n2")).error is None

        assert await sandbox.get(["crlf"]) == [(b"1\r\n2\r\nthree\r\n", None)]

    async def test_an_edit_of_200_kilobytes(self, backend: SandboxBackend) -> None:
        old, new = "x" * 200_000, "y" * 200_000
        await backend.awrite("/workspace/large", f"<{old}>")

        assert (await backend.aedit("/workspace/large", old, new)).error is None

        assert (await backend.aexecute("tr -d y < large")).output == "<>"

    async def test_list_search_and_glob(self, backend: SandboxBackend) -> None:
        await backend.awrite("/workspace/s/one.py", "needle = 1\n")
        await backend.awrite("/workspace/s/two.txt", "nothing\n")

        listed = await backend.als("/workspace/s")
        found = await backend.agrep("needle", "/workspace")
        globbed = await backend.aglob("**/*.py", "/workspace")

        assert {entry["path"] for entry in listed.entries or []} == {
            "/workspace/s/one.py",
            "/workspace/s/two.txt",
        }
        assert [(match["path"], match["line"]) for match in found.matches or []] == [
            ("/workspace/s/one.py", 1)
        ]
        assert [entry["path"] for entry in globbed.matches or []] == ["/workspace/s/one.py"]

    async def test_upload_and_download(self, backend: SandboxBackend) -> None:
        data = bytes(range(256))
        up = await backend.aupload_files([("/workspace/b.bin", data)])
        down = await backend.adownload_files(["/workspace/b.bin", "/workspace/none"])

        assert [response.error for response in up] == [None]
        assert down[0].content == data
        assert (down[1].content, down[1].error) == (None, "file_not_found")

    async def test_delete(self, backend: SandboxBackend) -> None:
        await backend.awrite("/workspace/gone/a", "x")

        assert (await backend.adelete("/workspace/gone")).error is None
        assert (await backend.adelete("/workspace/gone")).error is not None
        assert (await backend.aexecute("ls")).output.strip() == ""

    async def test_the_sync_twins_work_from_other_threads(self, backend: SandboxBackend) -> None:
        def use() -> str:
            backend.write("/workspace/t", "from a thread")
            return backend.execute("cat t").output

        assert await asyncio.to_thread(use) == "from a thread"
        with pytest.raises(RuntimeError, match="begins with `a`"):
            backend.execute("true")

    async def test_a_command_over_time_says_so(self, backend: SandboxBackend) -> None:
        response = await backend.aexecute("echo x; sleep 100", timeout=1)

        assert response.exit_code == 124
        assert "ended after 1 seconds" in response.output


class TestWorkspace:
    async def test_files_are_listed_read_and_written_while_nothing_runs(
        self, provider: SandboxProvider, sandbox: Sandbox, session_id: str
    ) -> None:
        await sandbox.exec("mkdir d; echo hello > d/f; ln -s f d/link")
        await provider.stop(session_id)
        workspace = provider.workspace(session_id)

        top = await workspace.list()
        listed = await workspace.list("/workspace/d")
        content = b"".join([chunk async for chunk in workspace.read("d/f", chunk_size=2)])
        size = await workspace.write("/workspace/up/loaded", pieces([b"a" * 70_000, b"b" * 70_000]))

        assert [(entry.path, entry.is_dir) for entry in top] == [("/workspace/d", True)]
        assert [(entry.path, entry.is_dir) for entry in listed] == [
            ("/workspace/d/f", False),
            ("/workspace/d/link", False),
        ]
        assert listed[0].size == 6
        assert abs(listed[0].modified - time.time()) < 300
        assert content == b"hello\n"
        assert size == 140_000
        again = await provider.ensure(SandboxSpec(session_id))
        result = await again.exec("wc -c < up/loaded && echo more >> up/loaded")
        assert (result.code, result.stdout) == (0, b"140000\n")

    async def test_an_upload_cut_off_leaves_the_old_file(
        self, provider: SandboxProvider, sandbox: Sandbox, session_id: str
    ) -> None:
        await sandbox.put([("f", b"old")])
        workspace = provider.workspace(session_id)

        async def broken() -> AsyncIterator[bytes]:
            yield b"new"
            raise ConnectionError

        with pytest.raises(ConnectionError):
            await workspace.write("f", broken())

        assert await sandbox.get(["f"]) == [(b"old", None)]
        assert [entry.path for entry in await workspace.list()] == ["/workspace/f"]

    async def test_what_is_not_there_or_outside_is_told_apart(
        self, provider: SandboxProvider, sandbox: Sandbox, session_id: str
    ) -> None:
        await sandbox.exec("mkdir d; echo x > f; mkfifo p")
        workspace = provider.workspace(session_id)

        for path in ("none", "/workspace/none/x"):
            with pytest.raises(NotFoundError):
                await anext(aiter(workspace.read(path)))
            with pytest.raises(NotFoundError):
                await workspace.list(path)
        for path in ("/etc/passwd", "../../etc/passwd", "d", "p", "a\0b"):
            with pytest.raises(InvalidRequestError):
                await anext(aiter(workspace.read(path)))
        for path in ("/etc", "f", "/"):
            with pytest.raises(InvalidRequestError):
                await workspace.list(path)
        for path in ("/etc/passwd", "/workspace/../x", "d"):
            with pytest.raises(InvalidRequestError):
                await workspace.write(path, pieces([b"x"]))


async def pieces(chunks: Iterable[bytes]) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk
