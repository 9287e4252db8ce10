"""docker/grafana and docker/prometheus: every metric that is drawn is there with its labels, and what is scraped can be."""

import json
import re
from pathlib import Path

import pytest
import yaml

import gateway.app  # noqa: F401 - with all that it is made of, and so every metric
from gateway import metrics
from gateway.edge import routes
from tests.telemetry.registry import registered

DOCKER = Path(__file__).parents[2] / "docker"
COMPOSE = yaml.safe_load((DOCKER / "compose.yml").read_text())
SERVICES = COMPOSE["services"]
DASHBOARD = json.loads((DOCKER / "grafana" / "imaging-gateway.json").read_text())
SCRAPE = yaml.safe_load((DOCKER / "prometheus" / "prometheus.yml").read_text())["scrape_configs"]
REALM = json.loads((DOCKER / "identity" / "realm.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
EXPRESSIONS = [(panel["title"], target["expr"]) for panel in PANELS for target in panel["targets"]]


def known():
    """Each metric, as prometheus_client has it: its kind and its labels."""
    return {name: (kind, set(labels)) for name, (kind, labels) in registered().items()}


def metric_of(sample, all_known):
    """The metric that a sample's name belongs to: a histogram is asked for by its buckets, sum and count."""
    if sample in all_known and all_known[sample][0] != "histogram":
        return sample
    base = re.sub(r"_(bucket|sum|count)$", "", sample)
    assert base in all_known, sample
    assert base != sample, f"{sample} is a histogram"
    assert all_known[base][0] == "histogram", sample
    return base


def test_the_rows_are_there():
    rows = [panel["title"] for panel in DASHBOARD["panels"] if panel["type"] == "row"]
    assert rows == ["Traffic", "Latency", "Nodes", "Cache", "Event loop", "Streaming"]
    assert metrics.requests._name == "gateway_requests"


@pytest.mark.parametrize(("title", "expression"), EXPRESSIONS, ids=[f"{t}-{n}" for n, (t, _) in enumerate(EXPRESSIONS)])
def test_what_a_panel_draws_is_measured(title, expression):
    all_known = known()
    samples = re.findall(r"\b([a-zA-Z_:]\w*)(?:\{([^}]*)\})?(?=[\[\s)}]|$)", expression)
    used = [(name, selector) for name, selector in samples if name.startswith("gateway_")]
    assert used, "nothing is drawn"
    assert set(re.findall(r"\bgateway_\w+", expression)) == {name for name, _ in used}
    allowed = set()
    for name, selector in used:
        metric = metric_of(name, all_known)
        kind, labels = all_known[metric]
        labels = labels | ({"le"} if name.endswith("_bucket") else set())
        allowed |= labels
        assert set(re.findall(r"(\w+)(?:=~|!~|!=|=)\"", selector)) <= labels, f"{title}: {name}"
        assert kind == "gauge" or re.search(rf"rate\({name}(\{{[^}}]*\}})?\[\$__rate_interval\]\)", expression), name
    for listed in re.findall(r"\b(?:by|ignoring|on) \(([\w, ]+)\)", expression):
        assert set(listed.split(", ")) <= allowed, title
    assert expression.count("(") == expression.count(")")
    assert expression.count("{") == expression.count("}")


def test_what_a_legend_names_is_grouped_by():
    for panel in PANELS:
        for target in panel["targets"]:
            named = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            grouped = {
                label for found in re.findall(r"by \(([\w, ]+)\)", target["expr"]) for label in found.split(", ")
            }
            assert named <= grouped, panel["title"]


def test_panels_stand_side_by_side_and_say_what_their_numbers_are():
    taken = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    assert all(panel["fieldConfig"]["defaults"]["unit"] for panel in PANELS)


def test_the_variables_are_of_labels_that_there_are():
    all_known = known()
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            name, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["query"]).groups()
            assert label in all_known[metric_of(name, all_known)][1]
    sources = {str(panel["datasource"]) for panel in PANELS} | {
        str(t["datasource"]) for p in PANELS for t in p["targets"]
    }
    assert sources == {str({"type": "prometheus", "uid": "${datasource}"})}


def test_monitoring_is_a_profile_of_its_own_and_publishes_no_port():
    watching = {name for name, service in SERVICES.items() if service.get("profiles") == ["monitoring"]}
    assert watching == {"prometheus", "grafana"}
    assert not [name for name in watching if "ports" in SERVICES[name]]
    others = [service for name, service in SERVICES.items() if name not in watching]
    assert not [service for service in others if watching & set(service.get("depends_on", ()))]


def test_prometheus_asks_the_gateway_as_a_caller_that_the_issuer_knows():
    (job,) = SCRAPE
    gateway = SERVICES["gateway"]["environment"]
    assert [f"https://{target}" for target in job["static_configs"][0]["targets"]] == [gateway["GATEWAY_PUBLIC_ROOT"]]
    assert job["scheme"] == "https"
    assert job["metrics_path"] in {getattr(route, "path", "") for route in routes.table()}
    asked = job["oauth2"]
    assert asked["token_url"] == gateway["GATEWAY_OIDC_ISSUER"] + "/protocol/openid-connect/token"
    assert asked["client_id"] in {client["clientId"] for client in REALM["clients"]}
    for tls in (job["tls_config"], asked["tls_config"]):
        assert tls == {"ca_file": gateway["GATEWAY_OIDC_CA_BUNDLE"]}
    name = asked["client_secret_file"].removeprefix("/run/secrets/")
    assert name in SERVICES["prometheus"]["secrets"]
    assert COMPOSE["secrets"][name] == {"environment": "VIEWER_SECRET"}


def test_grafana_is_provisioned_with_the_dashboard_and_where_its_numbers_are():
    mounts = dict(volume.split(":")[:2] for volume in SERVICES["grafana"]["volumes"])
    (source,) = yaml.safe_load((DOCKER / "grafana" / "datasource.yml").read_text())["datasources"]
    host = re.fullmatch(r"http://([\w-]+):9090", source["url"])[1]
    assert host in SERVICES
    (provider,) = yaml.safe_load((DOCKER / "grafana" / "dashboards.yml").read_text())["providers"]
    assert Path(mounts["./grafana/imaging-gateway.json"]).parent == Path(provider["options"]["path"])
    assert mounts["./grafana/datasource.yml"].startswith("/etc/grafana/provisioning/datasources/")
    assert mounts["./grafana/dashboards.yml"].startswith("/etc/grafana/provisioning/dashboards/")


def test_the_certificate_is_for_every_name_of_the_proxy():
    names = set(re.findall(r"DNS:([\w.]+)", " ".join(SERVICES["certificate"]["command"])))
    assert names == set(SERVICES["proxy"]["networks"]["inside"]["aliases"])
