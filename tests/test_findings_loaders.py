"""Which loader option suits which query: pasted in, it raises nothing, and there is nothing left to be told."""

import warnings

import pytest
from sqlalchemy import ForeignKey, create_engine, insert, orm, select, text, union_all, update
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, aliased, contains_eager, mapped_column, relationship
from sqlalchemy.pool import StaticPool

import sqltrace

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


TWELVE = range(1, 13)
ROWS = {
    Customer: [{"id": n} for n in TWELVE],
    Order: [{"id": n, "customer_id": n} for n in TWELVE],
    Product: [{"id": n} for n in TWELVE],
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


NAMES = {**vars(orm), **{cls.__name__: cls for cls in (Customer, Order, Item, Product)}}


def paste(fix, query):
    return eval(f"query{fix}", {**NAMES, "query": query})


@pytest.mark.postgresql
@pytest.mark.parametrize("lock", [{}, {"read": True}], ids=["update", "share"])
def test_query_that_locks_gets_no_join(postgres_url, lock):
    engine = create_engine(postgres_url.set(drivername="postgresql+psycopg"))
    fill(engine)
    query = select(Order).with_for_update(**lock)

    [finding] = findings(engine, query, lambda order: order.customer.id)
    after = findings(engine, paste(finding.fix, query), lambda order: order.customer.id)
    Base.metadata.drop_all(engine)
    engine.dispose()

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
