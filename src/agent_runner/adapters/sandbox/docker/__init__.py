"""Sandboxes in containers, by the Docker API: Docker or Podman."""

from agent_runner.adapters.sandbox.docker.configuration import ContainerLimits
from agent_runner.adapters.sandbox.docker.provider import DEFAULT_IMAGE, DockerProvider

__all__ = ["DEFAULT_IMAGE", "ContainerLimits", "DockerProvider"]
