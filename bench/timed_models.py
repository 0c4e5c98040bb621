"""A scripted model that notes when it gives each piece: what the token loop adds is in between."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from langchain_core.outputs import ChatGenerationChunk

from agent_runner.adapters.models.script import ScriptedChatModel
from agent_runner.ports.models import Model, ModelResolver
from agent_runner.v1.options_pb2 import ModelOptions


class TimedModel(ScriptedChatModel):
    """Follows its script; appends one JSON list of seconds to `gaps_to` after each answer."""

    gaps_to: Path

    async def _astream(self, *arguments: Any, **options: Any) -> AsyncIterator[ChatGenerationChunk]:
        given = []
        async for chunk in super()._astream(*arguments, **options):
            given.append(time.perf_counter())
            yield chunk
        gaps = [after - before for before, after in pairwise(given)]
        with self.gaps_to.open("a", encoding="utf-8") as file:
            file.write(f"{json.dumps(gaps)}\n")


class TimedModels:
    """The port `ModelResolver`, for scripts alone."""

    def __init__(self, models: ModelResolver, gaps_to: Path) -> None:
        self._models = models
        self._gaps_to = gaps_to

    def resolve(self, *wishes: ModelOptions) -> Model:
        model = self._models.resolve(*wishes)
        plain = model.chat
        chat = TimedModel(
            script=plain.script,
            script_name=plain.script_name,
            failures=plain.failures,
            gaps_to=self._gaps_to,
        )
        return replace(model, chat=chat)

    def describe_default(self) -> str:
        return self._models.describe_default()
