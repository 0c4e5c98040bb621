from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping

import pytest

from agent_runner.adapters.models.names import parse_model_name
from agent_runner.adapters.models.resolver import DefaultModelResolver
from agent_runner.errors import ModelError
from agent_runner.ports.models import Model, ModelResolver
from agent_runner.v1.options_pb2 import ModelOptions

KEYS = {"ANTHROPIC_API_KEY": "key-a", "OPENAI_API_KEY": "key-o", "GOOGLE_API_KEY": "key-g"}


def resolver(
    environ: Mapping[str, str] = KEYS, default: str | None = None, ollama: tuple[str, ...] = ()
) -> ModelResolver:
    return DefaultModelResolver(environ, default, ollama_models=lambda _: ollama)


def resolved(name: str, environ: Mapping[str, str] = KEYS) -> Model:
    return resolver(environ).resolve(ModelOptions(model_name=name))


@pytest.fixture(autouse=True)
def no_keys_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*KEYS, "OPENAI_BASE_URL", "ANTHROPIC_BASE_URL"):
        monkeypatch.setenv(name, "http://from-the-process.invalid")


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("anthropic:claude-sonnet-4-5", "anthropic:claude-sonnet-4-5"),
        ("anthropic/claude-sonnet-4.5", "anthropic:claude-sonnet-4-5"),
        ("claude-sonnet-4.5", "anthropic:claude-sonnet-4-5"),
        ("claude-3.5-haiku", "anthropic:claude-3-5-haiku-latest"),
        ("claude-3-opus-20240229", "anthropic:claude-3-opus-20240229"),
        ("sonnet", "anthropic:claude-sonnet-5-5"),
        ("gpt-4o-mini", "openai:gpt-4o-mini"),
        ("o3", "openai:o3"),
        ("OpenAI:gpt-5.1", "openai:gpt-5.1"),
        ("gemini-2.5-pro", "google_genai:gemini-2.5-pro"),
        ("google:gemini-2.5-pro", "google_genai:gemini-2.5-pro"),
        ("qwen2.5-coder:7b", "ollama:qwen2.5-coder:7b"),
        ("ollama:llama3.2:latest", "ollama:llama3.2:latest"),
        ("mistral-large-latest", "mistralai:mistral-large-latest"),
        ("script:a/b:c.yaml", "script:a/b:c.yaml"),
    ],
)
def test_names_are_read_as_people_write_them(written: str, meant: str) -> None:
    assert str(parse_model_name(written)) == meant


def test_a_name_without_a_provider_belongs_to_the_server_that_is_set() -> None:
    model = resolved("my-finetune", {"OPENAI_BASE_URL": "http://127.0.0.1:9/v1"})
    assert model.name == "openai:my-finetune"
    assert model.chat.openai_api_base == "http://127.0.0.1:9/v1"


@pytest.mark.parametrize("name", ["claude-sonnet-4.5", "gpt-4o", "gemini-2.5-flash", "ollama:qwen3"])
def test_temperature_and_token_limit_reach_the_client(name: str) -> None:
    first = ModelOptions(model_name=name, max_output_tokens=77)
    second = ModelOptions(model_name="script:demo", temperature=0.25, max_output_tokens=5)
    chat = resolver().resolve(first, second).chat
    assert chat.temperature == 0.25
    limits = [getattr(chat, field, None) for field in ("max_tokens", "max_output_tokens", "num_predict")]
    assert 77 in limits


@pytest.mark.parametrize(
    ("name", "field"), [("claude-sonnet-4.5", "anthropic_api_key"), ("gpt-4o", "openai_api_key")]
)
def test_keys_and_addresses_come_from_the_mapping_alone(name: str, field: str) -> None:
    chat = resolved(name).chat
    assert getattr(chat, field).get_secret_value().startswith("key-")
    assert "from-the-process" not in str(
        chat._async_client.base_url if "claude" in name else chat.openai_api_base
    )


def test_every_execution_gets_a_fresh_client() -> None:
    one = resolver()
    wish = ModelOptions(model_name="gpt-4o")
    assert one.resolve(wish).chat is not one.resolve(wish).chat


@pytest.mark.parametrize(
    ("environ", "ollama", "name", "why"),
    [
        (KEYS, (), "anthropic:claude-sonnet-5-5", "ANTHROPIC_API_KEY"),
        ({"OPENAI_API_KEY": "k"}, ("qwen3",), "openai:gpt-6.1-sol", "OPENAI_API_KEY"),
        ({"GEMINI_API_KEY": "k"}, (), "google_genai:gemini-3.8-flash", "GEMINI_API_KEY"),
        ({"OLLAMA_BASE_URL": "http://there"}, ("qwen3", "x"), "ollama:qwen3", "http://there"),
    ],
)
def test_without_a_wish_the_keys_choose(
    environ: Mapping[str, str], ollama: tuple[str, ...], name: str, why: str
) -> None:
    one = resolver(environ, None, ollama)
    model = one.resolve(ModelOptions())
    assert (model.name, why in model.notice) == (name, True)
    assert name in one.describe_default() and why in one.describe_default()


def test_the_setting_comes_before_the_keys() -> None:
    one = resolver(KEYS, "script:echo")
    assert one.resolve().name == "script:echo"
    assert one.describe_default() == "script:echo"


def test_without_anything_the_ways_are_listed() -> None:
    one = resolver({})
    with pytest.raises(ModelError, match=r"ANTHROPIC_API_KEY.*OPENAI_BASE_URL.*Ollama.*script:demo"):
        one.resolve()
    assert "No model is configured" in one.describe_default()


@pytest.mark.parametrize(
    ("name", "environ", "told"),
    [
        ("claude-sonnet-4.5", {}, "set ANTHROPIC_API_KEY"),
        ("gpt-4o", {"ANTHROPIC_API_KEY": "k"}, "set OPENAI_API_KEY"),
        ("nonsense", KEYS, "Write provider:model"),
        ("groq:llama", {"GROQ_API_KEY": "k"}, "pip install langchain-groq"),
        ("script:missing", KEYS, "packaged|demo"),
    ],
)
def test_what_is_missing_is_told(name: str, environ: Mapping[str, str], told: str) -> None:
    with pytest.raises(ModelError, match=told):
        resolved(name, environ)


def test_keys_stay_out_of_errors_and_repr() -> None:
    assert "key-a" not in repr(resolved("claude-sonnet-4.5"))
    assert "key-o" not in repr(resolved("gpt-4o").chat)


async def _serve_ollama(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    if head.startswith("GET /api/tags"):
        answer: object = {"models": [{"name": "tiny"}, {"name": "able:7b"}]}
    else:
        size = int(head.lower().split("content-length: ")[1].split("\r\n")[0])
        asked = json.loads(await reader.readexactly(size))["model"]
        answer = {"capabilities": ["completion", "tools"] if asked == "able:7b" else ["completion"]}
    body = json.dumps(answer).encode()
    writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
    await writer.drain()
    writer.close()


async def test_an_ollama_that_answers_is_used_with_a_model_that_can_call_tools() -> None:
    server = await asyncio.start_server(_serve_ollama, "127.0.0.1", 0)
    address = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    one = DefaultModelResolver({"OLLAMA_BASE_URL": address})
    model = await asyncio.to_thread(one.resolve)
    assert model.name == "ollama:able:7b"
    assert address in model.notice
    assert model.chat.base_url == address
    server.close()
    await server.wait_closed()
    with pytest.raises(ModelError, match="No model is configured"):
        await asyncio.to_thread(one.resolve)
