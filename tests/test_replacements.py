from contextlib import contextmanager
from functools import wraps
from threading import RLock

import pytest
import sqlalchemy.orm  # noqa: F401 - imported, as `ORMReplacements` asks

from sqltrace.capture.replacements import ORMReplacements, Replacements


@pytest.fixture
def owner():
    class Owner:
        def method(self):
            return []

    return Owner


def named(name):
    def wrapper(original):
        @wraps(original)
        def method(self):
            return [name, *original(self)]

        return method

    return wrapper


def replace_by_theirs(owner):
    owner.method = named("theirs")(owner.method)


def test_method_is_put_back(owner):
    replacements, original = Replacements(), owner.method

    replacements.replace(owner, "method", named("ours"))
    assert (bool(replacements), owner().method()) == (True, ["ours"])
    replacements.undo()

    assert (bool(replacements), owner.method) == (False, original)


def test_method_that_was_inherited_is_inherited_again(owner):
    class Heir(owner):
        pass

    replacements = Replacements()

    replacements.replace(Heir, "method", named("ours"))
    assert Heir().method() == ["ours"]
    replacements.undo()

    assert "method" not in vars(Heir)


def test_ours_under_the_wrapper_of_somebody_else_stays_and_is_not_put_there_twice(owner):
    replacements, original = Replacements(), owner.method
    replacements.replace(owner, "method", named("ours"))
    ours = owner.method
    replace_by_theirs(owner)

    for _ in range(2):
        replacements.undo()
        replacements.replace(owner, "method", named("ours"))
        assert owner().method() == ["theirs", "ours"]

    owner.method = ours
    replacements.undo()
    assert owner.method is original


def test_ours_comes_again_where_somebody_else_took_it_out(owner):
    replacements, original = Replacements(), owner.method
    replacements.replace(owner, "method", named("ours"))
    replace_by_theirs(owner)
    replacements.undo()
    owner.method = original

    replacements.replace(owner, "method", named("ours"))

    assert owner().method() == ["ours"]


def test_two_threads_that_find_the_orm_imported_at_once_replace_once(owner):
    def make(replacements):
        made.append(owner)
        replacements.replace(owner, "method", named("ours"))

    @contextmanager
    def lock_that_the_other_has_first():
        replaced._lock = RLock()
        replaced.install_when_imported()
        yield

    made, replaced = [], ORMReplacements(make)
    replaced._wanted = True
    replaced._lock = lock_that_the_other_has_first()

    replaced.install_when_imported()

    assert (made, owner().method()) == ([owner], ["ours"])
