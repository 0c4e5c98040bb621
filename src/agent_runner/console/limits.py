"""Times the web port keeps to."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

HEARTBEAT: Final = timedelta(seconds=15)
SLOW: Final = timedelta(seconds=30)
"""Who takes nothing for so long is cut off, and goes on by `Last-Event-ID`."""

GRACE: Final = timedelta(seconds=2)
"""What is being answered when the server stops gets so long."""
