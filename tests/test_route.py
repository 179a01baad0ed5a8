import fastapi
import pytest
import starlette
from a2wsgi import WSGIMiddleware
from fastapi import APIRouter, FastAPI, WebSocket
from starlette.applications import Starlette
from starlette.endpoints import HTTPEndpoint, WebSocketEndpoint
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import PlainTextResponse
from starlette.routing import Host, Mount, Route, Router, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from sqltrace import SQLTraceMiddleware
from sqltrace.route import path_below_root, route_template
from tests.asgi import Witness, http_scope, run

FASTAPI = tuple(int(part) for part in fastapi.__version__.split(".")[:2])
STARLETTE = tuple(int(part) for part in starlette.__version__.split(".")[:2])


def page(request):
    return PlainTextResponse("page")


class Page(HTTPEndpoint):
    async def get(self, request):
        return PlainTextResponse("page")


async def chat(websocket):
    await websocket.accept()
    await websocket.close()


class Chat(WebSocketEndpoint):
    async def on_connect(self, websocket):
        await websocket.accept()
        await websocket.close()


def nothing():
    return {}


def wsgi(environ, start_response):
    start_response("200 OK", [("content-type", "text/plain")])
    return [b"wsgi"]


def get(app, path, *, method="GET", root_path="", **headers):
    """The template that a request is told with."""
    sink = Witness()
    client = TestClient(SQLTraceMiddleware(app, sinks=[sink]), root_path=root_path, raise_server_exceptions=False)
    client.request(method, path, headers=headers, follow_redirects=False)
    return sink.record.route


def open_websocket(app, path):
    sink = Witness()
    with (
        pytest.raises(WebSocketDisconnect),
        TestClient(SQLTraceMiddleware(app, sinks=[sink])).websocket_connect(path) as websocket,
    ):
        websocket.receive_text()
    return sink.record.route


@pytest.fixture
def starlette_app(tmp_path):
    (tmp_path / "logo.txt").write_text("logo")
    inner = [Route("/posts/{post}", page), Route("/", page), WebSocketRoute("/chat/{room}", chat)]
    return Starlette(
        routes=[
            Route("/", page),
            Route("/items/{item:int}", page),
            Route("/other/{item:int}", page),
            Route("/class/{item}", Page),
            Route("/files/{name:path}", page),
            Route("/slash/", page),
            Route("/forbidden/{item}", forbid),
            WebSocketRoute("/chat/{room}", chat),
            WebSocketRoute("/chats/{room}", Chat),
            Mount("/users/{user}", routes=[*inner, Mount("/deep/{level:int}", routes=inner)]),
            Mount("/same/{name}", routes=[Route("/{name}", page)]),
            Mount("/tree/{branch:path}/leaf", routes=inner),
            Mount("/wrapped/{user}", app=CORSMiddleware(GZipMiddleware(Router([Mount("/in/{user2}", routes=inner)])))),
            Mount("/middle/{user}", routes=inner, middleware=[Middleware(GZipMiddleware)]),
            Mount("/static", app=StaticFiles(directory=tmp_path)),
            Mount("/wsgi", app=WSGIMiddleware(wsgi)),
            Host("{tenant}.example.org", app=Router([Route("/hosted/{item}", page), Mount("/in/{x}", routes=inner)])),
            Host("other.example.com", app=Router([Route("/hosted/{thing}", page), Mount("/in/{y}", routes=inner)])),
            Mount("/", routes=[Mount("/under/{root}", routes=inner), Route("/last/{item}", page)]),
        ]
    )


def forbid(request):
    raise HTTPException(403)


@pytest.mark.parametrize(
    ("path", "template"),
    [
        ("/", "/"),
        ("/items/5", "/items/{item}"),
        ("/other/5", "/other/{item}"),
        ("/class/5", "/class/{item}"),
        ("/files/a/b/c.txt", "/files/{name}"),
        ("/forbidden/5", "/forbidden/{item}"),
        ("/users/ada/posts/ada", "/users/{user}/posts/{post}"),
        ("/users/users/posts/posts", "/users/{user}/posts/{post}"),
        ("/users/ada/", "/users/{user}/"),
        ("/users/5/deep/05/posts/5", "/users/{user}/deep/{level}/posts/{post}"),
        ("/same/1/2", "/same/{name}/{name}"),
        ("/tree/a/b/leaf/posts/1", "/tree/{branch}/leaf/posts/{post}"),
        ("/wrapped/1/in/2/posts/3", "/wrapped/{user}/in/{user2}/posts/{post}"),
        ("/middle/1/posts/3", "/middle/{user}/posts/{post}"),
        ("/static/logo.txt", "/static/{path}"),
        ("/static/missing.txt", "/static/{path}"),
        ("/wsgi/anything", "/wsgi/{path}"),
        ("/under/1/posts/2", "/under/{root}/posts/{post}"),
        ("/last/1", "/last/{item}"),
    ],
)
def test_starlette_route_is_told_as_it_is_written(starlette_app, path, template):
    assert get(starlette_app, path) == template


@pytest.mark.parametrize(
    ("host", "path", "template"),
    [
        ("a.example.org", "/hosted/1", "/hosted/{item}"),
        ("other.example.com", "/hosted/1", "/hosted/{thing}"),
        ("a.example.org", "/in/1/posts/1", "/in/{x}/posts/{post}"),
        ("other.example.com", "/in/1/posts/1", "/in/{y}/posts/{post}"),
        ("a.example.org", "/missing", None),
    ],
)
def test_route_below_a_host_is_the_one_of_that_host(starlette_app, host, path, template):
    assert get(starlette_app, path, host=host) == template


@pytest.mark.parametrize(
    ("path", "template"),
    [
        ("/chat/1", "/chat/{room}"),
        ("/chats/1", "/chats/{room}"),
        ("/users/1/chat/1", "/users/{user}/chat/{room}"),
    ],
)
def test_websocket_route_is_told(starlette_app, path, template):
    assert open_websocket(starlette_app, path) == template


def test_method_that_is_not_allowed_has_the_route_that_forbids_it():
    routes = [Route("/edit/{item}", page, methods=["PUT"]), Route("/class/{item}", Page)]
    app = Starlette(routes=[*routes, Mount("/users/{user}", routes=routes)])

    assert get(app, "/edit/5") == "/edit/{item}"
    assert get(app, "/class/5", method="DELETE") == "/class/{item}"
    assert get(app, "/users/ada/edit/5") == "/users/{user}/edit/{item}"


def test_path_without_route_has_no_template():
    app = Starlette(routes=[Route("/items/{item}", page), Route("/slash/", page)])

    assert get(app, "/missing") is None
    assert get(app, "/slash") is None  # redirected before any route is chosen


def test_path_without_route_in_a_mount_has_the_template_of_the_mount():
    app = Starlette(routes=[Mount("/users/{user}", routes=[Route("/posts", page)])])

    assert get(app, "/users/ada/missing") == "/users/{user}/{path}"


def test_application_that_tells_nothing_has_no_template():
    assert get(PlainTextResponse("plain"), "/items/5") is None
    assert get(WSGIMiddleware(wsgi), "/items/5") is None


@pytest.fixture
def fastapi_app(tmp_path):
    (tmp_path / "logo.txt").write_text("logo")
    tags, books, app = APIRouter(prefix="/tags"), APIRouter(), FastAPI()

    @tags.get("")
    @tags.get("/{tag}")
    @books.get("/{book:path}/pages/{number}")
    @app.get("/items/{item}")
    def endpoint():
        return {}

    @tags.websocket("/{tag}/live")
    @app.websocket("/live/{item}")
    async def live(websocket: WebSocket):
        await chat(websocket)

    tags.add_route("/raw/{item}", page)
    tags.include_router(books, prefix="/{tag}/books")
    app.include_router(tags, prefix="/api/{version}")
    app.include_router(books, prefix="/books")
    sub = FastAPI()
    sub.include_router(tags)
    sub.add_api_route("/direct/{item}", endpoint)
    sub.mount("/further/{step}", Starlette(routes=[Route("/plain/{item}", page)]))
    app.mount("/sub/{tenant}", sub)
    app.mount("/starlette/{tenant}", Starlette(routes=[Route("/plain/{item}", page), Mount("/fast/{x}", sub)]))
    app.mount("/static", StaticFiles(directory=tmp_path))
    app.mount("/wsgi", WSGIMiddleware(wsgi))
    return app


@pytest.mark.parametrize(
    ("path", "template"),
    [
        ("/items/5", "/items/{item}"),
        ("/api/v1/tags", "/api/{version}/tags"),
        ("/api/v1/tags/5", "/api/{version}/tags/{tag}"),
        ("/api/v1/raw/5", "/api/{version}/raw/{item}"),
        ("/api/v1/tags/5/books/a/b/pages/7", "/api/{version}/tags/{tag}/books/{book}/pages/{number}"),
        ("/books/a/b/pages/7", "/books/{book}/pages/{number}"),
        ("/docs", "/docs"),
        ("/openapi.json", "/openapi.json"),
        ("/sub/acme/tags/acme", "/sub/{tenant}/tags/{tag}"),
        ("/sub/acme/direct/5", "/sub/{tenant}/direct/{item}"),
        ("/sub/acme/docs", "/sub/{tenant}/docs"),
        ("/sub/acme/missing", "/sub/{tenant}/{path}"),
        ("/sub/acme/further/2/plain/3", "/sub/{tenant}/further/{step}/plain/{item}"),
        ("/starlette/acme/plain/3", "/starlette/{tenant}/plain/{item}"),
        ("/starlette/acme/fast/2/tags/3", "/starlette/{tenant}/fast/{x}/tags/{tag}"),
        ("/starlette/acme/fast/2/docs", "/starlette/{tenant}/fast/{x}/docs"),
        ("/static/logo.txt", "/static/{path}"),
        ("/wsgi/anything", "/wsgi/{path}"),
        ("/missing", None),
        ("/items/5/", None),
    ],
)
def test_fastapi_route_is_told_with_its_prefixes(fastapi_app, path, template):
    assert get(fastapi_app, path) == template


def test_fastapi_websocket_route_is_told_with_its_prefixes(fastapi_app):
    assert open_websocket(fastapi_app, "/live/5") == "/live/{item}"
    assert open_websocket(fastapi_app, "/api/v1/tags/5/live") == "/api/{version}/tags/{tag}/live"
    assert open_websocket(fastapi_app, "/sub/acme/tags/5/live") == "/sub/{tenant}/tags/{tag}/live"


def test_fastapi_method_that_is_not_allowed_has_the_route_that_forbids_it(fastapi_app):
    assert get(fastapi_app, "/items/5", method="PUT") == "/items/{item}"
    assert get(fastapi_app, "/api/v1/tags/5", method="PUT") == "/api/{version}/tags/{tag}"


def test_fastapi_request_that_is_not_valid_has_its_route():
    app = FastAPI()

    @app.get("/items/{item}")
    def endpoint(item: int):
        return {}

    assert get(app, "/items/five") == "/items/{item}"


@pytest.mark.skipif(FASTAPI < (0, 137), reason="FastAPI before 0.137 leaves mounts out of included routers")
def test_mount_in_an_included_router_is_told_with_its_prefix():
    router, app = APIRouter(), FastAPI()
    router.mount("/sub/{tenant}", FastAPI())
    router.mount("/plain/{tenant}", Starlette(routes=[Route("/{item}", page)]))
    app.include_router(router, prefix="/api/{version}")

    assert get(app, "/api/v1/sub/acme/docs") == "/api/{version}/sub/{tenant}/docs"
    assert get(app, "/api/v1/plain/acme/5") == "/api/{version}/plain/{tenant}/{item}"
    assert get(app, "/api/v1/plain/acme/5/6") == "/api/{version}/plain/{tenant}/{path}"


@pytest.mark.parametrize(
    ("path", "template"),
    [
        ("/api/items/5", "/api/items/{item}"),
        ("/api/sub/acme/direct/5", "/api/sub/{tenant}/direct/{item}"),
        ("/api/starlette/acme/plain/3", "/api/starlette/{tenant}/plain/{item}"),
        ("/items/5", "/api/items/{item}"),
    ],
)
def test_route_begins_with_the_root_path_of_the_server_whether_the_path_does_or_not(fastapi_app, path, template):
    assert get(fastapi_app, path, root_path="/api") == template


@pytest.mark.filterwarnings("ignore:The `root_path` parameter is deprecated")
def test_route_begins_with_the_root_path_of_fastapi():
    app = FastAPI(root_path="/api/")
    app.add_api_route("/items/{item}", nothing)

    assert get(app, "/items/5") == "/api/items/{item}"


def test_middleware_inside_a_mounted_application_tells_the_whole_route():
    sink = Witness()
    sub = FastAPI()
    sub.add_api_route("/items/{item}", nothing)
    sub.add_middleware(SQLTraceMiddleware, sinks=[sink])
    app = Starlette(routes=[Mount("/users/{user}", app=sub)])

    TestClient(app).get("/users/ada/items/5")

    assert sink.record.route == "/users/{user}/items/{item}"
    assert sink.record.path == "/users/ada/items/5"


@pytest.mark.parametrize("outside", [True, False], ids=["outside", "inside"])
def test_route_is_seen_through_a_base_http_middleware(outside):
    async def dispatch(request, call_next):
        return await call_next(request)

    sink = Witness()
    base, ours = Middleware(BaseHTTPMiddleware, dispatch=dispatch), Middleware(SQLTraceMiddleware, sinks=[sink])
    app = Starlette(routes=[Route("/items/{item}", page)], middleware=[base, ours] if outside else [ours, base])

    TestClient(app).get("/items/5")

    assert sink.record.route == "/items/{item}"


def test_recording_is_named_after_the_route():
    sink = Witness()
    app = SQLTraceMiddleware(Starlette(routes=[Route("/items/{item}", page)]), sinks=[sink])

    TestClient(app).get("/items/5")
    TestClient(app).get("/missing/5")

    assert [record.recording.name for record in sink.records] == ["GET /items/{item}", "GET /missing/5"]


@pytest.mark.parametrize(
    ("path", "left", "template"),
    [
        ("/b/1", {"endpoint": page}, "/b/{number}"),
        ("/c/1", {"endpoint": page}, "/c/{number}"),
        ("/d/1", {"endpoint": page}, None),
        ("/e/1", {"endpoint": page}, "/e/{number}"),
        ("/mounted/1", {}, None),
        ("/b/1", {"endpoint": page, "route": Route("/told/{number}", page)}, "/told/{number}"),
    ],
    ids=["another path", "another endpoint", "no path", "mounted at the root", "answered before the router", "told"],
)
def test_route_that_is_not_told_is_the_one_of_the_endpoint_that_matches_the_path(path, left, template):
    routes = [
        Route("/a/{number}", page),
        Route("/b/{number}", page),
        Route("/c/{name}", Page),
        Route("/c/{number}", page),
        Route("/d/{name}", Page),
        Mount("/mounted", Starlette()),
        Mount("/", Starlette(routes=[Route("/e/{number}", page)])),
    ]

    assert route_template(http_scope(path, router=Starlette(routes=routes).router, **left)) == template


def test_mounts_that_nobody_can_find_are_told_by_their_parameters():
    scope = http_scope(
        "/users/5/items/7",
        root_path="/users/5",
        app_root_path="",
        path_params={"user": 5, "item": "7"},
        route=Route("/items/{item}", page),
    )

    assert route_template(scope) == "/users/{user}/items/{item}"


def test_parameter_that_is_empty_stands_for_nothing_on_the_way():
    scope = http_scope(
        "/users/5/",
        root_path="/users/5",
        app_root_path="",
        path_params={"user": 5, "rest": ""},
        route=Route("/{rest:path}", page),
    )

    assert route_template(scope) == "/users/{user}/{rest}"


class Hostile:
    """A route object of an application, made to raise wherever it is touched."""

    def __getattr__(self, name):
        raise RuntimeError(f"hands off {name}")

    def __eq__(self, other):
        raise RuntimeError("hands off")

    __hash__ = None


def test_mount_whose_application_is_wrapped_several_times_is_looked_into():
    class Wrapper:
        def __init__(self, app):
            self.app = app

        async def __call__(self, scope, receive, send):
            await self.app(scope, receive, send)

    inner = Starlette(routes=[Mount("/of/{user}", Starlette(routes=[Route("/items/{item}", page)]))])
    app = Starlette(routes=[Mount("/shops/{shop}", Wrapper(Wrapper(Wrapper(inner))))])

    assert get(app, "/shops/1/of/1/items/1") == "/shops/{shop}/of/{user}/items/{item}"


@pytest.mark.parametrize("outer", ["/", "/shops"])
def test_mount_is_told_as_it_is_written_beside_routes_and_below_others(outer):
    inner = Starlette(routes=[Mount("/of-{user}", Starlette(routes=[Route("/items/{item}", page)]))])
    app = Starlette(routes=[Route("/shops/", page), Route("/of-{user}/", page), Mount(outer, inner)])

    assert get(app, f"{outer}/of-5/items/7".replace("//", "/")) == f"{outer.rstrip('/')}/of-{{user}}/items/{{item}}"


def test_application_that_wraps_itself_is_looked_through_once():
    class Legacy:
        def __init__(self):
            self.app = self

        async def __call__(self, scope, receive, send):
            await PlainTextResponse("old")(scope, receive, send)

    app = Starlette(routes=[Mount("/legacy", Legacy())])
    witness = Witness()

    assert TestClient(SQLTraceMiddleware(app, sinks=[witness])).get("/legacy/x").text == "old"

    assert witness.record.route == "/legacy/{path}"


@pytest.mark.parametrize(
    "left",
    [
        {"route": Hostile()},
        {"fastapi": {"effective_route_context": Hostile()}, "route": object()},
        {"fastapi": Hostile()},
        {"router": Hostile(), "endpoint": page},
        {"root_path": 5, "route": Route("/", page)},
        {
            "root_path": "/a/1",
            "app_root_path": "",
            "router": Starlette(routes=[Mount("/b", routes=[])]),
            "path_params": 7,
        },
    ],
    ids=["route", "context", "fastapi", "router", "root_path", "path_params"],
)
def test_scope_that_cannot_be_understood_does_not_reach_the_response(left):
    sink = Witness()

    async def app(scope, receive, send):
        scope.update(left)
        await PlainTextResponse("fine")(scope, receive, send)

    sent = run(SQLTraceMiddleware(app, sinks=[sink]), http_scope("/a/1"))

    assert sent[-1]["body"] == b"fine"
    assert sink.record.outcome == "ok"
    assert sink.moments == ["response_ready", "request_finished"]


@pytest.mark.parametrize(
    ("path", "root_path", "below"),
    [
        ("/api/health", "/api", "/health"),
        ("/health", "/api", "/health"),
        ("/apiary", "/api", "/apiary"),
        ("/api", "/api", ""),
        ("/health", "", "/health"),
        ("/health", None, "/health"),
    ],
)
def test_root_path_is_taken_off_where_it_is(path, root_path, below):
    assert path_below_root({"path": path, "root_path": root_path}) == below
