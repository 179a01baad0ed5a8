"""
The route template of a request, from what Starlette and FastAPI leave in its scope.

Neither is imported. What they leave differs: Starlette names the route from 1.7
on and FastAPI always did, but a mount's name stays there when the mounted
application leaves none; FastAPI from 0.137 on keeps the prefix of
`include_router()` apart. Where nothing is left, the routes are matched again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]

_MAX_DEPTH = 100


def route_template(scope: Scope, answered: bool = True) -> str | None:
    """
    ``/api/tags/{tag_id}``, with the application's root path, mounts and prefixes.

    ``/static/{path}`` for all that a mount answers without routes of its own.
    `None` where no route matched, or the framework does not tell.

    Args:
        scope: As the framework left it, once its router has run.
        answered: Whether there is a response: until then a mounted application may not have run its own router yet.
    """
    path = _told_path(scope)
    root_path: str = scope.get("root_path") or ""
    root_path_above: str | None = scope.get("app_root_path")  # set by the first mount on the way
    if root_path_above is None:
        if path is None:
            path = _found_path(_routes_inside(scope.get("router")), scope)
        return None if path is None else root_path.rstrip("/") + path
    mounted = root_path.removeprefix(root_path_above).rstrip("/")
    below = _through_mounts(_routes_inside(scope.get("router")), mounted, scope)
    template, routes = below or (_with_parameters(mounted, scope), ())
    if path is None:
        path = _found_path(routes, scope)
    if path is None:
        if routes and not answered:
            return None
        path = "/{path}"
    return root_path_above.rstrip("/") + template + path


def path_below_root(scope: Scope) -> str:
    """The path that is routed: without ``root_path``, which some servers put in front of it and others do not."""
    path, root_path = scope.get("path") or "", scope.get("root_path") or ""
    if path == root_path or path.startswith(root_path + "/"):
        path = path[len(root_path) :]
    return path


def layers(app: Any) -> Iterator[Any]:
    """An ASGI application and what it wraps, as attributes named `app` tell, and Starlette's stack once it is built."""
    for _ in range(_MAX_DEPTH):  # what is wrapped may lead back to itself
        if app is None:
            return
        yield app
        stack = getattr(app, "middleware_stack", None)
        app = stack if stack is not None else getattr(app, "app", None)


def _told_path(scope: Scope) -> str | None:
    route = scope.get("route")
    fastapi = scope.get("fastapi")
    context = fastapi.get("effective_route_context") if isinstance(fastapi, dict) else None
    if route is not None and getattr(context, "original_route", None) is route:
        route = context
    return None if _is_mount(route) else _path_of(route)


def _found_path(routes: Iterable[Any], scope: Scope) -> str | None:
    endpoint, path = scope.get("endpoint"), path_below_root(scope)
    if endpoint is None:
        return None
    for route in _leaves(routes, scope):
        if getattr(route, "endpoint", None) is endpoint and route.path_regex.match(path):
            return _path_of(route)
    return None


def _through_mounts(routes: Iterable[Any], mounted: str, scope: Scope) -> tuple[str, Iterable[Any]] | None:
    """The template of the mounts that ``mounted`` leads through, and the routes inside the last of them."""
    if not mounted:
        return "", routes
    for route in _leaves(routes, scope):
        match = route.path_regex.match(mounted + "/") if _is_mount(route) else None
        if match is not None:
            rest = f"/{match['path']}".removesuffix("/")
            below = _through_mounts(_routes_inside(route), rest, scope)
            if below is not None:  # pragma: no branch - a mount that matches by chance, beside the right one
                return route.path_format.removesuffix("/{path}") + below[0], below[1]
    return None


def _leaves(routes: Iterable[Any], scope: Scope) -> Iterator[Any]:
    """The routes and mounts of one level: included routers, hosts and mounts at ``/`` take nothing off the path."""
    for route in routes:
        if hasattr(route, "effective_route_contexts"):
            contexts = route.effective_route_contexts()
            yield from _leaves([context.starlette_route or context for context in contexts], scope)
        elif hasattr(route, "host_regex"):
            if route.matches(scope)[0].value:  # not Match.NONE
                yield from _leaves(_routes_inside(route), scope)
        elif _is_mount(route) and route.path == "":
            yield from _leaves(_routes_inside(route), scope)
        else:
            yield route


def _routes_inside(app: Any) -> Iterable[Any]:
    """The routes of an application, also of one that is wrapped in middleware."""
    for layer in layers(app):
        routes: Iterable[Any] = getattr(layer, "routes", None) or ()
        if routes:
            return routes
    return ()


def _is_mount(route: Any) -> bool:
    return hasattr(route, "routes")


def _path_of(route: Any) -> str | None:
    path = getattr(route, "path_format", None)
    if path is None:
        path = getattr(route, "path", None)
    return path if isinstance(path, str) else None


def _with_parameters(mounted: str, scope: Scope) -> str:
    """What can be said of mounts that cannot be found: ``/users/5`` is ``/users/{user_id}`` if that has the value 5."""
    parameters = scope.get("path_params") or {}
    names = {str(value): name for name, value in parameters.items()}
    return "/".join(f"{{{names[part]}}}" if part in names and part else part for part in mounted.split("/"))
