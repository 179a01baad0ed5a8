"""Each `lazy=` of SQLAlchemy on the example's page: what SQL it causes, and what the log line says of it."""

import pytest
from sqlalchemy.exc import InvalidRequestError, MissingGreenlet, StatementError
from starlette.testclient import TestClient
from structlog.testing import capture_logs

import sqltrace
from example_app.app import create_app
from example_app.data import SIZES, generate, seed_database
from example_app.database import open_sqlite
from example_app.loading import STRATEGIES

pytestmark = [
    pytest.mark.usefixtures("leftovers"),
    # What SQLAlchemy leaves behind where it could not await.
    pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    database = open_sqlite(tmp_path_factory.mktemp("example") / "example.sqlite")
    database.create_tables()
    for _ in seed_database(database.sync_engine, generate(SIZES["small"], seed=1)):
        pass
    yield create_app(database)
    database.sync_engine.dispose()


@pytest.fixture
def client(app):
    sqltrace.instrument()  # as the middleware did, before the first test ended
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def request_line(client):
    def request_line(path):
        with capture_logs() as logs:
            response = client.get(path)
        (line,) = (line for line in logs if line["event"] == "request")
        assert line["http.response.status_code"] == response.status_code
        return response, line

    return request_line


def told(line):
    """Of each group: how many statements of which origin, and what eager joins made of them."""
    words = []
    for group in sorted(line["sql.statements"], key=lambda group: "origin" in group):
        text = f"{group['count']} {group.get('origin', 'query')}"
        if "relationship" in group:
            text += f" {group['relationship']} lazy={group['lazy']} for {group['loaded_for'].split(' at ')[0]}"
        if "eager_joins" in group:
            joins = group["eager_joins"]
            text += f" of {joins['asked_tables']}, sent {joins['sent_tables']}: {', '.join(joins['joins'])}"
        words.append(text)
    return words


LOADS = {
    "joined": ["1 query of 1, sent 2: User.contents (mapping)"],
    "select": ["1 query", "3 lazy User.contents lazy=select for SELECT users"],
    "selectin": ["1 query", "1 selectin User.contents lazy=selectin for SELECT users"],
    "subquery": ["1 query", "1 subquery User.contents lazy=subquery for SELECT users"],
    "immediate": ["1 query", "3 immediate User.contents lazy=immediate for SELECT users"],
    "noload": ["1 query"],
    "dynamic": ["1 query", "3 query"],
    "write_only": ["1 query", "3 query"],
}
RAISES = {
    "sync": {"raise": InvalidRequestError, "raise_on_sql": InvalidRequestError},
    "async": {
        "raise": InvalidRequestError,
        "raise_on_sql": InvalidRequestError,
        "select": (MissingGreenlet, StatementError),
        "dynamic": (MissingGreenlet, StatementError),
    },
}


def test_every_strategy_is_told():
    assert {*LOADS, *RAISES["sync"]} == set(STRATEGIES)


@pytest.mark.parametrize(
    ("session", "strategy"), [(session, name) for session in RAISES for name in LOADS if name not in RAISES[session]]
)
def test_page_of_a_strategy_that_loads(request_line, session, strategy):
    response, line = request_line(f"/{session}/loading/{strategy}")

    assert response.status_code == 200
    assert sorted(told(line)) == sorted(LOADS[strategy])
    # noload answers as if there were nothing
    assert all(response.json().values()) is (strategy != "noload")


@pytest.mark.parametrize(("session", "strategy"), [(session, name) for session in RAISES for name in RAISES[session]])
def test_page_of_a_strategy_that_raises(client, request_line, session, strategy):
    errors = RAISES[session][strategy]

    response, line = request_line(f"/{session}/loading/{strategy}")

    assert (response.status_code, line["outcome"], line["log_level"]) == (500, "error", "error")
    names = [error.__name__ for error in (errors if isinstance(errors, tuple) else (errors,))]
    assert line["error.type"].removeprefix("sqlalchemy.exc.") in names
    assert told(line)[0] == "1 query"
    (finding,) = line["findings"]
    assert finding["kind"] == ("raise_load" if strategy.startswith("raise") else "missing_greenlet")
    assert finding["relationship"] == "User.contents"
    assert finding["call_site"].startswith("example_app/loading.py:")
    assert finding["loaded_for"].startswith("SELECT users at example_app/loading.py:")
    assert ('lazy="write_only"' if strategy == "dynamic" else "selectinload(User.contents)") in finding["fix"]


def test_pages_answer_the_same_whichever_way_they_load(client):
    loading = [strategy for strategy in LOADS if strategy != "noload"]
    sync = [client.get(f"/sync/loading/{strategy}").json() for strategy in loading]
    asynchronous = [
        client.get(f"/async/loading/{strategy}").json() for strategy in loading if strategy not in RAISES["async"]
    ]

    assert all(answer == sync[0] for answer in sync + asynchronous)


def test_other_strategies_are_refused(client):
    assert client.get("/sync/loading/magic").status_code == 422
