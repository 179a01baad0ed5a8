"""
A mapping with subclasses, and a database with a department of six of each: for what a query of the base leaves out.

`Manager` has a table of its own and `Boss` below it another, `Engineer` shares that of `Employee`.
"""

from types import SimpleNamespace

from sqlalchemy import ForeignKey, String
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship

EACH = 6


def mapping(lazy="select", with_polymorphic=None):
    """
    Classes `Department`, `Employee`, `Manager`, `Boss`, `Engineer`, `Car`, `Wheel`.

    Args:
        lazy: Of `Manager.cars`.
        with_polymorphic: Of `Employee`.
    """

    class Base(DeclarativeBase):
        pass

    class Department(Base):
        __tablename__ = "departments"
        id: Mapped[int] = mapped_column(primary_key=True)
        staff: Mapped[list["Employee"]] = relationship(back_populates="department")

    class Employee(Base):
        __tablename__ = "employees"
        id: Mapped[int] = mapped_column(primary_key=True)
        kind: Mapped[str] = mapped_column(String(20))
        name: Mapped[str] = mapped_column(String(20), default="name")
        department_id: Mapped[int] = mapped_column(ForeignKey("departments.id"))
        department: Mapped[Department] = relationship(back_populates="staff")
        __mapper_args__ = {
            "polymorphic_on": "kind",
            "polymorphic_identity": "employee",
            "with_polymorphic": with_polymorphic,
        }

    class Manager(Employee):
        __tablename__ = "managers"
        id: Mapped[int] = mapped_column(ForeignKey("employees.id"), primary_key=True)
        budget: Mapped[int] = mapped_column(default=1)
        notes: Mapped[str] = mapped_column(String(20), default="long", deferred=True)
        cars: Mapped[list["Car"]] = relationship(lazy=lazy)
        __mapper_args__ = {"polymorphic_identity": "manager"}

    class Boss(Manager):
        __tablename__ = "bosses"
        id: Mapped[int] = mapped_column(ForeignKey("managers.id"), primary_key=True)
        yacht: Mapped[str] = mapped_column(String(20), default="yes")
        __mapper_args__ = {"polymorphic_identity": "boss"}

    class Engineer(Employee):
        language: Mapped[str | None] = mapped_column(String(20), default="Python")
        __mapper_args__ = {"polymorphic_identity": "engineer"}

    class Car(Base):
        __tablename__ = "cars"
        id: Mapped[int] = mapped_column(primary_key=True)
        manager_id: Mapped[int] = mapped_column(ForeignKey("managers.id"))
        wheels: Mapped[list["Wheel"]] = relationship()

    class Wheel(Base):
        __tablename__ = "wheels"
        id: Mapped[int] = mapped_column(primary_key=True)
        car_id: Mapped[int] = mapped_column(ForeignKey("cars.id"))

    return SimpleNamespace(
        Base=Base,
        Department=Department,
        Employee=Employee,
        Manager=Manager,
        Boss=Boss,
        Engineer=Engineer,
        Car=Car,
        Wheel=Wheel,
    )


def fill(connection, staff):
    staff.Base.metadata.create_all(connection)
    with Session(connection) as session:
        managers = [kind(cars=[staff.Car()]) for kind in (staff.Manager, staff.Boss) for _ in range(EACH)]
        session.add(staff.Department(staff=[*managers, *(staff.Engineer() for _ in range(EACH))]))
        session.commit()
    connection.commit()
