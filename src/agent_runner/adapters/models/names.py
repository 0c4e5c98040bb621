"""Names of models: from what people write to provider and model, as a pure rule."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from agent_runner.adapters.models.embedded_facts import WEIGHTS
from agent_runner.errors import ModelError


@dataclass(frozen=True, slots=True)
class ProviderFacts:
    """What is known of a provider.

    Attributes:
        keys: variables its key may stand in, the usual one first; none for providers without.
        package: what to install for it.
    """

    keys: tuple[str, ...]
    package: str


PROVIDERS: Mapping[str, ProviderFacts] = {
    "anthropic": ProviderFacts(("ANTHROPIC_API_KEY",), "langchain-anthropic"),
    "openai": ProviderFacts(("OPENAI_API_KEY",), "langchain-openai"),
    "ollama": ProviderFacts((), "langchain-ollama"),
    "google_genai": ProviderFacts(("GOOGLE_API_KEY", "GEMINI_API_KEY"), "langchain-google-genai"),
    "mistralai": ProviderFacts(("MISTRAL_API_KEY",), "langchain-mistralai"),
    "groq": ProviderFacts(("GROQ_API_KEY",), "langchain-groq"),
    "deepseek": ProviderFacts(("DEEPSEEK_API_KEY",), "langchain-deepseek"),
    "xai": ProviderFacts(("XAI_API_KEY",), "langchain-xai"),
    "openrouter": ProviderFacts(("OPENROUTER_API_KEY",), "langchain-openrouter"),
    "together": ProviderFacts(("TOGETHER_API_KEY",), "langchain-together"),
    "fireworks": ProviderFacts(("FIREWORKS_API_KEY",), "langchain-fireworks"),
    "cohere": ProviderFacts(("COHERE_API_KEY",), "langchain-cohere"),
    "perplexity": ProviderFacts(("PPLX_API_KEY",), "langchain-perplexity"),
    "nvidia": ProviderFacts(("NVIDIA_API_KEY",), "langchain-nvidia-ai-endpoints"),
    # These find their credentials in ways of their own.
    "bedrock": ProviderFacts((), "langchain-aws"),
    "bedrock_converse": ProviderFacts((), "langchain-aws"),
    "azure_openai": ProviderFacts(("AZURE_OPENAI_API_KEY",), "langchain-openai"),
    "azure_ai": ProviderFacts((), "langchain-azure-ai"),
    "google_vertexai": ProviderFacts((), "langchain-google-vertexai"),
    "huggingface": ProviderFacts((), "langchain-huggingface"),
    "ibm": ProviderFacts((), "langchain-ibm"),
    "litellm": ProviderFacts((), "langchain-litellm"),
    "upstage": ProviderFacts(("UPSTAGE_API_KEY",), "langchain-upstage"),
    "baseten": ProviderFacts(("BASETEN_API_KEY",), "langchain-baseten"),
}

LOCAL = "local"
LOCAL_MODEL = WEIGHTS.name
"""The model that runs here; `local` alone means it."""

DEFAULT_MODELS: Mapping[str, str] = {
    "anthropic": "claude-sonnet-5-5",
    "openai": "gpt-6.1-sol",
    "google_genai": "gemini-3.8-flash",
}

_OTHER_SPELLINGS = {
    "google": "google_genai",
    "gemini": "google_genai",
    "mistral": "mistralai",
    "claude": "anthropic",
    "azure": "azure_openai",
    "scripted": "script",
}

_FRIENDLY = {
    "sonnet": "claude-sonnet-5-5",
    "opus": "claude-opus-5-5",
    "haiku": "claude-haiku-5-5",
    "claude-sonnet": "claude-sonnet-5-5",
    "claude-opus": "claude-opus-5-5",
    "claude-haiku": "claude-haiku-5-5",
}

_FAMILIES = (
    (re.compile(r"claude[-.]"), "anthropic"),
    (re.compile(r"(gpt|chatgpt)-|o\d(-|$)|codex-"), "openai"),
    (re.compile(r"gemini-"), "google_genai"),
    (re.compile(r"(mistral|mixtral|codestral|devstral|magistral|ministral)-"), "mistralai"),
    (re.compile(r"deepseek-(chat|reasoner)$"), "deepseek"),
    (re.compile(r"grok-"), "xai"),
    (re.compile(r"command-"), "cohere"),
    # Ollama's names have a tag after a colon, or none: `qwen2.5-coder:7b`, `llama3.2`.
    (re.compile(r"(llama|qwen|gemma|phi|granite|smollm|codellama|gpt-oss)[\w.-]*(:[\w.-]+)?$"), "ollama"),
)
_OLLAMA_TAG = re.compile(r"[\w./-]+:(\d[\w.]*b[\w.-]*|latest)$")
_CLAUDE_3 = re.compile(r"claude-3(-[57])?-(opus|sonnet|haiku)$")


@dataclass(frozen=True, slots=True)
class ModelName:
    """A provider, or `script`, or `local`, and what it calls the model."""

    provider: str
    model: str

    def __str__(self) -> str:
        return f"{self.provider}:{self.model}"


def parse_model_name(name: str, *, otherwise: str = "") -> ModelName:
    """Read `provider:model`, `provider/model` or a friendly name such as `claude-sonnet-4.5`.

    Args:
        otherwise: the provider of names that tell none; empty: such names are an error.

    Raises:
        ModelError: the name tells no provider.
    """
    name = name.strip()
    if name.lower() in (LOCAL, "embedded"):
        return ModelName(LOCAL, LOCAL_MODEL)
    for separator in (":", "/"):
        head, found, rest = name.partition(separator)
        provider = _OTHER_SPELLINGS.get(head.lower(), head.lower().replace("-", "_"))
        if found and rest and (provider in PROVIDERS or provider in ("script", LOCAL)):
            return ModelName(provider, _official(provider, rest))
    lower = _FRIENDLY.get(name.lower(), name.lower())
    if _OLLAMA_TAG.match(lower):
        return ModelName("ollama", lower)
    for family, provider in _FAMILIES:
        if family.match(lower):
            return ModelName(provider, _official(provider, lower))
    if otherwise:
        return ModelName(otherwise, name)
    raise ModelError(
        f"Model {name!r} is not known. Write provider:model, such as anthropic:claude-sonnet-5-5, "
        f"openai:gpt-6.1-sol, ollama:qwen3 or script:demo. Providers: {', '.join(sorted(PROVIDERS))}."
    )


def _official(provider: str, model: str) -> str:
    """What the provider calls a model people name `claude-sonnet-4.5` or `claude-3.5-haiku`."""
    if provider != "anthropic":
        return model
    model = _FRIENDLY.get(model, model).replace(".", "-")
    return f"{model}-latest" if _CLAUDE_3.match(model) else model
