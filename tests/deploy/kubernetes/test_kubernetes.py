"""Check the manifests against KubeRay's published schemas, and against the code and files that they must agree with.

The schemas are not in this repository: give their folder as ``KUBERAY_CRDS`` (``ray-operator/config/crd/bases`` of its repository).
"""

import json
import os
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from typer.main import get_command
from zmq.auth import load_certificate

from scopemill.activation_server.keys import ServerKeys, TrainerKeys, make_keys
from scopemill.deploy.cli.main import app
from scopemill.deploy.cluster.jobs import STOP_SECONDS
from scopemill.deploy.cluster.scrape_targets import LAST_WORD_SECONDS
from scopemill.deploy.plan.sweep_file import load_sweep

ROOT = Path(__file__).parents[3]
FILES = sorted((ROOT / "deploy" / "kubernetes").glob("*.yaml"))


def documents() -> list[dict[str, Any]]:
    return [document for file in FILES for document in yaml.safe_load_all(file.read_text())]


def of_kind(*kinds: str) -> list[dict[str, Any]]:
    return [document for document in documents() if document["kind"] in kinds]


def clusters() -> list[dict[str, Any]]:
    return [d["spec"].get("rayClusterSpec", d["spec"]) for d in of_kind("RayJob", "RayCluster")]


def pods() -> Iterator[dict[str, Any]]:
    for cluster in clusters():
        for group in (cluster["headGroupSpec"], *cluster.get("workerGroupSpecs", ())):
            yield group["template"]


def closed(schema: Any) -> Any:
    """Return the schema with unknown fields refused, as by kubectl's strict validation; JSON schemas allow them."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {key: closed(part) for key, part in schema.items()}
    if isinstance(schema.get("properties"), dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
        schema.setdefault("additionalProperties", False)
    return schema


@pytest.mark.skipif("KUBERAY_CRDS" not in os.environ, reason="KUBERAY_CRDS does not name the folder of KubeRay's schemas")
def test_the_manifests_fit_kuberays_schemas():
    for document in of_kind("RayJob", "RayCluster"):
        definition = yaml.safe_load((Path(os.environ["KUBERAY_CRDS"]) / f"ray.io_{document['kind'].lower()}s.yaml").read_text())
        (version,) = (v for v in definition["spec"]["versions"] if f"ray.io/{v['name']}" == document["apiVersion"])
        validator = jsonschema.Draft202012Validator(closed(version["schema"]["openAPIV3Schema"]["properties"]["spec"]))
        validator.validate(document["spec"])
        wrong = document["spec"] | {"rayVersoin": "2"}
        assert not validator.is_valid(wrong)


def test_the_sweep_in_the_config_map_parses_and_is_the_one_that_runs(tmp_path):
    (carried,) = of_kind("ConfigMap")
    (job,) = of_kind("RayJob")
    (tmp_path / "sweep.yaml").write_text(carried["data"]["sweep.yaml"])
    config = load_sweep(str(tmp_path / "sweep.yaml"))
    assert config.name == carried["metadata"]["name"] == job["metadata"]["name"]
    # On the single GPU: all trainers at once, or one harvester, or one evaluator.
    assert config.train.gpus * config.train.at_once <= config.harvest.gpus == config.evaluation.gpus == 1
    assert len(config.train.saes()) * len(config.harvest.layers) == config.train.at_once
    assert yaml.safe_load(job["spec"]["runtimeEnvYAML"])["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"] == str(STOP_SECONDS)


def test_every_pod_is_contained_probed_and_given_its_bucket_by_a_secret():
    for pod in pods():
        assert pod["metadata"]["labels"]["app"] == "scopemill"
        assert pod["spec"]["securityContext"]["runAsNonRoot"] and pod["spec"]["terminationGracePeriodSeconds"] > STOP_SECONDS
        (container,) = pod["spec"]["containers"]
        assert {"secretRef": {"name": "scopemill-bucket"}} in container["envFrom"]
        assert container["resources"]["requests"].keys() >= {"cpu", "memory"} and "memory" in container["resources"]["limits"]
        assert container["readinessProbe"] and container["livenessProbe"]
        assert not container["securityContext"]["allowPrivilegeEscalation"]
        assert {"name": "metrics", "containerPort": 8080} in container["ports"]


def test_servers_and_trainers_load_the_keys_as_the_secret_mounts_them(tmp_path):
    make_keys(tmp_path / "made")
    held = {path.name: path for path in (tmp_path / "made").iterdir() if path.is_file()}  # as kubectl's --from-file takes a folder
    (volumes,) = {json.dumps(v["secret"]) for pod in pods() for v in pod["spec"]["volumes"] if v["name"] == "keys"}
    for item in json.loads(volumes)["items"]:
        place = tmp_path / "mounted" / item["path"]
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(held[item["key"]].read_bytes())
    server, trainer = ServerKeys.load(str(tmp_path / "mounted")), TrainerKeys.load(str(tmp_path / "mounted"))
    assert trainer.server == server.public
    assert load_certificate(server.allowed / "trainer.key")[0] == trainer.public


def test_every_cluster_asks_for_a_token_and_runs_the_ray_and_the_version_that_are_pinned():
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    for cluster in clusters():
        assert cluster["authOptions"] == {"mode": "token"} and cluster["rayVersion"] == pinned["ray"]
    for pod in pods():
        assert f":{version}-" in pod["spec"]["containers"][0]["image"]


def test_the_monitor_selects_the_pods_by_their_label_and_port():
    (monitor,) = of_kind("PodMonitor")
    assert monitor["spec"]["selector"]["matchLabels"] == {"app": "scopemill"}
    assert [endpoint["port"] for endpoint in monitor["spec"]["podMetricsEndpoints"]] == ["metrics"]


def test_prometheus_finds_our_processes_where_the_driver_lists_them():
    (service,) = of_kind("Service")
    (scrape,) = of_kind("ScrapeConfig")
    (carried,) = of_kind("ConfigMap")
    (port,) = service["spec"]["ports"]
    (found,) = scrape["spec"]["httpSDConfigs"]
    assert found["url"] == f"http://{service['metadata']['name']}.default.svc:{port['port']}/targets"
    assert float(found["refreshInterval"].removesuffix("s")) < LAST_WORD_SECONDS
    assert scrape["spec"]["relabelings"] == [{"targetLabel": "job", "replacement": "scopemill"}]  # as alerts and dashboards call it
    assert yaml.safe_load(carried["data"]["sweep.yaml"])["metrics_port"] == port["port"]
    # Drivers run on the head, which KubeRay labels so.
    assert service["spec"]["selector"] == {"app": "scopemill", "ray.io/node-type": "head"}
    for cluster in clusters():
        (container,) = cluster["headGroupSpec"]["template"]["spec"]["containers"]
        assert {"name": "targets", "containerPort": port["port"]} in container["ports"]


def test_the_studio_is_reached_through_a_tunnel_alone_and_runs_with_the_clusters_code():
    (deployment,) = of_kind("Deployment")
    pod = deployment["spec"]["template"]
    assert deployment["spec"]["selector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
    (container,) = pod["spec"]["containers"]
    command, *arguments = container["args"]
    assert command == "scopemill" and "--host" not in arguments and "--insecure" not in arguments and "ports" not in container
    settings = get_command(app).commands["studio"].make_context("studio", arguments[1:]).params
    probed = container["livenessProbe"]["exec"]["command"][-1]
    assert f":{settings['port']}/api/v1/health" in probed and settings["installed"] and settings["address"]
    assert {"secretRef": {"name": "scopemill-studio"}} in container["envFrom"]
    assert container["securityContext"]["readOnlyRootFilesystem"] and pod["spec"]["securityContext"]["runAsNonRoot"]
    assert not pod["spec"]["automountServiceAccountToken"]
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert container["image"].endswith(f":{version}")
