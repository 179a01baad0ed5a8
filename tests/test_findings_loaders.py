"""Which loader option suits which query: pasted in, it raises nothing, and there is nothing left to be told."""

import warnings
from functools import reduce

import pytest
from sqlalchemy import ForeignKey, Integer, create_engine, func, insert, orm, select, text, union_all, update
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.orm import (
    DeclarativeBase,
    Load,
    Mapped,
    Session,
    aliased,
    column_property,
    contains_eager,
    defer,
    joinedload,
    lazyload,
    load_only,
    mapped_column,
    raiseload,
    relationship,
    selectinload,
    with_loader_criteria,
)
from sqlalchemy.orm.exc import DetachedInstanceError
from sqlalchemy.pool import StaticPool

import sqltrace
from sqltrace.findings import paths
from tests.scenarios import innermost

pytestmark = pytest.mark.usefixtures("no_faults")


class Base(DeclarativeBase):
    pass


class Customer(Base):
    __tablename__ = "loaders_customers"
    id: Mapped[int] = mapped_column(primary_key=True)
    orders: Mapped[list["Order"]] = relationship(back_populates="customer")


class Order(Base):
    __tablename__ = "loaders_orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    customer_id: Mapped[int] = mapped_column(ForeignKey(Customer.id))
    state: Mapped[str] = mapped_column(default="new")
    customer: Mapped[Customer] = relationship(back_populates="orders")
    items: Mapped[list["Item"]] = relationship()


class Item(Base):
    __tablename__ = "loaders_items"
    id: Mapped[int] = mapped_column(primary_key=True)
    order_id: Mapped[int] = mapped_column(ForeignKey(Order.id))
    product_id: Mapped[int] = mapped_column(ForeignKey("loaders_products.id"))
    product: Mapped["Product"] = relationship()


class Product(Base):
    __tablename__ = "loaders_products"
    id: Mapped[int] = mapped_column(primary_key=True)


class Page(Base):
    __tablename__ = "loaders_pages"
    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str] = mapped_column(deferred=True, deferred_group="long")
    notes: Mapped[str] = mapped_column(deferred=True, deferred_group="long")


class Part(Base):
    __tablename__ = "loaders_parts"
    id: Mapped[int] = mapped_column(primary_key=True)
    whole_id: Mapped[int | None] = mapped_column(ForeignKey("loaders_parts.id"))
    parts: Mapped[list["Part"]] = relationship(back_populates="whole")
    whole: Mapped["Part | None"] = relationship(back_populates="parts", remote_side="Part.id")
    labels: Mapped[list["Label"]] = relationship()


class Label(Base):
    __tablename__ = "loaders_labels"
    id: Mapped[int] = mapped_column(primary_key=True)
    part_id: Mapped[int] = mapped_column(ForeignKey(Part.id))


class Machine(Base):
    __tablename__ = "loaders_machines"
    id: Mapped[int] = mapped_column(primary_key=True)
    part_id: Mapped[int] = mapped_column(ForeignKey(Part.id))
    part: Mapped[Part] = relationship()


Machine.labels = column_property(select(func.count(Label.id)).where(Label.part_id == Machine.part_id).scalar_subquery())
TWELVE = range(1, 13)
ROWS = {
    Customer: [{"id": n} for n in TWELVE],
    Order: [{"id": n, "customer_id": n} for n in TWELVE],
    Product: [{"id": n} for n in TWELVE],
    Part: [{"id": n, "whole_id": n // 2 or None} for n in range(1, 256)],  # eight levels
    Label: [{"part_id": n} for n in range(1, 256)],
    Page: [{"text": "", "notes": ""} for _ in TWELVE],
    Machine: [{"part_id": 1}],
    Item: [{"order_id": n, "product_id": n} for n in TWELVE],
}


def fill(engine):
    Base.metadata.create_all(engine)
    with engine.begin() as connection:
        for owner, rows in ROWS.items():
            connection.execute(insert(owner), rows)


@pytest.fixture(scope="module")
def engine():
    engine = create_engine("sqlite://", poolclass=StaticPool)
    fill(engine)
    yield engine
    engine.dispose()


def findings(engine, query, touch):
    with sqltrace.record() as recording, Session(engine) as session:
        for found in session.scalars(query).unique().all():
            touch(found)
        session.rollback()
    return sqltrace.diagnose(recording)


NAMES = {**vars(orm), **{cls.__name__: cls for cls in (Customer, Order, Item, Product, Page, Part, Machine)}}


def paste(fix, query):
    return eval(f"query{fix}", {**NAMES, "query": query, "part_alias": part_alias})


@pytest.fixture
def locking_engine(postgres_url):
    engine = create_engine(postgres_url.set(drivername="postgresql+psycopg"))
    fill(engine)
    yield engine
    Base.metadata.drop_all(engine)
    engine.dispose()


@pytest.mark.postgresql
@pytest.mark.parametrize("lock", [{}, {"read": True}], ids=["update", "share"])
def test_query_that_locks_gets_no_join(locking_engine, lock):
    query = select(Order).with_for_update(**lock)

    [finding] = findings(locking_engine, query, lambda order: order.customer.id)
    after = findings(locking_engine, paste(finding.fix, query), lambda order: order.customer.id)

    assert finding.fix == ".options(selectinload(Order.customer))"
    assert after == []


@pytest.mark.parametrize(
    "query",
    [
        select(Order).from_statement(text("SELECT * FROM loaders_orders")),
        select(Order).from_statement(union_all(select(Order).where(Order.id < 7), select(Order).where(Order.id > 6))),
        select(Order).from_statement(select(Order).order_by(Order.id)),
        insert(Order).values([{"customer_id": n, "state": "new"} for n in TWELVE]).returning(Order),
        update(Order).values(state="sent").returning(Order),
    ],
    ids=["text", "union", "select", "insert", "update"],
)
def test_statement_that_takes_no_join_gets_none(engine, query):
    [finding] = findings(engine, query, lambda order: order.customer.id)
    with warnings.catch_warnings(action="error"):
        after = findings(engine, paste(finding.fix, query), lambda order: order.customer.id)

    assert finding.fix == ".options(selectinload(Order.customer))"
    assert after == []


ITEMS = aliased(Item)


@pytest.mark.parametrize(
    "query",
    [
        select(Order).join(Order.items).options(contains_eager(Order.items)),
        select(Order).join(Order.items.of_type(ITEMS)).options(contains_eager(Order.items.of_type(ITEMS))),
        select(Order).join(ITEMS, Order.items).options(contains_eager(Order.items, alias=ITEMS)),
    ],
    ids=["class", "of an alias", "alias"],
)
def test_option_below_what_a_query_contains_names_the_way(engine, query):
    [finding] = findings(engine, query, lambda order: order.items[0].product.id)
    after = findings(engine, paste(finding.fix, query), lambda order: order.items[0].product.id)

    assert finding.fix == ".options(defaultload(Order.items).joinedload(Item.product))"
    assert after == []


def test_option_below_what_contains_something_itself_names_the_whole_way(engine):
    query = select(Customer).join(Customer.orders).join(Order.items)
    query = query.options(contains_eager(Customer.orders).contains_eager(Order.items))

    [finding] = findings(engine, query, lambda customer: customer.orders[0].items[0].product.id)
    after = findings(engine, paste(finding.fix, query), lambda customer: customer.orders[0].items[0].product.id)

    assert finding.fix == (".options(defaultload(Customer.orders).defaultload(Order.items).joinedload(Item.product))")
    assert after == []


def down(part):
    return [down(other) for other in part.parts]


def down_to_labels(part):
    return len(part.labels), [down_to_labels(other) for other in part.parts]


def up(part):
    while part is not None:
        part = part.whole


part_alias = aliased(Part)
ROOT, LEAF = select(Part).where(Part.id == 1), select(Part).where(Part.id == 128)


@pytest.mark.parametrize(
    ("query", "touch", "fix"),
    [
        (ROOT, down, ".options(selectinload(Part.parts, recursion_depth=-1))"),
        (LEAF, up, ".options(selectinload(Part.whole, recursion_depth=-1))"),
        (
            select(Machine),
            lambda machine: down(machine.part),
            ".options(defaultload(Machine.part).selectinload(Part.parts, recursion_depth=-1))",
        ),
        (
            select(part_alias).where(part_alias.id == 1),
            down,
            ".options(selectinload(part_alias.parts, recursion_depth=-1))",
        ),
    ],
    ids=["down", "up", "below another", "of an alias"],
)
def test_levels_of_a_tree_are_loaded_by_one_option(engine, query, touch, fix):
    [finding] = findings(engine, query, touch)
    after = findings(engine, paste(finding.fix, query), touch)

    assert finding.fix.partition("  #")[0] == fix
    assert after == []


def test_tree_that_is_walked_at_many_lines_has_no_more_ways_for_that(engine, monkeypatch):
    walkers, ways, join_of = [], [], paths._join_of
    line = "walkers.append(lambda part: [walkers[other.id % 20](other) for other in part.parts])\n"
    exec(compile(20 * line, __file__, "exec"), {"walkers": walkers})
    monkeypatch.setattr(paths, "_join_of", lambda *about: (ways.append(about), join_of(*about))[1])

    [finding] = findings(engine, ROOT, walkers[0])

    assert finding.fix.startswith(".options(selectinload(Part.parts, recursion_depth=-1))")
    assert len(ways) < 20


def test_levels_above_what_get_has_found_are_said_to_take_a_statement_each(engine):
    with sqltrace.record() as recording, Session(engine) as session:
        up(session.get(Part, 128))

    [finding] = sqltrace.diagnose(recording)

    assert finding.fix == (
        "session.get(Part, …, options=[selectinload(Part.whole, recursion_depth=-1)])"
        "  # session.merge() takes them, too"
        "  # a statement for each level; a recursive CTE is one for all"
    )


def test_what_belongs_to_the_levels_of_a_tree_is_loaded_with_them(engine):
    query, rounds = ROOT, 0
    while told := findings(engine, query, down_to_labels):
        for finding in told:
            query = paste(finding.fix, query)
        rounds += 1

    assert rounds == 1


@pytest.mark.parametrize(
    ("loader", "option"),
    [
        ("selectinload", selectinload(Part.parts)),
        ("joinedload", joinedload(Part.parts)),
        ("joinedload", reduce(lambda above, _: above.joinedload(Part.parts), range(6), joinedload(Part.parts))),
    ],
    ids=["selectin", "joined", "joined but for the last"],
)
def test_level_that_an_option_loads_is_told_to_be_replaced(engine, loader, option):
    [finding] = findings(engine, ROOT.options(option), down)
    after = findings(engine, paste(finding.fix, ROOT), down)

    assert finding.fix == (
        ".options(selectinload(Part.parts, recursion_depth=-1))"
        "  # a statement for each level; a recursive CTE is one for all"
        f"  # in place of {loader}(Part.parts), if the query has that"
    )
    assert after == []


@pytest.mark.parametrize("loader", [selectinload, joinedload])
def test_next_level_that_could_not_be_loaded_wants_all_levels(engine, loader):
    def touch_closed(query):
        with sqltrace.record() as recording:
            with Session(engine) as session:
                part = session.scalars(query).unique().one()
            try:
                down(part)
            except DetachedInstanceError:
                pass
        return sqltrace.diagnose(recording)

    [finding] = touch_closed(ROOT.options(loader(Part.parts)))
    after = touch_closed(paste(finding.fix, ROOT))

    assert finding.fix == (
        ".options(selectinload(Part.parts, recursion_depth=-1))"
        "  # a statement for each level; a recursive CTE is one for all"
        f"  # in place of {loader.__name__}(Part.parts), if the query has that"
    )
    assert after == []


@pytest.mark.parametrize(
    ("option", "touch", "loader", "note"),
    [
        (
            lazyload(Order.items),
            lambda order: len(order.items),
            "selectinload(Order.items)",
            "  # in place of lazyload(Order.items)",
        ),
        (
            lazyload(Order.items.and_(Item.id > 0)),
            lambda order: len(order.items),
            "selectinload(Order.items)",
            "  # in place of lazyload(Order.items.and_(…)), with its and_(…)",
        ),
        (lazyload("*"), lambda order: len(order.items), "selectinload(Order.items)", ""),
        (selectinload(Order.customer), lambda order: len(order.items), "selectinload(Order.items)", ""),
        (with_loader_criteria(Item, Item.id > 0), lambda order: len(order.items), "selectinload(Order.items)", ""),
        (defer(Order.state), lambda order: order.state, "undefer(Order.state)", "  # in place of defer(Order.state)"),
        (load_only(Order.id), lambda order: order.state, "undefer(Order.state)", ""),
    ],
    ids=["lazyload", "criteria", "wildcard", "another", "of the class", "defer", "load_only"],
)
def test_option_that_leaves_something_for_later_is_replaced_if_it_names_that(engine, option, touch, loader, note):
    query = select(Order).options(option)

    [finding] = findings(engine, query, touch)
    after = findings(engine, paste(finding.fix, select(Order) if note else query), touch)

    assert finding.fix == f".options({loader}){note}"
    assert after == []
    if note:
        with pytest.raises(InvalidRequestError):
            findings(engine, paste(finding.fix, query), touch)


@pytest.mark.parametrize(
    ("option", "touch", "loader"),
    [
        (raiseload("*"), lambda order: order.customer, "joinedload(Order.customer)"),
        (Load(Order).raiseload("*"), lambda order: order.customer, "joinedload(Order.customer)"),
        (load_only(Order.id, raiseload=True), lambda order: order.state, "undefer(Order.state)"),
    ],
    ids=["wildcard", "of a class", "load_only"],
)
def test_option_that_forbids_all_needs_not_be_replaced(engine, option, touch, loader):
    def told(query):
        with sqltrace.record() as recording, Session(engine) as session:
            order = session.scalars(query).unique().first()
            try:
                touch(order)
            except InvalidRequestError:
                pass
        return sqltrace.diagnose(recording)

    [finding] = told(select(Order).options(option))
    after = told(paste(finding.fix, select(Order).options(option)))

    assert finding.fix == f".options({loader})"
    assert after == []


def test_option_of_what_was_loaded_at_another_line_says_of_which_query(engine):
    query = select(Order)

    def touch(order):
        for item in order.items:
            item.product.id

    by_line = {finding.relationship: finding for finding in findings(engine, query, touch)}
    for finding in by_line.values():
        query = paste(finding.fix, query)

    items, products = by_line["Order.items"], by_line["Item.product"]
    assert items.fix == ".options(selectinload(Order.items))"
    assert products.fix == (
        f".options(defaultload(Order.items).joinedload(Item.product))  # of the {items.parents}"
        "  # together with the fix for Order.items"
    )
    assert innermost(items.parents).endswith("in findings")
    assert innermost(products.parents).endswith("touch")
    assert findings(engine, query, touch) == []


def test_option_below_what_is_loaded_one_by_one_says_that_alone_it_is_not_enough(engine):
    def touch(order):
        if order.id % 2:
            for item in order.items:
                item.product.id

    by_line = {finding.relationship: finding.fix for finding in findings(engine, select(Order), touch)}

    assert by_line["Order.items"] == ".options(selectinload(Order.items))"
    assert by_line["Item.product"].endswith("  # together with the fix for Order.items")


def test_columns_that_are_loaded_together_are_told_as_several(engine):
    [finding] = findings(engine, select(Page), lambda page: page.text)
    after = findings(engine, paste(finding.fix, select(Page)), lambda page: page.text)

    assert finding.message.startswith("Page.notes and Page.text were loaded by 12 statements, one for each Page")
    assert after == []


def test_subqueries_of_a_select_are_not_named_as_statements(engine):
    with sqltrace.record() as recording, Session(engine) as session:
        for number in TWELVE:
            session.get(Machine, number)

    [finding] = sqltrace.diagnose(recording)

    assert finding.message.startswith("SELECT loaders_labels loaders_machines ran 12 times at the same line")


def test_query_that_is_too_far_above_is_not_named(engine):
    class Other(DeclarativeBase):
        pass

    def level(number):
        columns = {"id": mapped_column(Integer, primary_key=True)}
        if number:
            columns["above_id"] = mapped_column(ForeignKey(f"loaders_level_{number - 1}.id"))
        names = {"__tablename__": f"loaders_level_{number}", **columns}
        if number < 8:
            names["below"] = relationship(f"Level{number + 1}")
        return type(f"Level{number}", (Other,), names)

    levels = [level(number) for number in range(9)]
    Other.metadata.create_all(engine)
    with engine.begin() as connection:
        for number, cls in enumerate(levels):
            connection.execute(insert(cls), [{"id": n, **({"above_id": n} if number else {})} for n in range(5)])

    def touch(found):
        for _ in levels[1:]:
            [found] = found.below

    told = {finding.relationship: finding.fix for finding in findings(engine, select(levels[0]), touch)}

    assert len(told) == 8
    assert "  # of the SELECT loaders_level_0 at " in told["Level5.below"]
    assert "  # of the" not in told["Level7.below"]
