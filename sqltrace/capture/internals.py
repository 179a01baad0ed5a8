"""
All access to what SQLAlchemy does not document.

Each reader answers `None` when SQLAlchemy has changed under it.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy.engine.interfaces import ExecuteStyle


def batch_size(context: Any, parameters: Any) -> int | None:
    """
    Parameter sets of an executemany, or rows of the insertmanyvalues batch that is running.

    The batch is not on the context; its parameters are one flat sequence or
    dictionary, with those of the VALUES clause repeated for every row.
    """
    try:
        if context.execute_style is ExecuteStyle.EXECUTEMANY:
            return len(parameters)
        per_set = len(context.parameters[0])
        if isinstance(parameters, dict):
            repeated = sum(name.endswith("__0") for name in parameters)
        else:
            repeated = context.compiled._insertmanyvalues.num_positional_params_per_batch
        if len(parameters) == per_set:
            return 1
        return (len(parameters) - (per_set - repeated)) // repeated
    except Exception:
        return None
