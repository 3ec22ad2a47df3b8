"""The Kubernetes example against the published schemas, and against the images and metrics it names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from lychee_server.settings import ENV_PREFIX, Settings, SettingsError, load_settings
from tests.deploy.test_dashboards import exported

FOLDER = Path(__file__).parents[2] / "deploy" / "kubernetes"
VERSIONS = ("1.28", "1.34")  # the oldest that is meant to work, and a recent one


def load(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((FOLDER / name).read_text()))


BUILT_IN = [found for name in ("lychee.yaml", "autoscaler.yaml") for found in load(name)]
(DEPLOYMENT,) = [found for found in BUILT_IN if found["kind"] == "Deployment"]
POD = DEPLOYMENT["spec"]["template"]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("resource", BUILT_IN, ids=lambda resource: resource["kind"])
def test_resources_match_their_schemas(resource, version):
    """Strict: a field that the schema does not know is an error."""
    kubernetes_validate.validate(resource, version, strict=True)


def test_a_misspelt_field_is_found():
    wrong = {**DEPLOYMENT, "spec": {**DEPLOYMENT["spec"], "replica": 1}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSIONS[0], strict=True)


def test_all_kinds_that_were_promised_are_there():
    kinds = {found["kind"] for found in BUILT_IN} | {found["kind"] for found in load("podmonitor.yaml")}
    assert {"Deployment", "Service", "HorizontalPodAutoscaler", "PodMonitor"} <= kinds
    (kustomization,) = load("kustomization.yaml")
    assert all((FOLDER / name).is_file() for name in kustomization["resources"])


def test_selectors_find_the_pods():
    labels = POD["metadata"]["labels"].items()
    for found in [*BUILT_IN, *load("podmonitor.yaml")]:
        selector = found["spec"].get("selector")
        if selector is not None:
            assert selector.get("matchLabels", selector).items() <= labels
        if found["kind"] == "HorizontalPodAutoscaler":
            assert found["spec"]["scaleTargetRef"]["name"] == DEPLOYMENT["metadata"]["name"]


def test_named_ports_exist():
    names = {port["name"] for container in POD["spec"]["containers"] for port in container["ports"]}
    (monitor,) = load("podmonitor.yaml")
    asked = {endpoint["port"] for endpoint in monitor["spec"]["podMetricsEndpoints"]}
    (service,) = [found for found in BUILT_IN if found["kind"] == "Service"]
    assert asked | {port["targetPort"] for port in service["spec"]["ports"]} <= names
    probes = ("readinessProbe", "livenessProbe", "startupProbe")
    for container in POD["spec"]["containers"]:
        own = {port["name"] for port in container["ports"]}
        assert {container[probe]["httpGet"]["port"] for probe in probes if probe in container} <= own


def test_the_autoscalers_metric_is_exported():
    (autoscaler,) = load("autoscaler.yaml")
    (metric,) = [metric["pods"]["metric"]["name"] for metric in autoscaler["spec"]["metrics"]]
    assert metric in exported()
    (values,) = load("adapter-values.yaml")
    (rule,) = values["rules"]["custom"]
    assert rule["name"]["as"] == metric


def test_the_gateways_variables_are_settings():
    (gateway,) = [container for container in POD["spec"]["containers"] if container["name"] == "gateway"]
    names = {entry["name"] for entry in gateway["env"]}
    assert {name.removeprefix(ENV_PREFIX).lower() for name in names} <= set(Settings.model_fields)


@pytest.mark.parametrize("name", ["lychee.yaml", "replicas/gateway.yaml"])
def test_a_service_of_any_name_is_no_setting_of_the_gateway(name):
    """Kubernetes puts the addresses of Services into variables; of one called lychee-gateway into the gateway's own."""
    with pytest.raises(SettingsError, match="LYCHEE_GATEWAY_PORT is 'tcp://"):
        load_settings({"LYCHEE_GATEWAY_PORT": "tcp://10.0.0.1:8000"}, {})
    (pod,) = [found["spec"]["template"]["spec"] for found in load(name) if found["kind"] == "Deployment"]
    assert pod["enableServiceLinks"] is False


def test_an_engine_stays_until_its_gateway_has_drained():
    """Both containers of a pod are told to stop at one time, and SGLang ends as soon as it has nothing in work."""
    containers = {container["name"]: container for container in POD["spec"]["containers"]}
    pauses = {
        name: int(container["lifecycle"]["preStop"]["exec"]["command"][1]) for name, container in containers.items()
    }
    drain = Settings.model_fields["drain_timeout"].default
    assert pauses["engine"] >= pauses["gateway"] + drain
    assert pauses["engine"] + 10 <= POD["spec"]["terminationGracePeriodSeconds"]  # it looks every five seconds


def test_jobs_are_named_as_the_alerts_expect():
    (monitor,) = load("podmonitor.yaml")
    jobs = [e["relabelings"][0]["replacement"] for e in monitor["spec"]["podMetricsEndpoints"]]
    scraped = yaml.safe_load((FOLDER.parent / "prometheus" / "prometheus.yml").read_text())["scrape_configs"]
    assert set(jobs) <= {job["job_name"] for job in scraped}


def test_the_operator_renames_what_prometheus_renames():
    (monitor,) = load("podmonitor.yaml")
    (renamed,) = [e["metricRelabelings"] for e in monitor["spec"]["podMetricsEndpoints"] if e["port"] == "engine"]
    scraped = yaml.safe_load((FOLDER.parent / "prometheus" / "prometheus.yml").read_text())["scrape_configs"]
    (expected,) = [job["metric_relabel_configs"] for job in scraped if job["job_name"] == "lychee-engine"]
    names = {"sourceLabels": "source_labels", "targetLabel": "target_label"}
    assert [{names.get(key, key): value for key, value in rule.items()} for rule in renamed] == expected
