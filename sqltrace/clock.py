"""The clock that all is measured by. Its readings are nanoseconds, and what is told of them is in seconds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

Clock = Callable[[], int]
SECOND: Final = 1_000_000_000
