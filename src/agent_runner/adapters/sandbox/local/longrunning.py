"""Programs that stay, in the same confinement as every command of the session."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from agent_runner.adapters.sandbox.local.bubblewrap import BASE_ENVIRONMENT, Confinement
from agent_runner.adapters.sandbox.local.memory_files import joined, memory_file
from agent_runner.adapters.sandbox.longrunning import PipedProcess
from agent_runner.adapters.sandbox.names import check_environment, sandbox_path
from agent_runner.errors import InvalidRequestError
