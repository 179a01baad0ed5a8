import gc

import pytest
import structlog

import sqltrace
from sqltrace import faults
from tests import asgi
from tests.databases import SERVERS, Database, drivers, metadata
from tests.drivers import Databases, Runner


@pytest.fixture(autouse=True)
def clean_slate():
    """Each test instruments for itself; what it configured ends with it."""
    yield
    sqltrace.uninstrument()
    faults.forget_faults()
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


@pytest.fixture
def no_faults(caplog):
    """Fails a test in which sqltrace reported a fault of its own, which the application would not notice."""
    yield
    records = caplog.get_records("setup") + caplog.get_records("call")
    assert [record.getMessage() for record in records if record.name == "sqltrace"] == []


@pytest.fixture(scope="module")
def leftovers():
    """Coroutines that were never awaited are complained of when they are collected: here, not in other tests."""
    yield
    gc.collect()


@pytest.fixture
def no_garbage_collection():
    """A full collection of all that the tests have left takes longer than what is measured."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.fixture
def unpatched():
    """The contrib packages patch Starlette for good, with the tracer that came first."""
    from starlette.background import BackgroundTask

    yield
    original = vars(BackgroundTask).get("_otel_original_call")
    if original is not None:
        BackgroundTask.__call__ = original
        del BackgroundTask._otel_original_call


@pytest.fixture
def tracing():
    """Spans of the test's own provider; the global one stays unconfigured."""
    from tests.telemetry import Tracing

    tracing = Tracing()
    yield tracing
    tracing.provider.shutdown()


@pytest.fixture
def logs():
    """A logger provider, and what it has exported."""
    from opentelemetry.sdk._logs import LoggerProvider
    from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor

    exporter, provider = InMemoryLogRecordExporter(), LoggerProvider()
    provider.add_log_record_processor(SimpleLogRecordProcessor(exporter))
    yield provider, exporter
    provider.shutdown()


@pytest.fixture
def meters():
    """Metrics of the test's own provider."""
    from tests.telemetry import Meters

    meters = Meters()
    yield meters
    meters.provider.shutdown()


@pytest.fixture
def memory_engine():
    engine = asgi.memory_engine()
    yield engine
    engine.dispose()


@pytest.fixture
def clock():
    return asgi.Clock()


@pytest.fixture
def witness():
    return asgi.Witness()


@pytest.fixture(scope="session", autouse=True)
def servers():
    yield SERVERS
    SERVERS.close()


@pytest.fixture(scope="session")
def postgres_url(servers):
    return servers.url("postgresql")


@pytest.fixture(params=drivers())
def database(request, tmp_path):
    """A `tests.databases.Database` with the empty table `books`, once for every driver."""
    database = Database(request.param, request.param.url(tmp_path / "test.db"))
    database.run(lambda connection: (metadata.create_all(connection), connection.commit()))
    yield database
    database.run(lambda connection: (metadata.drop_all(connection), connection.commit()))


@pytest.fixture(scope="module")
def databases(tmp_path_factory):
    """Those of `tests.drivers`, filled when asked for."""
    databases = Databases(tmp_path_factory.mktemp("databases"))
    yield databases
    databases.close()


@pytest.fixture(params=drivers())
def runner(request, databases):
    """A `tests.drivers.Runner` on a filled database, once for every driver."""
    name = request.param.name
    databases.fill(name)
    return Runner(name, databases.url(name))
