"""The dashboard, the alerts, the Collector and the compose file agree with each other and with what the package emits."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from opentelemetry.metrics import NoOpMeter

from sqltrace.sinks.opentelemetry.metrics import RequestMetrics

yaml = pytest.importorskip("yaml")

HERE = Path(__file__).parent.parent / "example_app" / "observability"
DASHBOARD = json.loads((HERE / "grafana_dashboard.json").read_text(encoding="utf-8"))
ALERTS, COLLECTOR, COMPOSE = (
    yaml.safe_load((HERE / name).read_text(encoding="utf-8"))
    for name in ("prometheus_alerts.yaml", "collector.yaml", "compose.yaml")
)
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
RULES = [rule for group in ALERTS["groups"] for rule in group["rules"]]
ATTRIBUTES = {
    *("db.system.name", "db.namespace", "db.query.summary", "server.address", "server.port", "error.type"),
    *("db.client.connection.state", "db.client.connection.pool.name"),
    *("http.route", "http.request.method", "http.response.status_code", "url.scheme", "sqltrace.finding.kind"),
}


def in_prometheus(name):
    return name.replace(".", "_")


class Instruments(NoOpMeter):
    """A meter that keeps what it was asked for: kind and unit by name."""

    def __init__(self):
        super().__init__("instruments")
        self.known = {}

    def create_histogram(self, name, unit="", *arguments, **options):
        self.known[name] = "histogram", unit

    def create_counter(self, name, unit="", *arguments):
        self.known[name] = "counter", unit

    def create_observable_up_down_counter(self, name, callbacks=None, unit="", *arguments):
        self.known[name] = "level", unit


def emitted():
    meter = Instruments()
    RequestMetrics(meter)
    return meter.known


METRICS = emitted()


def series():
    """Every series that Prometheus makes of what the package emits."""
    endings = {"histogram": ("_bucket", "_sum", "_count"), "counter": ("_total",), "level": ("",)}
    for name, (kind, unit) in METRICS.items():
        yield from (in_prometheus(name) + {"s": "_seconds"}.get(unit, "") + ending for ending in endings[kind])


def queries():
    """Every PromQL expression, with the place it is from."""
    for panel in PANELS:
        for target in panel["targets"]:
            if target["datasource"]["type"] == "prometheus":
                yield pytest.param(target["expr"], id=f"{panel['title']} {target['refId']}")
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            [selector] = re.findall(r"label_values\((.*), \w+\)", variable["query"]["query"])
            yield pytest.param(selector if "{" in selector else selector + "{}", id=f"variable {variable['name']}")
    for rule in RULES:
        yield pytest.param(rule["expr"], id=rule["alert"])


@pytest.mark.parametrize("expression", list(queries()))
def test_query_names_what_the_package_emits(expression):
    words = set(re.findall(r"([a-z_]+)(?=\{)", expression))
    labels = set(re.findall(r"(\w+)(?:=~|!=|=)\"", expression))
    labels |= {name for names in re.findall(r"\bby \((.*?)\)", expression) for name in names.split(", ")}

    assert words
    assert words - set(series()) == set()
    assert labels - {in_prometheus(name) for name in ATTRIBUTES} - {"job", "instance", "le"} == set()


def test_dashboard_shows_every_metric():
    text = json.dumps(DASHBOARD)

    assert len(METRICS) == 20
    assert [name for name in METRICS if in_prometheus(name) not in text] == []


def test_every_panel_has_a_unit_a_description_and_a_place():
    assert [panel["title"] for panel in PANELS if not panel["fieldConfig"]["defaults"].get("unit")] == []
    assert [panel["title"] for panel in PANELS if not panel["description"].endswith(".")] == []
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in DASHBOARD["panels"])
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(cells) == len(set(cells))
    assert {x for x, _ in cells} == set(range(24))


def test_websockets_whose_times_are_those_of_all_their_life_are_in_no_mean_of_requests():
    means = [
        (panel["title"], target["expr"])
        for panel in PANELS
        for target in panel["targets"]
        if "sqltrace_request_" in target.get("expr", "")
        and "by (http_route, http_request_method)" not in target["expr"]
    ]

    assert len(means) == 15
    assert [title for title, expression in means if 'http_request_method!=""' not in expression] == []


def test_no_height_of_a_curve_depends_on_how_far_the_range_is_zoomed():
    curves = [target["expr"] for panel in PANELS for target in panel["targets"] if "$__rate_interval" in str(target)]

    assert len(curves) == 20
    assert [expression for expression in curves if "increase(" in expression] == []


def test_methods_of_a_route_are_told_apart():
    series = [
        target["legendFormat"]
        for panel in PANELS
        for target in panel["targets"]
        if "http_route" in target.get("legendFormat", "")
    ]

    assert len(series) == 8
    assert [legend for legend in series if "{{http_request_method}} {{http_route}}" not in legend] == []
    assert [
        rule["alert"] for rule in RULES if "http_route" in rule["expr"].replace("http_request_method, http_route", "")
    ] == []


def test_data_sources_and_filters_are_variables():
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    sources = {name: each["query"] for name, each in variables.items() if each["type"] == "datasource"}

    assert sources == {"prometheus": "prometheus", "tempo": "tempo", "loki": "loki"}
    used = [panel["datasource"] for panel in PANELS] + [
        target["datasource"] for panel in PANELS for target in panel["targets"]
    ]
    assert {(source["type"], source["uid"]) for source in used} == {(kind, f"${{{kind}}}") for kind in sources}
    named = set(re.findall(r"\$(\w+)", " ".join(json.dumps(panel["targets"]) for panel in PANELS)))
    assert named - {"__rate_interval", "__range"} <= set(variables)


def test_fields_that_a_panel_names_are_those_that_its_transformations_make():
    for panel in PANELS:
        steps = panel.get("transformations", ())
        made = {step["options"]["alias"] for step in steps if step["id"] == "calculateField"}
        for step in steps:
            made |= set(step["options"].get("renameByName", {}).values())
        named = {each["matcher"]["options"] for each in panel["fieldConfig"]["overrides"]} if steps else set()
        named |= {each["field"] for step in steps for each in step["options"].get("sort", ())}
        named |= {each["displayName"] for each in panel["options"].get("sortBy", ())}
        assert named <= made, panel["title"]


def test_all_services_are_a_selector_that_loki_takes():
    service = next(variable for variable in DASHBOARD["templating"]["list"] if variable["name"] == "service")

    assert re.fullmatch(service["allValue"], "") is None


@pytest.mark.parametrize("job", ["shop", "eu/shop"])
def test_service_is_found_with_and_without_a_namespace(job):
    service = next(variable for variable in DASHBOARD["templating"]["list"] if variable["name"] == "service")
    [selector] = set(re.findall(r'job=~"(.*?)"', json.dumps(DASHBOARD).replace("\\", "")))

    # Prometheus makes `job` of both; Tempo and Loki know the service by its name alone.
    assert re.search(service["regex"].strip("/"), job)[1] == "shop"
    for chosen in ("shop", "web|shop", service["allValue"]):
        assert re.fullmatch(selector.replace("$service", chosen), job)


def test_slow_requests_without_a_route_are_among_those_of_all_routes():
    [query] = [
        target["query"] for panel in PANELS for target in panel["targets"] if target.get("queryType") == "traceql"
    ]
    [names] = re.findall(r' name=~"(.*?)"', query)
    everything = next(
        variable["allValue"] for variable in DASHBOARD["templating"]["list"] if variable["name"] == "route"
    )
    spans = ["GET /tags/{tag_id}", "GET", "/socket", "WS /socket"]

    assert [span for span in spans if re.fullmatch(names.replace("$route", everything), span)] == spans
    chosen = names.replace("$route", "/tags/{tag_id}|/socket")
    assert [span for span in spans if re.fullmatch(chosen, span)] == ["GET /tags/{tag_id}", "/socket", "WS /socket"]


def test_every_alert_says_how_bad_it_is_and_what_to_do():
    for rule in RULES:
        assert rule["labels"]["severity"] in {"warning", "critical"}
        labels = set(re.findall(r"\$labels\.(\w+)", json.dumps(rule["annotations"])))
        assert rule["annotations"]["summary"]
        assert all(label in rule["expr"] for label in labels)
    assert len({rule["alert"] for rule in RULES}) == len(RULES) == 11


def test_collector_has_a_pipeline_for_each_signal_to_services_of_the_compose_file():
    pipelines = COLLECTOR["service"]["pipelines"]

    assert set(pipelines) == {"traces", "metrics", "logs"}
    for pipeline in pipelines.values():
        for part in ("receivers", "processors", "exporters"):
            assert set(pipeline[part]) <= set(COLLECTOR[part])
    targets = [exporter["endpoint"] for exporter in COLLECTOR["exporters"].values()]
    assert {re.search(r":-http://(\w+):", target)[1] for target in targets} <= set(COMPOSE["services"])


def test_compose_file_mounts_files_and_configurations_that_exist():
    for service in COMPOSE["services"].values():
        assert re.search(r":v?\d+\.\d+\.\d+$", service["image"])
        assert set(service.get("depends_on", ())) <= set(COMPOSE["services"])
        assert {config["source"] for config in service.get("configs", ())} <= set(COMPOSE["configs"])
        assert all((HERE / mount.split(":")[0]).is_file() for mount in service.get("volumes", ()))
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))
    contents = {name: yaml.safe_load(config["content"]) for name, config in COMPOSE["configs"].items()}
    assert {source["uid"] for source in contents["datasources"]["datasources"]} == {"prometheus", "tempo", "loki"}


def test_grafanas_own_library_reads_the_whole_dashboard():
    models = pytest.importorskip("grafana_foundation_sdk.models.dashboard")
    from grafana_foundation_sdk.cog import encoder, plugins

    plugins.register_default_plugins()
    read = models.Dashboard.from_json(DASHBOARD)

    lost = set(leaves(DASHBOARD)) - set(leaves(json.loads(json.dumps(read, cls=encoder.JSONEncoder))))
    # Grafana writes `definition` itself for its own list of variables, and `tableType` for Tempo.
    assert {path for path, _ in lost if path[-1] not in {"definition", "tableType"}} == set()


def leaves(value, path=()):
    """Every plain value with the way to it."""
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(inner, (*path, key))
    else:
        yield path, value


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_route_without_requests_in_the_range_is_left_out(tmp_path):
    labels = 'job="shop",http_request_method="GET",http_route="/quiet",sqltrace_finding_kind="n_plus_one"'
    names = {f"sqltrace_request_{part}" for part in ("statements", "rows")} | {
        f"sqltrace_request_{part}_seconds" for part in ("connection", "database", "objects", "loop_wait", "python")
    }
    series = [f"{name}_{ending}" for name in names for ending in ("sum", "count")] + ["sqltrace_findings_total"]
    expressions = [target["expr"] for panel in PANELS for target in panel["targets"] if target.get("instant")]
    for name, value in {"$__range": "15m", "$service": ".+", "$route": ".*"}.items():
        expressions = [expression.replace(name, value) for expression in expressions]
    test = {
        "interval": "30s",
        "input_series": [{"series": f"{name}{{{labels}}}", "values": "7x60"} for name in series],
        "promql_expr_test": [{"expr": each, "eval_time": "20m", "exp_samples": []} for each in expressions],
    }
    (tmp_path / "quiet.yaml").write_text(json.dumps({"rule_files": [], "tests": [test]}), encoding="utf-8")

    command = ["promtool", "test", "rules", "quiet.yaml"]
    process = subprocess.run(command, cwd=tmp_path, capture_output=True, encoding="utf-8", check=False, timeout=60)

    assert len(expressions) == 16
    assert (process.returncode, process.stderr) == (0, "")


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_each_alert_is_told_with_a_reason_and_none_without():
    command = ["promtool", "test", "rules", "prometheus_alerts_test.yaml"]
    process = subprocess.run(command, cwd=HERE, capture_output=True, encoding="utf-8", check=False, timeout=60)

    assert (process.returncode, process.stderr) == (0, "")
    tested = yaml.safe_load((HERE / "prometheus_alerts_test.yaml").read_text(encoding="utf-8"))["tests"][0]
    told = [sample["labels"] for sample in tested["promql_expr_test"][0]["exp_samples"]]
    assert told == sorted(f'{{alertname="{rule["alert"]}"}}' for rule in RULES)
