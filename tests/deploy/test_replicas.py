"""The Kubernetes example of tensor-parallel engines behind the router, against the schemas and against each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from lychee_server.settings import ENV_PREFIX, Settings
from lychee_sgl.capacity.plan import capacity
from lychee_sgl.capacity.sizes import GPUS, MODELS
from tests.deploy.test_kubernetes import VERSIONS

FOLDER = Path(__file__).parents[2] / "deploy" / "kubernetes" / "replicas"
NAMES = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())["resources"]
RESOURCES: list[dict[str, Any]] = [found for name in NAMES for found in yaml.safe_load_all((FOLDER / name).read_text())]


def of(kind: str, name: str) -> dict[str, Any]:
    (found,) = [each for each in RESOURCES if (each["kind"], each["metadata"]["name"]) == (kind, name)]
    return found


def container(name: str) -> dict[str, Any]:
    (found,) = of("Deployment", name)["spec"]["template"]["spec"]["containers"]
    return found


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("resource", RESOURCES, ids=lambda each: f"{each['kind']}-{each['metadata']['name']}")
def test_resources_match_their_schemas(resource: dict[str, Any], version: str) -> None:
    kubernetes_validate.validate(resource, version, strict=True)


def test_the_router_finds_the_engines() -> None:
    args = container("lychee-router")["args"]
    key, _, value = args[args.index("--selector") + 1].partition("=")
    assert of("Deployment", "lychee-engine")["spec"]["template"]["metadata"]["labels"][key] == value
    (port,) = container("lychee-engine")["ports"]
    assert f"--service-discovery-port={port['containerPort']}" in args
    account = of("Deployment", "lychee-router")["spec"]["template"]["spec"]["serviceAccountName"]
    (subject,) = of("RoleBinding", "lychee-router")["subjects"]
    assert subject == {"kind": "ServiceAccount", "name": account}
    assert of("ServiceAccount", account)


def test_the_gateway_finds_the_router() -> None:
    names = {entry["name"]: entry.get("value") for entry in container("lychee")["env"]}
    assert {name.removeprefix(ENV_PREFIX).lower() for name in names} <= set(Settings.model_fields)
    (port,) = of("Service", "lychee-router")["spec"]["ports"]
    assert names["LYCHEE_GATEWAY_ENGINE_URL"] == f"http://lychee-router:{port['port']}"


def test_the_group_has_its_gpus_and_the_model_fits_them() -> None:
    engine = container("lychee-engine")
    options = dict(zip(engine["args"][::2], engine["args"][1::2], strict=True))
    gpus = int(options["--tp"])
    assert {engine["resources"][part]["nvidia.com/gpu"] for part in ("requests", "limits")} == {str(gpus)}
    (model,) = [model for model in MODELS if model.shape.name == options["--model"].rpartition("/")[2]]
    eighty = next(gpu for gpu in GPUS if gpu.name == "H100-80GB")
    assert capacity(model, eighty, tp=gpus, context=131_072).rows >= 4
