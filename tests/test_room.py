"""What is noted on SQLAlchemy's own object of an execution must not make that slower to use."""

import gc

import pytest
from sqlalchemy import Column, Integer, MetaData, Table, create_engine, literal, select, text
from sqlalchemy.dialects.sqlite.base import SQLiteExecutionContext

import sqltrace


@pytest.fixture
def engine():
    engine = create_engine("sqlite://")
    yield engine
    engine.dispose()


@pytest.fixture
def own_class(engine):
    """One that the application has given to its engine, without instances yet."""

    class Own(SQLiteExecutionContext):
        pass

    engine.dialect.execution_ctx_cls = Own
    return Own


def run(engine):
    with engine.connect() as connection:
        result = connection.execute(select(literal(1)))
        result.all()
        return result.context


def has_own_dictionary(context):
    return any(type(held) is dict and "root_connection" in held for held in gc.get_referents(context))


def start_up(engine):
    metadata = MetaData()
    table = Table("things", metadata, Column("id", Integer, primary_key=True))
    metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(table.insert(), {"id": 1})
        connection.execute(text("DELETE FROM things"))
    metadata.drop_all(engine)
    return [run(engine) for _ in range(50)]


@pytest.mark.parametrize("started", [False, True], ids=["at once", "after start-up"])
def test_recorded_execution_has_no_dictionary_of_its_own_whatever_ran_before(engine, own_class, started):
    bare = start_up(engine)[1:] if started else []
    with sqltrace.record() as recording:
        run(engine)
        contexts = [run(engine) for _ in range(30)]

    assert recording.row_count == 31
    assert not any(map(has_own_dictionary, [*bare, *contexts]))


def test_class_of_executions_reads_as_before(engine):
    original = engine.dialect.execution_ctx_cls
    with sqltrace.record():
        context = run(engine)

    assert isinstance(context, original)
    assert (str(type(context)), type(context).__doc__) == (str(original), original.__doc__)


@pytest.mark.parametrize("named", [True, False], ids=["one", "all"])
def test_uninstrument_gives_the_class_of_executions_back(engine, named):
    original = engine.dialect.execution_ctx_cls
    sqltrace.instrument(*[engine] * named)
    with sqltrace.record():
        run(engine)
    assert engine.dialect.execution_ctx_cls is not original

    sqltrace.uninstrument(*[engine] * named)

    assert engine.dialect.execution_ctx_cls is original
    assert "execution_ctx_cls" not in vars(engine.dialect)


def test_uninstrument_gives_back_a_class_of_the_application(engine, own_class):
    sqltrace.instrument()
    with sqltrace.record():
        assert isinstance(run(engine), own_class)

    sqltrace.uninstrument()

    assert engine.dialect.execution_ctx_cls is own_class


def test_statements_meet_no_other_class_while_that_of_the_application_is_given_back(engine, own_class):
    met = []

    class Watched(type(engine.dialect)):
        supports_statement_cache = True

        def __setattr__(self, name, value):
            super().__setattr__(name, value)
            met.append(self.execution_ctx_cls)

        def __delattr__(self, name):
            super().__delattr__(name)
            met.append(self.execution_ctx_cls)

    engine.dialect.__class__ = Watched
    sqltrace.instrument()
    with sqltrace.record():
        run(engine)

    sqltrace.uninstrument()

    assert own_class in met
    assert all(issubclass(each, own_class) for each in met)


def test_class_that_the_application_gives_meanwhile_stays(engine):
    sqltrace.instrument()
    with sqltrace.record():
        run(engine)
    own = engine.dialect.execution_ctx_cls = type("Own", (engine.dialect.execution_ctx_cls,), {})

    sqltrace.uninstrument()

    assert engine.dialect.execution_ctx_cls is own
    with sqltrace.record() as recording:
        assert isinstance(run(engine), own)
    assert recording.row_count == 1
