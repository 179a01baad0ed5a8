"""What leaves over OTLP/HTTP arrives whole at a receiver that is nobody's of ours."""

import asyncio

import pytest
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import SimpleLogRecordProcessor
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from starlette.testclient import TestClient

from tests.databases import free_port
from tests.telemetry import plain, traced

oteltap = pytest.importorskip("oteltap")
traces = pytest.importorskip("opentelemetry.exporter.otlp.proto.http.trace_exporter")
logs = pytest.importorskip("opentelemetry.exporter.otlp.proto.http._log_exporter")


async def received(port, send):
    """The spans of a request, and its log record, that `send` makes come in."""
    settings = oteltap.OtelTapHttpProtobufReceiverSettings(http_port=port)
    async with oteltap.OtelTapHttpProtobufReceiver(settings) as receiver:
        log = asyncio.create_task(receiver.await_log(lambda record: True, 30))
        taken = asyncio.create_task(take_request(receiver.stream_traces()))
        await asyncio.sleep(0)  # it hears what comes from then on
        await asyncio.to_thread(send)
        return await asyncio.wait_for(taken, 30), await log


async def take_request(stream):
    """All up to the server span, which ends last. On a slow machine there is one of the connection, too."""
    spans = [await anext(stream)]
    while spans[-1].parent_span_id:
        spans.append(await anext(stream))
    return spans


def simple(attributes):
    """Attributes of a protobuf message as Python's."""
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in attributes}


def test_spans_and_the_log_line_arrive_whole(memory_engine, tracing):
    port = free_port()
    exporter = traces.OTLPSpanExporter(f"http://127.0.0.1:{port}/v1/traces")
    tracing.provider.add_span_processor(SimpleSpanProcessor(exporter))
    logger_provider = LoggerProvider()
    exporter = logs.OTLPLogExporter(f"http://127.0.0.1:{port}/v1/logs")
    logger_provider.add_log_record_processor(SimpleLogRecordProcessor(exporter))
    app = traced(plain, memory_engine, tracing.provider, logger_provider=logger_provider, log_line=True)

    arrived, log = asyncio.run(received(port, lambda: TestClient(app).get("/many/20?sig=a")))

    assert len(arrived) >= 5
    sent = {span.context.span_id: span for span in tracing.spans()}
    assert sorted(sent) == sorted(int.from_bytes(span.span_id, "big") for span in arrived)
    for span in arrived:
        original = sent[int.from_bytes(span.span_id, "big")]
        assert span.name == original.name
        assert int.from_bytes(span.parent_span_id, "big") == (original.parent.span_id if original.parent else 0)
        assert (span.start_time_unix_nano, span.end_time_unix_nano) == (original.start_time, original.end_time)
        assert simple(span.attributes) == dict(original.attributes)
    assert log.event_name == "sqltrace.request"
    assert int.from_bytes(log.span_id, "big") in sent
    assert log.time_unix_nano > 0
    assert simple(log.attributes)["sql.count"] == 20
    logger_provider.shutdown()
