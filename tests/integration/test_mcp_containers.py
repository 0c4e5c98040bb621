"""MCP servers in the session's container, and in containers of their own, on a real engine."""

from __future__ import annotations

import asyncio
import io
import re
import subprocess
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from contract.container_engine import IMAGE, _request, engine_url
from contract.sandbox_kinds import KnownEngineProvider
from integration.test_mcp import LIAR, call, opened, raw, text

from agent_runner.domain.mcp_servers import Container, McpServerPlan, Program
from agent_runner.ports.sandboxes import Sandbox, SandboxSpec

TOOLS = '[{"name": "hi", "inputSchema": {"type": "object"}}]'
SERVER = LIAR.replace("TOOLS", TOOLS).replace('"hi"}], "structuredContent": {"n": "no number"}', "ENV}]")
SERVER = SERVER.replace("import json, sys", "import json, os, sys\nENV = ' '.join(sorted(os.environ))")


@pytest.fixture
async def sandbox(tmp_path: Path) -> AsyncIterator[Sandbox]:
    provider = KnownEngineProvider(image=IMAGE, url=engine_url(), auto_pull=False, extra_ro_paths=["/usr"])
    yield await provider.ensure(SandboxSpec("ses-mcp", env={"SESSION_SECRET": "not for servers"}))
    await provider.delete("ses-mcp")
    await provider.aclose()


async def test_a_server_runs_in_the_sessions_container_and_ends_with_the_run(sandbox: Sandbox) -> None:
    async with opened([raw("inside", SERVER), raw("broken", "exit('no')")], sandbox) as tools:
        answer = text(await call(tools, "hi"))

    assert "HOME" in answer and "SESSION_SECRET" not in answer
    assert list(tools.warnings) == ["MCP server 'broken' cannot be used: it has ended: no."]
    search = "cat /proc/[0-9]*/cmdline | tr '\\0' ' ' | grep -c tools/list; true"
    async with asyncio.timeout(300):  # nobody waits for an engine that takes its time
        while (await sandbox.exec(search)).stdout.strip() != b"1":  # noqa: ASYNC110 - the search itself
            await asyncio.sleep(0.1)


async def test_a_directory_that_is_not_there_is_a_warning(sandbox: Sandbox) -> None:
    lost = McpServerPlan("lost", Program(("python3", "-c", SERVER), {}, "/workspace/nowhere"))
    async with opened([lost], sandbox) as tools:
        # Not the reason: engines may drop what a program says that ends as soon as it has begun.
        assert tools.warnings[0].startswith("MCP server 'lost' cannot be used: it has ended: ")


IN_BASH = r"""
while IFS= read -r line; do
  [[ $line =~ \"id\":([0-9]+) ]] && id=${BASH_REMATCH[1]} || continue
  case $line in
    *initialize*) info='{"name":"b","version":"1"}'
      result="{\"protocolVersion\":\"2025-06-18\",\"capabilities\":{},\"serverInfo\":$info}";;
    *tools/list*) result='{"tools":[{"name":"hi","inputSchema":{"type":"object"}}]}';;
    *tools/call*) result="{\"content\":[{\"type\":\"text\",\"text\":\"$KEY in $PWD\"}]}";;
  esac
  printf '{"jsonrpc":"2.0","id":%s,"result":%s}\n' "$id" "$result"
done
"""


def bash_image(url: str) -> str:
    """An image of bash alone, made of the host's."""
    needed = re.findall(
        r"(/\S+)", subprocess.run(["ldd", "/bin/bash"], capture_output=True, text=True).stdout
    )
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", dereference=True) as archive:
        for path in ("/bin/bash", *needed):
            archive.add(path, arcname=path.lstrip("/"))
    name = "agent-runner-bash:latest"
    place = "/v1.40/images/create?fromSrc=-&repo=agent-runner-bash&tag=latest"
    status, answer = _request(Path(url.removeprefix("unix://")), "POST", place, buffer.getvalue())
    assert status == 200, answer
    return name


async def test_a_docker_server_has_a_container_of_its_own_that_goes_with_the_run(sandbox: Sandbox) -> None:
    image = bash_image(engine_url())
    box = Container(image, ("/bin/bash", "-c", IN_BASH), {"KEY": "given"}, network="none")
    greedy = Container(image, (), {}, (("/etc", "/e", False),))
    plans = [McpServerPlan("box", box), McpServerPlan("greedy", greedy)]
    async with opened(plans, sandbox) as tools:
        assert text(await call(tools, "hi")) == "given in /"
        (said,) = tools.warnings
        assert said.startswith("MCP server 'greedy' cannot be used: volumes are refused")
        assert len(await containers_of(sandbox, image)) == 1

    assert not await containers_of(sandbox, image)


async def containers_of(sandbox: Sandbox, image: str) -> list[str]:
    engine = sandbox._engine  # type: ignore[attr-defined]
    found = await engine.request("GET", "containers/json", params={"all": "true"})
    return [container["Id"] for container in found if image.partition(":")[0] in container["Image"]]
