"""Columns and relationships of subclasses, which a query of the base leaves out: what is told, and that the fix is one."""

import asyncio
from functools import partial

import pytest
from sqlalchemy import ForeignKey, create_engine, orm, select
from sqlalchemy.exc import InvalidRequestError, MissingGreenlet, StatementError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session, joinedload, load_only, selectin_polymorphic, selectinload
from sqlalchemy.pool import StaticPool

import sqltrace
from sqltrace.findings import eager_join, missing_greenlet, n_plus_one
from tests import staff as staffs

pytestmark = [
    pytest.mark.usefixtures("no_faults", "leftovers"),
    # What SQLAlchemy leaves behind where it could not await.
    pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
STAFF, RAISING = staffs.mapping(), staffs.mapping("raise")
EMPLOYEES = select(STAFF.Employee)
DEPARTMENTS = select(STAFF.Department)


def found(session, query, key="staff"):
    things = session.scalars(query).unique().all()
    return [one for thing in things for one in getattr(thing, key, [thing])]


def read(query, attribute, kind="Manager", staff=STAFF, prepare=None, key="staff"):
    engine = create_engine("sqlite://", poolclass=StaticPool)
    with engine.connect() as connection:
        staffs.fill(connection, staff)
    with sqltrace.record() as recording, Session(engine) as session:
        everybody = found(session, query, key)
        if prepare is not None:
            prepare(session, everybody)
        try:
            for one in everybody:
                if isinstance(one, getattr(staff, kind)):
                    getattr(one, attribute)
        except InvalidRequestError:
            pass
    engine.dispose()
    return recording


async def read_async(query, attribute, kind="Manager", staff=STAFF):
    engine = create_async_engine("sqlite+aiosqlite://", poolclass=StaticPool)
    async with engine.connect() as connection:
        await connection.run_sync(staffs.fill, staff)
    async with sqltrace.record() as recording, AsyncSession(engine) as session:
        everybody = await session.run_sync(found, query)
        for one in everybody:
            if isinstance(one, getattr(staff, kind)):
                try:
                    getattr(one, attribute)
                except (InvalidRequestError, MissingGreenlet, StatementError):
                    pass
    await engine.dispose()
    return recording


def pasted(query, fix, staff=STAFF):
    return eval(f"query{fix}", {**vars(orm), **vars(staff), "query": query})


def origins(recording):
    return {str(group.origin) for group in recording.groups if group.origin.kind != "query"}


SCENARIOS = {
    "single table": (
        EMPLOYEES,
        ("language", "Engineer"),
        {"subclass Engineer(language) of Employee"},
        ".options(selectin_polymorphic(Employee, [Engineer]))",
    ),
    "joined tables": (
        EMPLOYEES,
        ("budget", "Manager"),
        {"subclass Manager(budget) of Employee", "subclass Boss(budget, yacht) of Employee"},
        ".options(selectin_polymorphic(Employee, [Boss, Manager]))",
    ),
    "subclass of a subclass": (
        select(STAFF.Manager),
        ("yacht", "Boss"),
        {"subclass Boss(yacht) of Manager"},
        ".options(selectin_polymorphic(Manager, [Boss]))",
    ),
    "deferred column": (
        EMPLOYEES,
        ("notes", "Boss"),
        {"deferred Boss(notes) of Employee"},
        ".options(selectin_polymorphic(Employee, [Boss]), undefer(Boss.notes))",
    ),
    "column of the base": (
        EMPLOYEES.options(load_only(STAFF.Employee.id)),
        ("name", "Engineer"),
        {"deferred Employee(name)"},
        ".options(undefer(Employee.name))",
    ),
    "relationship": (
        EMPLOYEES,
        ("cars", "Manager"),
        {"lazy Manager.cars of Employee"},
        ".options(selectin_polymorphic(Employee, [Manager]), selectinload(Manager.cars))",
    ),
    "relationship of the class that was asked for": (
        select(STAFF.Manager),
        ("cars", "Manager"),
        {"lazy Manager.cars"},
        ".options(selectinload(Manager.cars))",
    ),
    "column below selectin": (
        DEPARTMENTS.options(selectinload(STAFF.Department.staff)),
        ("language", "Engineer"),
        {"selectin Department.staff", "subclass Engineer(language) of Employee"},
        ".options(defaultload(Department.staff).options(selectin_polymorphic(Employee, [Engineer])))",
    ),
    "column below joined": (
        DEPARTMENTS.options(joinedload(STAFF.Department.staff)),
        ("language", "Engineer"),
        {"subclass Engineer(language) of Employee"},
        ".options(defaultload(Department.staff).options(selectin_polymorphic(Employee, [Engineer])))",
    ),
    "relationship below selectin": (
        DEPARTMENTS.options(selectinload(STAFF.Department.staff)),
        ("cars", "Manager"),
        {"selectin Department.staff", "lazy Manager.cars of Employee"},
        ".options(defaultload(Department.staff)"
        ".options(selectin_polymorphic(Employee, [Manager]), selectinload(Manager.cars)))",
    ),
}


@pytest.mark.parametrize("name", SCENARIOS)
def test_what_a_query_of_the_base_leaves_out_is_loaded_one_by_one(name):
    query, touched, loads, fix = SCENARIOS[name]

    recording = read(query, *touched)

    assert origins(recording) == loads
    found = sqltrace.diagnose(recording)
    assert {finding.kind for finding in found} == {"n_plus_one"}
    assert {finding.fix for finding in found} == {fix}
    assert sqltrace.diagnose(read(pasted(query, fix), *touched)) == []


MISSING = [name for name in SCENARIOS if name != "joined tables"]  # a Boss is touched in vain, too


@pytest.mark.parametrize("name", MISSING)
def test_what_a_query_of_the_base_leaves_out_is_missing_under_async_session(name):
    query, touched, _, fix = SCENARIOS[name]

    recording = asyncio.run(read_async(query, *touched))

    [finding] = sqltrace.diagnose(recording)
    assert (finding.kind, finding.fix) == ("missing_greenlet", fix)
    assert sqltrace.diagnose(asyncio.run(read_async(pasted(query, fix), *touched))) == []


def test_what_is_told_of_a_column():
    [finding] = sqltrace.diagnose(read(EMPLOYEES, "language", "Engineer"))
    [missing] = sqltrace.diagnose(asyncio.run(read_async(EMPLOYEES, "language", "Engineer")), [missing_greenlet])

    assert finding.message.startswith(
        "Engineer.language, a column of a subclass of Employee, was loaded by 6 statements, one for each Engineer"
        " as it was touched, in "
    )
    assert missing.message == (
        "Engineer.language was not loaded, a column of a subclass of Employee,"
        " and AsyncSession cannot load it on access (MissingGreenlet)."
    )


@pytest.mark.parametrize(
    ("query", "fix"),
    [
        (EMPLOYEES, ".options(selectin_polymorphic(Employee, [Boss, Manager]), selectinload(Manager.cars))"),
        (
            DEPARTMENTS.options(selectinload(STAFF.Department.staff)),
            ".options(defaultload(Department.staff)"
            ".options(selectin_polymorphic(Employee, [Boss, Manager]), selectinload(Manager.cars)))",
        ),
        (select(STAFF.Manager), ".options(selectinload(Manager.cars))"),
    ],
    ids=["base", "below selectin", "the class itself"],
)
def test_relationship_of_a_subclass_whose_columns_were_loaded_before_needs_both(query, fix):
    """As one does whose foreign key is among these columns."""

    def touch_columns(session, everybody):
        for one in everybody:
            assert getattr(one, "budget", 1) == 1

    findings = sqltrace.diagnose(read(query, "cars", prepare=touch_columns))
    fixes = {finding.relationship: finding.fix for finding in findings}

    assert fixes["Manager.cars"] == fix
    assert sqltrace.diagnose(read(pasted(query, fix), "cars", prepare=touch_columns)) == []


def read_wheels(query):
    """The fixes, by relationship."""

    def touch_wheels(session, everybody):
        for one in everybody:
            for car in getattr(one, "cars", ()):
                assert car.wheels == []

    return {one.relationship: one.fix for one in sqltrace.diagnose(read(query, "id", prepare=touch_wheels))}


ALIAS = orm.aliased(STAFF.Employee)
SOME = orm.with_polymorphic(STAFF.Employee, [STAFF.Boss], flat=True)
ENGINEERS = orm.with_polymorphic(STAFF.Employee, [STAFF.Engineer], flat=True)
BOTH = orm.with_polymorphic(STAFF.Employee, [STAFF.Engineer, STAFF.Manager], flat=True)
MANAGERS = orm.with_polymorphic(STAFF.Employee, [STAFF.Manager], flat=True)


@pytest.mark.parametrize(
    ("alias", "attribute", "kind", "fix", "instead"),
    [
        (ALIAS, "language", "Engineer", "selectin_polymorphic({name}, [Engineer])", None),
        (SOME, "language", "Engineer", "selectin_polymorphic({name}, [Engineer])", None),
        (ALIAS, "cars", "Manager", "selectinload({name}.Manager.cars)", MANAGERS),
        (ENGINEERS, "cars", "Manager", "selectinload({name}.Manager.cars)", BOTH),
        (SOME, "cars", "Manager", "selectinload({name}.Manager.cars)", None),
    ],
    ids=["column", "column of others", "relationship", "relationship of others", "its own"],
)
@pytest.mark.parametrize("below", [False, True])
def test_what_an_alias_of_the_base_leaves_out_is_named_by_that(alias, attribute, kind, fix, instead, below):
    def query(alias):
        staff = STAFF.Department.staff.of_type(alias)
        return DEPARTMENTS.options(selectinload(staff)) if below else select(alias)

    name = "staff_alias" if below else "employee_alias"
    fix = fix.format(name=name)
    if below:
        way = f"defaultload(Department.staff.of_type({name}))"
        fix = f"{way}.options({fix})" if fix.startswith("selectin_polymorphic") else f"{way}.{fix}"

    [finding] = sqltrace.diagnose(read(query(alias), attribute, kind))
    target = query(alias if instead is None else instead)
    scope = {**vars(orm), **vars(STAFF), "query": target, name: alias if instead is None else instead}
    mended = eval(f"query{finding.fix}", scope)

    assert finding.fix.startswith(f".options({fix})  # {name}: {'the ' if instead is None else 'with_polymorphic('}")
    assert sqltrace.diagnose(read(mended, attribute, kind)) == []


@pytest.mark.parametrize(
    "query",
    [
        DEPARTMENTS.options(selectinload(STAFF.Department.staff)),
        DEPARTMENTS.options(selectinload(STAFF.Department.staff.of_type(STAFF.Manager))),
        DEPARTMENTS.options(selectinload(STAFF.Department.staff).selectin_polymorphic([STAFF.Manager])),
        DEPARTMENTS.join(STAFF.Department.staff).options(orm.contains_eager(STAFF.Department.staff)),
    ],
    ids=["base", "of_type", "selectin_polymorphic", "contains_eager"],
)
def test_option_below_a_relationship_of_a_subclass_says_of_which(query):
    found = read_wheels(query)
    for fix in found.values():
        query = pasted(query, fix)

    below = ".options(defaultload(Department.staff).options(selectin_polymorphic(Employee, [Manager]), {}))"
    assert found["Manager.cars"] == below.format("selectinload(Manager.cars)")
    assert found["Car.wheels"].startswith(below.format("defaultload(Manager.cars).selectinload(Car.wheels)"))
    assert read_wheels(query) == {}


def test_option_below_a_relationship_of_a_subclass_that_was_asked_for_is_one_of_that():
    found, query = read_wheels(EMPLOYEES), EMPLOYEES
    for fix in found.values():
        query = pasted(query, fix)

    assert found["Car.wheels"].startswith(".options(defaultload(Manager.cars).selectinload(Car.wheels))")
    assert read_wheels(query) == {}


@pytest.mark.parametrize(
    ("attribute", "options"),
    [
        ("cars", "selectin_polymorphic(everybody_alias, [Manager]), selectinload(Manager.cars)"),
        ("budget", "selectin_polymorphic(everybody_alias, [Boss, Manager])"),
    ],
)
def test_what_a_relationship_to_an_alias_leaves_out_is_named_below_that(attribute, options):
    staff = staffs.mapping()
    alias, department = orm.aliased(staff.Employee), staff.Department
    department.everybody = orm.relationship(alias, primaryjoin=alias.department_id == department.id, viewonly=True)
    query = select(department).options(selectinload(department.everybody))

    [finding] = sqltrace.diagnose(read(query, attribute, "Manager", staff, key="everybody"))
    mended = eval(f"query{finding.fix}", {**vars(orm), **vars(staff), "query": query, "everybody_alias": alias})

    assert finding.fix == (
        f".options(defaultload(Department.everybody).options({options}))"
        "  # everybody_alias: the aliased(Employee) of Department.everybody"
    )
    assert sqltrace.diagnose(read(mended, attribute, "Manager", staff, key="everybody")) == []


def test_option_below_a_relationship_of_a_subclass_is_one_of_the_class_that_get_asks_for():
    def get(session, everybody):
        for one in everybody:
            session.expunge(one)
            found = session.get(STAFF.Employee, one.id)
            for car in getattr(found, "cars", ()):
                assert car.wheels == []

    recording = read(EMPLOYEES, "id", prepare=get)
    [fix] = [one.fix for one in sqltrace.diagnose(recording) if one.relationship == "Car.wheels"]

    assert fix.startswith(".options(defaultload(Manager.cars).selectinload(Car.wheels))  # of ")


def test_tree_of_a_subclass_is_loaded_level_by_level():
    class Base(orm.DeclarativeBase):
        pass

    class Node(Base):
        __tablename__ = "nodes"
        id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
        kind: orm.Mapped[str]
        above: orm.Mapped[int | None] = orm.mapped_column(ForeignKey("nodes.id"))
        __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "leaf"}

    class Branch(Node):
        nodes: orm.Mapped[list[Node]] = orm.relationship()
        __mapper_args__ = {"polymorphic_identity": "branch"}

    def grow(levels):
        return Branch(nodes=[grow(levels - 1), grow(levels - 1), Node()]) if levels else Node()

    def count(node):
        return 1 + sum(map(count, getattr(node, "nodes", ())))

    def read(query):
        with sqltrace.record() as recording, Session(engine) as session:
            counts = [count(node) for node in session.scalars(query)]
        return sqltrace.diagnose(recording), recording.statement_count, counts

    engine = create_engine("sqlite://", poolclass=StaticPool)
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        session.add(grow(5))
        session.commit()
    query = select(Node).where(Node.above.is_(None))

    [finding], before, nodes = read(query)
    mended = eval(f"query{finding.fix}", {**vars(orm), "query": query, "Node": Node, "Branch": Branch})
    findings, after, found = read(mended)
    engine.dispose()

    assert (findings, found) == ([], nodes)
    assert 2 * after < before


def test_join_of_a_subclass_below_an_alias_is_left_out_at_that():
    joining = staffs.mapping("joined")
    alias = orm.with_polymorphic(joining.Employee, [joining.Manager], flat=True)
    query = select(joining.Department).options(selectinload(joining.Department.staff.of_type(alias)))
    rules = [partial(eager_join, tables=1, values=1)]

    [finding] = sqltrace.diagnose(read(query, "id", staff=joining), rules)
    mended = eval(f"query{finding.fix}", {**vars(orm), **vars(joining), "query": query, "staff_alias": alias})

    assert finding.fix.startswith(
        ".options(defaultload(Department.staff.of_type(staff_alias)).lazyload(staff_alias.Manager.cars))"
    )
    assert sqltrace.diagnose(read(mended, "id", staff=joining), rules) == []


JOINING = staffs.mapping("joined", with_polymorphic="*")
STAFF_OF_ALL = JOINING.Department.staff


@pytest.mark.parametrize(
    ("query", "way"),
    [
        (select(JOINING.Department), "defaultload(Department.staff.of_type(Manager)).{}"),
        (
            select(JOINING.Department).options(orm.joinedload(STAFF_OF_ALL)),
            "defaultload(Department.staff.of_type(Manager)).{}",
        ),
        (
            select(JOINING.Department).join(STAFF_OF_ALL).options(orm.contains_eager(STAFF_OF_ALL)),
            "defaultload(Department.staff).options(selectin_polymorphic(Employee, [Manager]), {})",
        ),
    ],
    ids=["lazy", "joined", "contains_eager"],
)
def test_join_of_a_subclass_below_a_relationship_is_named_by_that(query, way):
    def touch_wheels(session, everybody):
        for one in everybody:
            for car in getattr(one, "cars", ()):
                assert car.wheels == []

    def told(query):
        recording = read(query, "id", staff=JOINING, prepare=touch_wheels)
        return {one.kind: one.fix for one in sqltrace.diagnose(recording, rules)}

    rules = [partial(eager_join, tables=1, values=1), n_plus_one]
    fixes = told(query)
    left_out, loaded = (told(pasted(query, fixes[kind], JOINING)) for kind in ("eager_join", "n_plus_one"))

    assert fixes["eager_join"].startswith(f".options({way.format('lazyload(Manager.cars)')})")
    assert fixes["n_plus_one"].startswith(
        f".options({way.format('defaultload(Manager.cars).selectinload(Car.wheels)')})"
    )
    assert "eager_join" not in left_out
    assert "n_plus_one" not in loaded


@pytest.mark.parametrize("attribute", ["department", "cars"])
def test_relationship_of_the_base_is_one_also_after_the_columns_of_a_subclass(attribute):
    def touch_columns(session, everybody):
        for one in everybody:
            assert getattr(one, "yacht", "yes") == "yes"

    recording = read(select(STAFF.Manager), attribute, "Boss", prepare=touch_columns)

    kinds = {"department": "lazy Employee.department", "cars": "lazy Manager.cars"}
    assert kinds[attribute] in origins(recording)


def test_relationship_of_a_subclass_that_may_not_be_loaded():
    query = select(RAISING.Employee)

    [finding] = sqltrace.diagnose(read(query, "cars", staff=RAISING))

    assert finding.kind == "raise_load"
    assert finding.message.startswith(
        'Manager.cars was not loaded, a relationship of a subclass of Employee, and lazy="raise" at tests/staff.py:'
    )
    assert finding.fix == ".options(selectin_polymorphic(Employee, [Manager]), selectinload(Manager.cars))"
    assert sqltrace.diagnose(read(pasted(query, finding.fix, RAISING), "cars", staff=RAISING)) == []


def test_several_subclasses_at_one_line_are_one_finding_and_one_option():
    """SQLAlchemy refuses a second for the same base."""

    def touch_others(session, everybody):
        assert [one.language for one in everybody if isinstance(one, STAFF.Engineer)] == ["Python"] * staffs.EACH

    findings = sqltrace.diagnose(read(EMPLOYEES, "budget", prepare=touch_others))
    fixes = [finding.fix for finding in findings]
    [of_managers] = [finding.message for finding in findings if "budget" in finding.message]

    assert fixes == [".options(selectin_polymorphic(Employee, [Boss, Engineer, Manager]))"] * 2  # at two lines
    assert set(of_managers.partition(", columns of")[0].replace(" and ", ", ").split(", ")) == {
        "Boss.budget", "Boss.yacht", "Manager.budget"
    }  # fmt: skip
    assert ", columns of subclasses of Employee, were loaded by 12 statements, one for each Employee as" in of_managers
    assert sqltrace.diagnose(read(pasted(EMPLOYEES, fixes[0]), "budget", prepare=touch_others)) == []


@pytest.mark.parametrize("is_async", [False, True], ids=["n_plus_one", "missing_greenlet"])
def test_fix_takes_over_from_an_option_for_other_subclasses(is_async):
    query = EMPLOYEES.options(selectin_polymorphic(STAFF.Employee, [STAFF.Manager]))
    touched = "language", "Engineer"

    [finding] = sqltrace.diagnose(asyncio.run(read_async(query, *touched)) if is_async else read(query, *touched))

    assert finding.fix == (
        ".options(selectin_polymorphic(Employee, [Engineer, Manager]))"
        "  # in place of one without Engineer, if there is one"
    )
    assert sqltrace.diagnose(read(pasted(EMPLOYEES, finding.fix), *touched)) == []


def test_fix_below_a_relationship_takes_over_from_an_option_for_other_subclasses():
    staff = selectinload(STAFF.Department.staff)
    query = DEPARTMENTS.options(staff.options(selectin_polymorphic(STAFF.Employee, [STAFF.Manager])))

    [finding] = sqltrace.diagnose(read(query, "language", "Engineer"))

    assert finding.fix == (
        ".options(defaultload(Department.staff).options(selectin_polymorphic(Employee, [Engineer, Manager])))"
        "  # in place of one without Engineer, if there is one"
    )
    mended = pasted(DEPARTMENTS.options(staff), finding.fix)
    assert sqltrace.diagnose(read(mended, "language", "Engineer")) == []


def test_column_of_a_subclass_that_had_expired_is_no_column_that_was_left_out():
    def expire_all(session, everybody):
        session.expire_all()

    def expire_one_attribute(session, everybody):
        for one in everybody:
            if isinstance(one, STAFF.Engineer):
                session.expire(one, ["language"])

    query = EMPLOYEES.options(selectin_polymorphic(STAFF.Employee, [STAFF.Engineer]))

    for prepare, expected in (
        (expire_all, "refresh Engineer(department, department_id, id, kind, language, name) expired by expire"),
        (expire_one_attribute, "refresh Engineer(language)"),
    ):
        assert expected in origins(read(query, "language", "Engineer", prepare=prepare))


def test_column_that_is_left_out_after_everything_had_expired():
    def begin_anew(session, everybody):
        session.expire_all()
        everybody[:] = found(session, EMPLOYEES.execution_options(populate_existing=True))

    recording = read(EMPLOYEES, "language", "Engineer", prepare=begin_anew)

    assert origins(recording) == {"subclass Engineer(language) of Employee"}


def test_relationship_of_a_subclass_that_an_option_loads_wants_no_second_one():
    query = EMPLOYEES.options(selectin_polymorphic(STAFF.Employee, [STAFF.Manager]))

    recording = read(query, "cars")

    [finding] = sqltrace.diagnose(recording)
    assert origins(recording) == {"selectin Manager", "lazy Manager.cars of Employee"}
    assert finding.fix == ".options(selectinload(Manager.cars))"
    assert sqltrace.diagnose(read(pasted(query, finding.fix), "cars")) == []


def test_subclasses_that_the_mapping_joins_are_not_left_out():
    query = select(orm.with_polymorphic(STAFF.Employee, [STAFF.Manager]))

    assert origins(read(query, "cars")) == {"lazy Manager.cars"}
