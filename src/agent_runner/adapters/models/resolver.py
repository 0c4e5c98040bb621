"""Which model is asked: from a name, the settings and the keys that are there to a client."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from pydantic import SecretStr, ValidationError

from agent_runner.adapters.models.embedded_facts import WEIGHTS
from agent_runner.adapters.models.embedded_pull import WeightsStore
from agent_runner.adapters.models.local_server import LocalServer
from agent_runner.adapters.models.names import (
    DEFAULT_MODELS,
    LOCAL,
    LOCAL_MODEL,
    PROVIDERS,
    ModelName,
    parse_model_name,
)
from agent_runner.adapters.models.script import ScriptLibrary
from agent_runner.errors import ModelError
from agent_runner.ports.models import Model
from agent_runner.v1.options_pb2 import ModelOptions

OLLAMA_ADDRESS = "http://127.0.0.1:11434"
# Ollama cuts a prompt to 4,096 tokens unless told; tools and instructions alone take more.
OLLAMA_CONTEXT_TOKENS = 16384
# The longest a provider may be silent; an answer that streams may take longer.
REQUEST_TIMEOUT_SECONDS = 600.0

OllamaModels = Callable[[str], Sequence[str]]
"""From Ollama's address to its models that can call tools; empty when it does not answer."""


@dataclass(frozen=True, slots=True)
class _Choice:
    name: ModelName
    reason: str


class DefaultModelResolver:
    """The `ModelResolver` of the product.

    `resolve` may ask Ollama what it has, for a second at most, and imports client libraries on their
    first use: call it off the event loop.

    Args:
        environ: where keys and addresses are looked up, and nowhere else.
        default_model: the model of the settings; None or empty: by the keys that are there.
        ollama_models: how Ollama is asked.
        local_folder: where the model that runs here is kept, if it was pulled; None: there is none.
    """

    def __init__(
        self,
        environ: Mapping[str, str],
        default_model: str | None = None,
        *,
        ollama_models: OllamaModels | None = None,
        local_folder: Path | None = None,
    ) -> None:
        self._environ = environ
        self._default_model = default_model or ""
        self._ollama_models = ollama_models or ask_ollama
        self._scripts = ScriptLibrary()
        self._weights = WeightsStore(local_folder, WEIGHTS) if local_folder else None
        self._server = (
            LocalServer(self._weights.path, local_folder / "server.log")
            if local_folder and self._weights
            else None
        )

    def resolve(self, *wishes: ModelOptions) -> Model:
        """See `ModelResolver.resolve`."""
        wish = next((wish.model_name for wish in wishes if wish.model_name), "")
        choice = self._choose(wish)
        if choice.name.provider == "script":
            chat: Any = self._scripts.open(choice.name.model)
            notice = "Answers come from a script; no model is asked."
            return Model(str(choice.name), chat, notice)
        if choice.name.provider == LOCAL:
            return self._local(choice, _merged(wishes))
        return Model(str(choice.name), self._open(choice.name, _merged(wishes)), choice.reason)

    def aclose(self) -> None:
        """Let go of the memory of the model that runs here."""
        if self._server is not None:
            self._server.stop()

    def describe_default(self) -> str:
        """See `ModelResolver.describe_default`."""
        try:
            choice = self._choose("")
        except ModelError as error:
            return str(error)
        return f"{choice.name}" + (f" ({choice.reason})" if choice.reason else "")

    def check_default(self) -> None:
        """Raise what `resolve` would without a wish; a model that runs here is looked for, and not loaded.

        Raises:
            ModelError: as `resolve`.
        """
        choice = self._choose("")
        if choice.name.provider == LOCAL:
            self._local_parts(choice)[1].check()
        else:
            self.resolve()

    def _choose(self, wish: str) -> _Choice:
        if wish:
            return _Choice(self._parsed(wish), "")
        if self._default_model:
            return _Choice(self._parsed(self._default_model), "")
        for provider in ("anthropic", "openai", "google_genai"):
            found = self._key(provider)
            if found:
                variable, _ = found
                name = ModelName(provider, self._default_of(provider))
                return _Choice(name, f"Model {name}, because {variable} is set.")
        address = self._ollama_address()
        for model in self._ollama_models(address)[:1]:
            name = ModelName("ollama", model)
            return _Choice(name, f"Model {name}, because Ollama answers at {address}.")
        if self._weights is not None and self._weights.pulled():
            name = ModelName(LOCAL, LOCAL_MODEL)
            return _Choice(name, f"Model {name}, because nothing else is there and it was pulled.")
        raise ModelError(_WAYS_TO_A_MODEL)

    def _parsed(self, name: str) -> ModelName:
        otherwise = ""
        if self._environ.get("OPENAI_BASE_URL"):
            otherwise = "openai"
        elif self._environ.get("OLLAMA_BASE_URL"):
            otherwise = "ollama"
        return parse_model_name(name, otherwise=otherwise)

    def _default_of(self, provider: str) -> str:
        if provider == "openai" and (address := self._environ.get("OPENAI_BASE_URL")):
            raise ModelError(
                f"OPENAI_BASE_URL is {address}, and only its owner knows the models it has. "
                "Name one: --model openai:NAME or AGENT_RUNNER_MODEL=openai:NAME."
            )
        return DEFAULT_MODELS[provider]

    def _key(self, provider: str) -> tuple[str, str] | None:
        """(variable, key) of a provider; a compatible server may want no key."""
        for variable in PROVIDERS[provider].keys:
            if value := self._environ.get(variable, "").strip():
                return variable, value
        if provider == "openai" and self._environ.get("OPENAI_BASE_URL"):
            return "OPENAI_BASE_URL", "none"
        return None

    def _ollama_address(self) -> str:
        address = self._environ.get("OLLAMA_BASE_URL") or self._environ.get("OLLAMA_HOST") or OLLAMA_ADDRESS
        return (address if "://" in address else f"http://{address}").rstrip("/")

    def _open(self, name: ModelName, options: ModelOptions) -> Any:
        wanted: dict[str, Any] = {}
        if options.HasField("temperature"):
            wanted["temperature"] = options.temperature
        makers = {"anthropic": self._anthropic, "openai": self._openai, "ollama": self._ollama}
        make = makers.get(name.provider, self._any_provider)
        try:
            return make(name, options.max_output_tokens, wanted)
        except ImportError as error:
            package = PROVIDERS[name.provider].package
            raise ModelError(
                f"Model {name} needs a library that is not installed: pip install {package}"
            ) from error
        except ValidationError as error:
            # Never the whole error: it quotes the values, and a key may be among them.
            raise ModelError(f"Model {name}: {error.errors(include_input=False)[0]['msg']}") from None

    def _needed_key(self, name: ModelName) -> str:
        found = self._key(name.provider)
        if found is None:
            variables = " or ".join(PROVIDERS[name.provider].keys)
            raise ModelError(f"Model {name} needs a key: set {variables} for the worker.")
        return found[1]

    def _anthropic(self, name: ModelName, max_tokens: int, wanted: dict[str, Any]) -> Any:
        from langchain_anthropic import ChatAnthropic

        if max_tokens:
            wanted["max_tokens"] = max_tokens
        return ChatAnthropic(
            model_name=name.model,
            api_key=SecretStr(self._needed_key(name)),
            base_url=self._environ.get("ANTHROPIC_BASE_URL") or "https://api.anthropic.com",
            anthropic_proxy=self._environ.get("ANTHROPIC_PROXY"),
            timeout=REQUEST_TIMEOUT_SECONDS,
            max_retries=0,
            **wanted,
        )

    def _openai(self, name: ModelName, max_tokens: int, wanted: dict[str, Any]) -> Any:
        from langchain_openai import ChatOpenAI

        if max_tokens:
            wanted["max_tokens"] = max_tokens
        address = self._environ.get("OPENAI_BASE_URL")
        if not address:
            # The newest models take tools by this protocol alone; compatible servers rarely have it.
            wanted["use_responses_api"] = True
        return ChatOpenAI(
            model=name.model,
            api_key=SecretStr(self._needed_key(name)),
            base_url=address or "https://api.openai.com/v1",
            organization=self._environ.get("OPENAI_ORG_ID"),
            openai_proxy=self._environ.get("OPENAI_PROXY"),
            timeout=REQUEST_TIMEOUT_SECONDS,
            # Two minutes by itself, which a large prompt on a small machine takes to its first token.
            stream_chunk_timeout=REQUEST_TIMEOUT_SECONDS,
            max_retries=0,
            # Off by itself where a base URL is given, and tokens would go uncounted.
            stream_usage=True,
            **wanted,
        )

    def _ollama(self, name: ModelName, max_tokens: int, wanted: dict[str, Any]) -> Any:
        from langchain_ollama import ChatOllama

        if max_tokens:
            wanted["num_predict"] = max_tokens
        return ChatOllama(
            model=name.model, base_url=self._ollama_address(), num_ctx=OLLAMA_CONTEXT_TOKENS, **wanted
        )

    def _local_parts(self, choice: _Choice) -> tuple[WeightsStore, LocalServer]:
        if choice.name.model != LOCAL_MODEL:
            raise ModelError(
                f"Model {choice.name} is not known: the one that runs here is local:{LOCAL_MODEL}."
            )
        if self._weights is None or self._server is None or not self._weights.pulled():
            raise ModelError(
                f"Model {choice.name} is not here yet: agent-runner model pull fetches its 1.1 GB."
            )
        return self._weights, self._server

    def _local(self, choice: _Choice, options: ModelOptions) -> Model:
        weights, server = self._local_parts(choice)
        from agent_runner.adapters.models.local import NOTICE, LocalChat

        wanted: dict[str, Any] = {}
        if options.HasField("temperature"):
            wanted["temperature"] = options.temperature
        if options.max_output_tokens:
            wanted["max_tokens"] = options.max_output_tokens
        chat = LocalChat.at(server, choice.name.model, wanted, REQUEST_TIMEOUT_SECONDS)
        return Model(str(choice.name), chat, NOTICE.format(title=weights.weights.title))

    def _any_provider(self, name: ModelName, max_tokens: int, wanted: dict[str, Any]) -> Any:
        from langchain.chat_models import init_chat_model

        if PROVIDERS[name.provider].keys:
            wanted["api_key"] = self._needed_key(name)
        if max_tokens:
            wanted["max_tokens"] = max_tokens
        return init_chat_model(name.model, model_provider=name.provider, **wanted)


def _merged(wishes: Sequence[ModelOptions]) -> ModelOptions:
    """Options from the first wish that sets them."""
    merged = ModelOptions()
    for wish in wishes:
        if wish.HasField("temperature") and not merged.HasField("temperature"):
            merged.temperature = wish.temperature
        merged.max_output_tokens = merged.max_output_tokens or wish.max_output_tokens
    return merged


def ask_ollama(address: str) -> Sequence[str]:
    """Names of Ollama's models that can call tools, newest first; empty when it does not answer."""
    try:
        with httpx.Client(base_url=address, timeout=1.0) as client:
            listed = client.get("/api/tags").raise_for_status().json()["models"]
            names = [str(model["name"]) for model in listed][:8]
            return [name for name in names if _can_call_tools(client, name)]
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, TypeError):
        return []


def _can_call_tools(client: httpx.Client, name: str) -> bool:
    shown = client.post("/api/show", json={"model": name}).raise_for_status().json()
    return "tools" in shown.get("capabilities", ())


_WAYS_TO_A_MODEL = (
    "No model is configured. One of these is enough: set ANTHROPIC_API_KEY; set OPENAI_API_KEY (and "
    "OPENAI_BASE_URL for any compatible server); set GOOGLE_API_KEY; run Ollama with a model that can call "
    "tools (OLLAMA_BASE_URL when it is not on this machine); agent-runner model pull, for a small model that "
    "runs here; name a model by --model or "
    "AGENT_RUNNER_MODEL, where script:demo needs no key at all."
)
