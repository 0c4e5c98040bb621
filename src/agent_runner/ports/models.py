"""From a model's name to something that can be asked."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from agent_runner.v1.options_pb2 import ModelOptions


@dataclass(frozen=True, slots=True)
class Model:
    """A model, resolved.

    Attributes:
        name: `provider:model`, as shown to people.
        chat: a LangChain `BaseChatModel`, fresh for one execution.
        notice: what people should know about the choice; empty when nothing.
    """

    name: str
    chat: Any = field(repr=False)
    notice: str = ""


class ModelResolver(Protocol):
    """Finds models. The order is: the execution's options, the agent's, the settings, what is there."""

    def resolve(self, *wishes: ModelOptions) -> Model:
        """The model the first wish with a name asks for; other options come from the first that sets them.

        May take a second and import client libraries: call it off the event loop.

        Raises:
            ModelError: unknown name, missing key or library; the message lists the ways out.
        """
        ...

    def describe_default(self) -> str:
        """What would be chosen without a wish, and why, in one line; never raises."""
        ...
