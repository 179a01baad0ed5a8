"""Self-tests: whether the installed SQLAlchemy is as it is known here, where it documents nothing."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, wraps

from sqltrace.faults import logger


def self_test(failing: str) -> Callable[[Callable[[], bool]], Callable[[], bool]]:
    """
    Have a self-test run once, when its result is first asked for, and warn if it fails.

    Args:
        failing: What this SQLAlchemy does then, and what is missing for it.
    """

    def decorate(test: Callable[[], bool]) -> Callable[[], bool]:
        @cache
        @wraps(test)
        def work() -> bool:
            works = test()
            if not works:
                logger.warning("this SQLAlchemy %s", failing)
            return works

        return work

    return decorate
