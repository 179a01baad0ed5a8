"""The route template of a request, from what Starlette and FastAPI leave in its scope."""

from __future__ import annotations

from collections.abc import Iterable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]


def route_template(scope: Scope, root_path: str) -> str | None:
    """
    ``/api/tags/{tag_id}``, or `None` where no route matched or nobody tells.

    Args:
        scope: As the framework left it, after the request.
        root_path: Of the scope before: where the application itself is mounted.
    """
    path = _matched_path(scope)
    if path is None:
        return _searched_path(scope, root_path)
    mount = str(scope.get("root_path") or "").removeprefix(root_path)
    return _with_parameters(mount, scope) + path


def _matched_path(scope: Scope) -> str | None:
    route = scope.get("route")
    # FastAPI >= 0.137 keeps the prefix of include_router() out of the route itself.
    fastapi = scope.get("fastapi")
    context = fastapi.get("effective_route_context") if isinstance(fastapi, dict) else None
    if route is None or route in (
        getattr(context, "original_route", None),
        getattr(context, "starlette_route", None),
    ):
        route = context or route
    if hasattr(route, "routes"):
        return "/{path}"  # a mount in which nothing matched, or which has no routes; root_path names it
    path = getattr(route, "path_format", None) or getattr(route, "path", None)
    return path if isinstance(path, str) else None


def _with_parameters(mount: str, scope: Scope) -> str:
    """The mount's path with its parameters named again: ``/users/5`` is ``/users/{user_id}``."""
    parameters = scope.get("path_params") or {}
    names = {str(value): name for name, value in reversed(list(parameters.items()))}
    return "/".join(
        f"{{{names[segment]}}}" if segment in names and segment else segment for segment in mount.split("/")
    )


def _searched_path(scope: Scope, root_path: str) -> str | None:
    """Starlette before 1.7 tells the endpoint only: match the routes once more, to find its path."""
    endpoint, router = scope.get("endpoint"), scope.get("router")
    if endpoint is None or router is None:
        return None
    return _search(getattr(router, "routes", ()), {**scope, "root_path": root_path, "path_params": {}}, endpoint)


def _search(routes: Iterable[Any], scope: Scope, endpoint: Any) -> str | None:
    for route in routes:
        match, child_scope = route.matches(scope)
        if match.value == 0:  # Match.NONE
            continue
        path = getattr(route, "path_format", None) or getattr(route, "path", "")
        if child_scope.get("endpoint") is endpoint and not getattr(route, "routes", None):
            return str(path)
        inside = _search(getattr(route, "routes", None) or (), {**scope, **child_scope}, endpoint)
        if inside is not None:
            return str(path).removesuffix("/{path}") + inside
    return None
