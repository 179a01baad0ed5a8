import logging
import threading

from sqltrace.faults import forget_faults, logger, report_fault


def fail(where, error):
    try:
        raise error
    except Exception as fault:
        report_fault(where, fault)


def test_fault_is_reported_once_per_place_and_class(caplog):
    for _ in range(3):
        fail("here", ValueError("first"))
        fail("here", KeyError("second"))
        fail("there", ValueError("third"))

    assert [record.message for record in caplog.records] == [
        "here failed and is skipped; the application is not affected",
        "here failed and is skipped; the application is not affected",
        "there failed and is skipped; the application is not affected",
    ]
    assert {record.levelname for record in caplog.records} == {"ERROR"}
    assert caplog.records[0].exc_info[1].args == ("first",)


def test_forgotten_fault_is_reported_anew(caplog):
    fail("here", ValueError())
    forget_faults()

    fail("here", ValueError())

    assert len(caplog.records) == 2


def test_logging_handler_that_raises_does_not_reach_the_application():
    class Broken(logging.Handler):
        def emit(self, record):
            raise RuntimeError("the application's handler")

    handler = Broken()
    logger.addHandler(handler)
    try:
        fail("here", ValueError())
    finally:
        logger.removeHandler(handler)


def test_fault_of_a_finalizer_while_another_is_reported_is_reported_too(caplog):
    class Place(str):
        __slots__ = ()

        def __hash__(self):
            report_fault("the finalizer", KeyError())
            return super().__hash__()

    reporting = threading.Thread(target=report_fault, args=(Place("here"), ValueError()), daemon=True)
    reporting.start()
    reporting.join(10)

    assert not reporting.is_alive()
    assert [record.message.split(" failed")[0] for record in caplog.records] == ["the finalizer", "here"]
