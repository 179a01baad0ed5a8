"""What a SELECT was asked for and what was sent, held against the text of the very statement."""

import re
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
from sqlalchemy import (
    Column,
    ForeignKey,
    Integer,
    Table,
    column,
    create_engine,
    func,
    insert,
    select,
    text,
    true,
    union_all,
)
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    aliased,
    column_property,
    contains_eager,
    declared_attr,
    defaultload,
    joinedload,
    lazyload,
    mapped_column,
    raiseload,
    registry,
    relationship,
    selectinload,
    subqueryload,
    with_loader_criteria,
    with_polymorphic,
)
from sqlalchemy.pool import StaticPool

import sqltrace
from example_app import guilty
from sqltrace import Lookup, Widening
from sqltrace.capture import join_internals
from sqltrace.capture.joins import link_of
from sqltrace.sql_text import redact
from tests.shelf import mapping, open_shelf

pytestmark = pytest.mark.usefixtures("no_faults")

HERE = "tests/test_joins.py"


class Base(DeclarativeBase):
    pass


class Owned:
    """A mixin that declares a relationship."""

    @declared_attr
    def company(cls):
        return relationship("Company", lazy="joined")

    @declared_attr
    def company_id(cls):
        return mapped_column(ForeignKey("companies.id"))


class Company(Base):
    __tablename__ = "companies"
    id: Mapped[int] = mapped_column(primary_key=True)
    staff: Mapped[list["Employee"]] = relationship(back_populates="employer", lazy="joined")


class Employee(Base):
    __tablename__ = "employees"
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    employer_id: Mapped[int] = mapped_column(ForeignKey("companies.id"))
    chief_id: Mapped[int | None] = mapped_column(ForeignKey("employees.id"))
    employer: Mapped[Company] = relationship(back_populates="staff")
    # Two levels deep.
    chief = relationship("Employee", remote_side="Employee.id", lazy="joined", join_depth=2)
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "employee"}


class Manager(Employee):
    __tablename__ = "managers"
    id: Mapped[int] = mapped_column(ForeignKey("employees.id"), primary_key=True)
    title: Mapped[str]
    cars: Mapped[list["Car"]] = relationship(lazy="joined")
    __mapper_args__ = {"polymorphic_identity": "manager"}


manager_garage = Table(
    "manager_garage",
    Base.metadata,
    Column("car_id", ForeignKey("cars.id"), primary_key=True),
    Column("garage_id", ForeignKey("garages.id"), primary_key=True),
)


class Car(Owned, Base):
    __tablename__ = "cars"
    id: Mapped[int] = mapped_column(primary_key=True)
    manager_id: Mapped[int] = mapped_column(ForeignKey("managers.id"))
    manager: Mapped[Manager] = relationship(lazy="joined", innerjoin=True, overlaps="cars")
    garages: Mapped[list["Garage"]] = relationship(secondary=manager_garage, lazy="joined")


class Garage(Base):
    __tablename__ = "garages"
    id: Mapped[int] = mapped_column(primary_key=True)
    cars: Mapped[list[Car]] = relationship(secondary=manager_garage, overlaps="garages")


COUNTED = Employee.__table__.alias("counted")
Company.size = column_property(
    select(func.count(COUNTED.c.id)).where(COUNTED.c.employer_id == Company.id).scalar_subquery()
)


@pytest.fixture(scope="module")
def engine():
    engine = create_engine("sqlite://", poolclass=StaticPool)
    Base.metadata.create_all(engine)
    with engine.begin() as connection:
        employees = [
            {"id": 1, "kind": "manager", "employer_id": 1, "chief_id": None},
            {"id": 2, "kind": "employee", "employer_id": 1, "chief_id": 1},
        ]
        connection.execute(insert(Company.__table__), [{"id": 1}])
        connection.execute(insert(Employee.__table__), employees)
        connection.execute(insert(Manager.__table__), [{"id": 1, "title": "boss"}])
        connection.execute(insert(Car.__table__), [{"id": 1, "manager_id": 1, "company_id": 1}])
        connection.execute(insert(Garage.__table__), [{"id": 1}])
        connection.execute(insert(manager_garage), [{"car_id": 1, "garage_id": 1}])
    yield engine
    engine.dispose()
    sqltrace.uninstrument()


def statements(engine, query):
    with sqltrace.record() as recording, Session(engine) as session:
        result = query(session) if callable(query) else session.execute(query)
        if result is not None:
            result.unique().all()
    return recording.statements


def widening(engine, query):
    return statements(engine, query)[0].widening


def paths(widening):
    return [str(join) for join in widening.joins]


# The reference: the text alone, read word by word.

_WORDS = re.compile(r"\(|\)|,|[\w.$\"\[\]]+|\S")
_ENDS = {"WHERE", "GROUP", "ORDER", "LIMIT", "HAVING", "UNION"}


def tables_in(sql):
    """Names in FROM clauses; subqueries stand for the names in them, unless they are compared with or selected."""
    count, clauses, expecting = 0, ["SELECT"], False
    for word in _WORDS.findall(redact(sql, "sqlite")):
        upper = word.upper()
        if word == "(":
            # What is in brackets counts where a table could stand.
            clauses.append("FROM" if expecting else "ignored")
        elif word == ")":
            clauses.pop()
            expecting = False
        elif clauses[-1] == "ignored":
            continue
        elif upper == "SELECT":
            clauses[-1], expecting = "SELECT", False
        elif upper in ("FROM", "JOIN") or (word == "," and clauses[-1] in ("FROM", "ON")):
            clauses[-1], expecting = "FROM", True
        elif upper == "ON":
            clauses[-1], expecting = "ON", False
        elif upper in _ENDS:
            clauses[-1], expecting = upper, False
        elif expecting:
            count += 1
            expecting = False
    return count


def columns_in(sql):
    depth, count, text = 0, 1, " ".join(redact(sql, "sqlite").split())
    for position, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0 and text.startswith(" FROM ", position):
            return count
        count += letter == "," and depth == 0
    raise AssertionError(text)


@pytest.mark.parametrize(
    ("sql", "tables", "columns"),
    [
        ("SELECT a.x FROM a", 1, 1),
        ("SELECT a.x, a.y, (SELECT max(b.x, 1) FROM b) AS z FROM a, b AS c", 2, 3),
        ("SELECT a.x FROM a JOIN b ON a.x = b.x LEFT OUTER JOIN c AS c_1 ON c_1.x = b.x WHERE a.x IN (?, ?)", 3, 1),
        ("SELECT a.x FROM a LEFT OUTER JOIN (b AS b_1 JOIN c AS c_1 ON b_1.x = c_1.x) ON a.x = b_1.x", 3, 1),
        ("SELECT t.x, d.y FROM (SELECT a.x AS x FROM a, b LIMIT ? OFFSET ?) AS t JOIN d ON t.x = d.x", 3, 2),
        ("SELECT a.x FROM a WHERE EXISTS (SELECT 1 FROM b, c WHERE b.x = a.x) ORDER BY a.x, a.y", 1, 1),
    ],
)
def test_reference(sql, tables, columns):
    assert (tables_in(sql), columns_in(sql)) == (tables, columns)


C, E, M, V, G = Company, Employee, Manager, Car, Garage
EVERY = with_polymorphic(Employee, [Manager])
EVERY_ALIASED = with_polymorphic(Employee, [Manager], aliased=True, flat=True)
OTHER = aliased(Company)
LIMITED = select(Company).limit(5).subquery()
FROM_LIMITED = aliased(Company, LIMITED)
QUERIES = {
    "company": select(C),
    "employee": select(E),
    "manager": select(M),
    "car": select(V),
    "two entities": select(C, V).where(V.company_id == C.id),
    "entity and column": select(C, E.id).join(E, E.employer_id == C.id),
    "limit": select(C).limit(1),
    "limit and order": select(C).join(C.staff).order_by(E.chief_id, C.id).limit(1),
    "distinct": select(V).distinct().limit(2),
    "offset of inheritance": select(M).order_by(M.title).limit(1).offset(0),
    "option": select(G).options(joinedload(G.cars)),
    "option over defaults": select(G).options(joinedload(G.cars).joinedload(V.company)),
    "option with limit": select(G).options(joinedload(G.cars)).limit(1),
    "lazyload all": select(V).options(lazyload("*"), joinedload(V.manager)),
    "raiseload one": select(V).options(raiseload(V.manager)),
    "inner join option": select(E).options(joinedload(E.employer, innerjoin=True)),
    "of_type flat": select(C).options(joinedload(C.staff.of_type(EVERY_ALIASED))),
    "of_type subclass": select(C).options(joinedload(C.staff.of_type(M))),
    "explicit join": select(C).join(C.staff).where(E.id == 2),
    "explicit outer join": select(V).outerjoin(V.garages),
    "explicit join of inheritance": select(C).join(C.staff.of_type(M)),
    "contains_eager": select(G).join(G.cars).options(contains_eager(G.cars)),
    "contains_eager of alias": select(G).join(G.cars.of_type(aliased(V, name="x"))).options(joinedload(G.cars)),
    "implicit from": select(C).where(C.id == G.id),
    "cross join": select(C).join(G, true()),
    "with_polymorphic": select(EVERY),
    "with_polymorphic aliased": select(EVERY_ALIASED).limit(2),
    "alias": select(OTHER),
    "alias with join": select(OTHER).join(OTHER.staff),
    "alias of a subquery": select(FROM_LIMITED),
    "exists": select(C).where(C.staff.any(E.id == 2)),
    "in subquery": select(C).where(C.id.in_(select(E.employer_id).limit(2))),
    "scalar subquery": select(C, select(func.count(G.id)).scalar_subquery()),
    "join of subquery": select(C).join(LIMITED, LIMITED.c.id == C.id),
    "join of union": select(C).join(union_all(select(C.id), select(E.id)).subquery(), true()),
    "join of a function": select(C).join(func.json_each("[1]").table_valued("value"), true()),
    "join of a text": select(C).join(text("SELECT 1 AS one FROM garages").columns(column("one")).subquery(), true()),
    "cte": select(C).join(select(E.employer_id).cte("found"), true()),
    "Query": lambda s: s.query(C).options(joinedload(C.staff)).limit(1) and s.query(C).limit(1).all() and None,
    "get": lambda s: s.get(V, 1) and None,
    "refresh": lambda s: s.refresh(s.get(C, 1)),
    "expired": lambda s: (car := s.get(V, 1)) and (s.expire(car) or car.id) and None,
    "selectin": select(G).options(selectinload(G.cars)),
    "selectin of defaults": select(E).options(selectinload(E.employer)),
    "selectin then option": select(G).options(selectinload(G.cars).joinedload(V.garages)),
    "subquery": select(G).options(subqueryload(G.cars)),
    "subquery of limit": select(G).options(subqueryload(G.cars)).limit(1),
    "subquery of inheritance": select(M).options(subqueryload(M.employer)),
    "lazy": lambda s: s.get(G, 1).cars and None,
    "lazy many to one": lambda s: s.get(E, 2).employer and None,
}


@pytest.mark.parametrize("name", QUERIES)
def test_numbers_are_those_of_the_text(engine, name):
    found = [(s.sql, s.widening) for s in statements(engine, QUERIES[name]) if s.widening is not None]

    told = [(widening.sent_tables, widening.sent_columns) for _, widening in found]
    assert told == [(tables_in(sql), columns_in(sql)) for sql, _ in found], found[0][0]
    for _, widening in found:
        assert 1 <= widening.asked_tables <= widening.sent_tables - sum(join.tables for join in widening.joins)
        assert 1 <= widening.asked_columns <= widening.sent_columns - sum(join.columns for join in widening.joins)


WITHOUT_OPTIONS = [name for name, query in QUERIES.items() if not callable(query) and not query._with_options]


@pytest.mark.parametrize("name", WITHOUT_OPTIONS)
def test_what_was_asked_is_the_query_without_eager_joins(engine, name):
    told = widening(engine, QUERIES[name])
    plain = statements(engine, QUERIES[name].options(lazyload("*")))[0]

    assert plain.widening is None or plain.widening.joins == ()
    assert (told.asked_tables, told.asked_columns) == (tables_in(plain.sql), columns_in(plain.sql)), plain.sql


@pytest.mark.postgresql
def test_queries_in_brackets_within_a_union_are_counted(postgres_url):
    union = union_all(select(C.id).limit(1), union_all(select(E.id), select(G.id)).limit(2)).subquery()
    engine = create_engine(postgres_url)
    with engine.connect() as connection:
        Base.metadata.create_all(connection)
        [statement] = statements(connection, select(C).join(union, true()))
        connection.rollback()
    engine.dispose()

    assert (statement.widening.asked_tables, statement.widening.sent_tables) == (4, 6)


def test_the_case():
    """The selectin load of `Tag.articles`, whose own SELECT has the defaults of `Article`, and of what it joins."""
    engine = create_engine("sqlite://", poolclass=StaticPool)
    guilty.Base.metadata.create_all(engine)
    tables = guilty.Base.metadata.tables
    with engine.begin() as connection:
        connection.execute(insert(tables["users"]).values(id=1, email="", name="", refresh_token=""))
        connection.execute(insert(tables["tags"]).values(id=1, user_id=1, name="", color=""))

    query, load = statements(engine, select(guilty.Tag))

    assert (query.widening, str(load.origin)) == (None, "selectin Tag.articles")
    told = load.widening
    assert (told.entities, told.asked_tables, told.asked_columns) == (("Article",), 1, 5)
    assert (told.sent_tables, told.sent_columns) == (9, 33) == (tables_in(load.sql), columns_in(load.sql))
    assert [
        (str(join), join.entity, join.uselist, join.by_option, join.tables, join.columns) for join in told.joins
    ] == [
        ("Article.user", "User", False, False, 1, 5),
        ("Article.user → User.contents", "Content", True, False, 1, 7),
        ("Article.user → User.contents → Content.video_metadata", "VideoMetadata", False, False, 1, 3),
        ("Article.user → User.contents → Content.post_metadata", "PostMetadata", False, False, 1, 3),
        ("Article.user → User.tags", "Tag", True, False, 1, 4),
        ("Article.user → User.comments", "Comment", True, False, 1, 5),
    ]
    assert [(one.relationship, other.relationship) for one, other in told.siblings] == [
        ("User.contents", "User.tags"),
        ("User.contents", "User.comments"),
        ("User.tags", "User.comments"),
    ]


def test_mapping_default_and_option_are_told_apart(engine):
    query = select(G).options(joinedload(G.cars).joinedload(V.garages), defaultload(G.cars).load_only(V.id))

    told = widening(engine, query)

    assert {str(join): join.by_option for join in told.joins} == {
        "Garage.cars": True,
        "Garage.cars → Car.garages": True,
        "Garage.cars → Car.company": False,
        "Garage.cars → Car.company → Company.staff": False,
        "Garage.cars → Car.manager": False,
    }


def test_options_that_load_no_relationship_are_no_options_for_a_join(engine):
    query = select(V).options(defaultload(V.company).load_only(C.id), raiseload(V.manager), raiseload(V.garages))

    assert {str(join): join.by_option for join in widening(engine, query).joins}["Car.company"] is False


def test_wildcard_option_counts_as_an_option(engine):
    assert {str(join): join.by_option for join in widening(engine, select(G).options(joinedload("*"))).joins}[
        "Garage.cars"
    ] is True


def test_option_within_a_selectin_load(engine):
    _, load = statements(engine, select(G).options(selectinload(G.cars).joinedload(V.garages)))

    by_option = {str(join): join.by_option for join in load.widening.joins}
    assert (by_option["Car.garages"], by_option["Car.company"]) == (True, False)


def test_explicit_joins_and_contains_eager_are_asked_for(engine):
    query = select(C).join(C.staff).options(contains_eager(C.staff).lazyload(E.chief))

    with_eager = widening(engine, select(G).join(G.cars).options(joinedload(G.cars).lazyload("*")))

    [contained] = widening(engine, query).contained
    assert (str(contained), contained.tables, contained.columns) == ("Company.staff", 0, 0)
    assert widening(engine, query).joins == ()
    assert (with_eager.asked_tables, with_eager.sent_tables, paths(with_eager)) == (3, 5, ["Garage.cars"])


def test_statement_is_analysed_while_another_thread_adds_to_what_it_was_compiled_to():
    class Key(tuple):
        __slots__ = ()

        def __getitem__(self, place):
            state.attributes["loader", place] = None
            return super().__getitem__(place)

    state = SimpleNamespace(attributes={Key(("user_defined_eager_row_processor", (G, G.cars))): True})

    assert join_internals._contained(state) == ((G.cars,),)


def test_columns_of_what_contains_eager_loads_are_asked_for(engine):
    query = select(G).join(G.cars).options(contains_eager(G.cars).options(lazyload("*"), joinedload(V.company)))

    told = widening(engine, query)

    assert paths(told)[0] == "Garage.cars → Car.company"
    assert told.asked_tables == 3


def test_join_depth_of_a_relationship_to_itself(engine):
    told = widening(engine, select(E))

    assert paths(told) == ["Employee.chief", "Employee.chief → Employee.chief"]
    assert (told.asked_tables, told.sent_tables, told.collections) == (1, 3, ())


def test_joined_inheritance_counts_each_table(engine):
    (join,) = widening(engine, select(C).options(joinedload(C.staff.of_type(M)).lazyload("*"))).joins

    assert (str(join), join.tables, join.columns) == ("Company.staff", 2, 6)


def test_expressions_over_subqueries_belong_to_their_class(engine):
    (join,) = widening(engine, select(V).options(lazyload("*"), joinedload(V.company).lazyload("*"))).joins

    assert (str(join), join.tables, join.columns) == ("Car.company", 1, 2)


def test_siblings_and_nested_collections(engine):
    nested = widening(engine, select(G).options(joinedload(G.cars).options(lazyload("*"), joinedload(V.garages))))
    shelf = mapping(books="joined", author="joined", topics="joined")
    books = open_shelf(shelf)
    both = select(shelf.Author).options(joinedload(shelf.Author.books).joinedload(shelf.Book.topics))

    assert ([join.relationship for join in nested.collections], nested.siblings) == (["Garage.cars", "Car.garages"], ())
    assert widening(books, both).siblings == ()
    assert [join.uselist for join in widening(books, select(shelf.Book)).joins] == [False, True]


@pytest.mark.parametrize(
    "own",
    [text("SELECT * FROM companies"), select(C).where(C.id == 1), union_all(select(C), select(C)), select(C.__table__)],
    ids=["text", "select", "union", "of a table"],
)
def test_statement_of_its_own_takes_no_join(engine, own):
    told = widening(engine, select(C).from_statement(own))

    assert (told.entities, told.joins) == (("Company",), ())
    assert told.lookup == Lookup(("",), joinable=False)


def test_columns_of_a_statement_of_its_own_tell_nothing(engine):
    assert widening(engine, select(C.id).from_statement(text("SELECT id FROM companies"))) is None


@pytest.mark.parametrize(
    ("query", "lookup"),
    [
        (select(G).where(G.id == 1), Lookup(("",), ("Garage.id",), alone=True, is_key=True)),
        (select(G).where((G.id == 1) & (G.id > 0)), Lookup(("",), ("Garage.id",), is_key=True)),
        (
            select(V).options(lazyload("*")).where(V.company_id == 1, V.id == 1),
            Lookup(("",), ("Car.id",), is_key=True, options=True),
        ),
        (select(aliased(G)), Lookup(("aliased(Garage)",), alone=True)),
        (
            select(EVERY).options(lazyload("*")),
            Lookup(("with_polymorphic(Employee, [Manager])",), alone=True, options=True),
        ),
        (
            select(M).options(lazyload("*")).where(M.title == "boss"),
            Lookup(("",), ("Manager.title",), alone=True, options=True),
        ),
        (
            select(G).options(with_loader_criteria(C, C.id > 0)).where(G.id == 1, G.id.in_([1])),
            Lookup(("",), ("Garage.id",), is_key=True, values=True),
        ),
        (select(G).join(G.cars).where(V.id == 1), Lookup(("",), ("Car.id",))),
        (select(G, C).where(G.id == C.id, C.id == 1), Lookup(("", ""), ("Company.id",))),
        (lambda s: s.get(G, 1) and None, Lookup(("",), ("Garage.id",), alone=True, is_key=True, by_get=True)),
        (select(G).with_for_update(), Lookup(("",), alone=True, joinable=False)),
    ],
    ids=[
        "key",
        "swapped, and more",
        "key, and more",
        "alias",
        "with_polymorphic",
        "inheritance",
        "values",
        "join",
        "two",
        "get",
        "lock",
    ],
)
def test_what_a_query_looks_for(engine, query, lookup):
    assert widening(engine, query).lookup == lookup


def test_loads_look_for_nothing(engine):
    _, load = statements(engine, select(G).options(selectinload(G.cars).options(lazyload("*"), joinedload(V.company))))

    assert load.widening.lookup is None


def test_columns_alone_have_no_eager_joins(engine):
    assert widening(engine, select(C.id)) is None
    assert widening(engine, C.__table__.select()) is None


def test_analysis_is_made_once_for_a_statement(engine):
    first, second = widening(engine, select(C)), widening(engine, select(C))

    assert isinstance(first, Widening)
    assert first is second


def line_of(text):
    with open(__file__, encoding="utf-8") as source:
        return next(number for number, line in enumerate(source, 1) if line.startswith(text))


@pytest.mark.parametrize(
    ("query", "relationship", "text"),
    [
        (select(C), "Company.staff", "    staff: Mapped"),
        (select(E), "Employee.chief", "    chief = relationship"),
        (select(V), "Car.company", "    def company(cls)"),
        (select(M), "Manager.cars", "    cars: Mapped[list"),
    ],
    ids=["annotated", "classic", "mixin", "subclass"],
)
def test_where_a_relationship_is_declared(engine, query, relationship, text):
    (join,) = {join.declaration for join in widening(engine, query).joins if join.relationship == relationship}

    assert join.find() == f"{HERE}:{line_of(text)}"


@dataclass
class HasParts:
    __sa_dataclass_metadata_key__ = "sa"
    parts: list = field(init=False, metadata={"sa": lambda: relationship("Part")})


def test_relationship_is_declared_in_the_dataclass_that_has_it_as_a_field_only():
    models = registry()

    @models.mapped
    @dataclass
    class Machine(HasParts):
        __tablename__ = "machines"
        id: int = field(init=False, metadata={"sa": Column(Integer, primary_key=True)})

    @models.mapped
    class Part:
        __tablename__ = "parts"
        id = Column(Integer, primary_key=True)
        machine_id = Column(ForeignKey("machines.id"))

    models.configure()

    assert link_of(Machine.parts.property).declaration.find() == f"{HERE}:{line_of('    parts: list')}"


def test_objects_asked_for_are_counted_once_however_often_somebody_looks():
    shelf = mapping()
    engine = open_shelf(shelf)
    with sqltrace.record() as recording, Session(engine) as session:
        result = session.execute(select(shelf.Author).options(joinedload(shelf.Author.books)))
        assert recording.statement_count == 1
        assert len(result.unique().all()) == 3
        assert [recording.row_count for _ in range(3)] == [6] * 3
    engine.dispose()

    [group] = recording.groups
    assert (group.rows, group.roots, group.entities) == (6, 3, {"Author": 3, "Book": 6})
