"""The compose file and the Dockerfile, as far as they can be held to the project without a Docker engine."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from compose_spec import PyCompose

from lychee_server.settings import ENV_PREFIX, SECRETS, Settings

ROOT = Path(__file__).parents[2]
VARIABLE = re.compile(r"\$\{([A-Z_]+)(?::-([^}]*))?\}")
TEXT = (ROOT / "docker-compose.yml").read_text()
DEFAULTS = VARIABLE.sub(lambda found: found[2] or "", TEXT)
COMPOSE: dict[str, Any] = yaml.safe_load(DEFAULTS)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
STAGES = {
    stage[0].split()[-1]: stage[1]
    for stage in re.findall(r"^FROM (.+)\n((?:(?!FROM ).*\n?)*)", DOCKERFILE, flags=re.MULTILINE)
}


def compose_command() -> list[str] | None:
    """Compose as Docker's plug-in, or Debian's package of its own name."""
    docker, standalone = shutil.which("docker"), shutil.which("docker-compose")
    if docker and subprocess.run([docker, "compose", "version"], capture_output=True, check=False).returncode == 0:
        return [docker, "compose"]
    return [standalone] if standalone else None


@pytest.mark.parametrize(
    ("profile", "own"),
    [("cpu", {"engine-cpu"}), ("gpu", {"engine-gpu"}), ("replicas", {"replica-1", "replica-2", "router"})],
)
def test_compose_itself_accepts_all_profiles(profile, own, tmp_path):
    command = compose_command()
    if command is None:
        pytest.skip("no docker compose: apt-get install --no-install-recommends docker-compose")
    done = subprocess.run(
        [*command, "--profile", profile, "config"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "HOME": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    found = yaml.safe_load(done.stdout)["services"]
    assert {"gateway", "prometheus", "grafana", *own} <= set(found)


def test_the_compose_specification_is_met():
    merged = yaml.safe_dump({key: value for key, value in COMPOSE.items() if not key.startswith("x-")})
    assert set(PyCompose.from_yaml(merged).service_names()) == set(SERVICES)


def test_profiles():
    assert {name: service.get("profiles") for name, service in SERVICES.items()} == {
        "gateway": None,
        "engine-cpu": ["cpu"],
        "engine-gpu": ["gpu"],
        "replica-1": ["replicas"],
        "replica-2": ["replicas"],
        "router": ["replicas"],
        "prometheus": None,
        "grafana": None,
    }


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_every_image_is_pinned_and_has_a_health_check(name):
    service = SERVICES[name]
    assert re.fullmatch(r"[a-z0-9./-]+:v?\d+\.\d+\.\d+(-cpu|-gpu)?", service["image"])
    if "build" in service:
        assert "HEALTHCHECK" in STAGES[service["build"]["target"]]
    else:
        assert service["healthcheck"]["test"]


def test_base_images_are_pinned():
    images = re.findall(r"^ARG \w+_IMAGE=(.+)$", DOCKERFILE, flags=re.MULTILINE)
    assert len(images) == 3
    assert all(re.search(r":\d+\.\d+\.\d+", image) for image in images)


@pytest.mark.parametrize("target", ["gateway", "engine-cpu", "engine-gpu", "router"])
def test_no_image_runs_as_root(target):
    users = re.findall(r"^USER (.+)$", STAGES[target], flags=re.MULTILINE)
    assert users
    assert users[-1] not in ("root", "0")


def test_the_gateway_image_has_neither_torch_nor_sglang():
    installed = re.findall(r"--extra (\w+)", STAGES["gateway-build"])
    assert installed == ["gateway"]
    assert re.findall(r"--from=(\S+)", STAGES["gateway"]) == ["gateway-build"]


@pytest.mark.parametrize("target", ["engine-cpu", "engine-gpu"])
def test_the_engines_images_have_what_compressed_blocks_need(target):
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    installed = [package for extra in re.findall(r"--extra (\w+)", STAGES[target]) for package in extras[extra]]
    assert any(package.startswith("peft") for package in installed)


def test_what_is_copied_exists_and_reaches_the_builder():
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for line in re.findall(r"^COPY (?!--)(.+)$", DOCKERFILE, flags=re.MULTILINE):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists(), source
            assert source.split("/")[0] in kept, source


def test_mounted_files_exist():
    for service in SERVICES.values():
        for mount in service.get("volumes", []):
            source = mount.split(":")[0]
            assert (ROOT / source).exists() if source.startswith(".") else source in COMPOSE["volumes"], mount


@pytest.mark.parametrize("name", sorted(name for name in SERVICES if name.startswith(("engine-", "replica-"))))
def test_what_was_read_of_documents_outlives_a_container(name):
    """A container that is made anew (a new image, `down` and `up`) has nothing of the old one but its volumes."""
    service = SERVICES[name]
    (bank,) = re.findall(r"\bLYCHEE_MEMORY_BANK=(\S+)", STAGES[service["build"]["target"]])
    mounts = dict(mount.split(":")[:2] for mount in service["volumes"])
    assert mounts["state"] == str(Path(bank).parent)
    assert "LYCHEE_MEMORY_BANK" not in (service.get("environment") or {})


def test_ports_are_published_on_this_machine_only():
    for service in SERVICES.values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))


def test_the_gateways_variables_are_settings():
    known = {*Settings.model_fields, *(f"{name}_file" for name in SECRETS)}
    names = {name for name in SERVICES["gateway"]["environment"] if name.startswith(ENV_PREFIX)}
    assert {name.removeprefix(ENV_PREFIX).lower() for name in names} <= known


def test_secrets_are_files():
    for service in SERVICES.values():
        for name, value in (service.get("environment") or {}).items():
            if re.search("KEY|PASSWORD", name):
                assert value.startswith("/run/secrets/"), name
                assert value.removeprefix("/run/secrets/") in service["secrets"]


def test_the_example_names_every_variable_with_its_default():
    lines = (ROOT / "deploy" / "env.example").read_text().splitlines()
    example = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    assert example == dict(VARIABLE.findall(TEXT))


def test_prometheus_and_grafana_find_what_they_ask_for():
    scraped = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text())["scrape_configs"]
    targets = {t for job in scraped for config in job.get("static_configs", []) for t in config["targets"]}
    targets |= {name for job in scraped for config in job.get("dns_sd_configs", []) for name in config["names"]}
    networks = [service["networks"] for service in SERVICES.values() if isinstance(service["networks"], dict)]
    aliases = {alias for network in networks for alias in network["lychee"]["aliases"]}
    assert {target.split(":")[0] for target in targets} <= {*SERVICES, *aliases, "localhost"}
    assert aliases == {"engine", "engines"}
    gateway = SERVICES["gateway"]["environment"]["LYCHEE_GATEWAY_ENGINE_URL"]
    assert gateway == "http://engine:8001"
    # in every profile somebody is the gateway's engine, and Prometheus finds the engines themselves
    for profile in ("cpu", "gpu", "replicas"):
        mine = [s["networks"]["lychee"]["aliases"] for s in SERVICES.values() if s.get("profiles") == [profile]]
        assert sum("engine" in names for names in mine) == 1
        assert sum("engines" in names for names in mine) == (2 if profile == "replicas" else 1)


def test_the_router_asks_the_replicas():
    router = SERVICES["router"]
    replicas = {f"http://{name}:8001" for name in SERVICES if name.startswith("replica-")}
    assert set(router["command"][1:]) == replicas
    assert router["command"][0] == "--worker-urls"
    entry = re.findall(r"^ENTRYPOINT (.+)$", STAGES["router"], flags=re.MULTILINE)
    assert '"--port", "8001"' in entry[0]
    source = ROOT / "deploy" / "grafana" / "provisioning" / "datasources" / "prometheus.yml"
    (found,) = yaml.safe_load(source.read_text())["datasources"]
    assert found["url"] == "http://prometheus:9090"
    assert found["type"] == "prometheus"
    provider = ROOT / "deploy" / "grafana" / "provisioning" / "dashboards" / "lychee.yml"
    (provided,) = yaml.safe_load(provider.read_text())["providers"]
    mounts = [mount.split(":")[1] for mount in SERVICES["grafana"]["volumes"]]
    assert provided["options"]["path"] in mounts
