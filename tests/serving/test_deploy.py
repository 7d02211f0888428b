"""The files in deploy/: valid by their schemas, and in agreement with the command and its times."""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

DEPLOY = Path(__file__).parents[2] / "deploy"
KUBERNETES = (DEPLOY / "kubernetes.yaml").read_text()


def for_tpus(text: str) -> str:
    """The manifest as its head says: without the lines for GPUs, with those for TPUs."""
    kept = [line for line in text.splitlines() if not line.endswith("# GPU")]
    return "\n".join(re.sub(r"^( *)# (.*) # TPU$", r"\1\2", line) for line in kept)


VARIANTS = {"gpu": KUBERNETES, "tpu": for_tpus(KUBERNETES)}


def deployment(text: str) -> dict:
    return next(each for each in yaml.safe_load_all(text) if each["kind"] == "Deployment")


def server_of(arguments: list[str]) -> argparse.Namespace:
    """What `videollava serve` makes of arguments; an error for one that it does not know."""
    from videollava_jax.cli.serve import add_serve

    parser = argparse.ArgumentParser()
    add_serve(parser)
    return parser.parse_args(arguments)


def seconds(text: str) -> int:
    number, unit = re.fullmatch(r"(\d+)(s|m)", text).groups()
    return int(number) * {"s": 1, "m": 60}[unit]


def test_the_compose_file_is_valid_by_its_specification():
    checked = subprocess.run(
        [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", DEPLOY / "compose.yaml"],
        capture_output=True,
        text=True,
    )
    assert checked.returncode == 0, checked.stdout


def test_the_compose_file_gives_a_server_the_time_to_drain():
    server = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]["server"]
    asked = server_of(server["command"])
    assert asked.drain_seconds + 5 <= seconds(server["stop_grace_period"])
    assert str(asked.model) == server["volumes"][0].split(":")[-2] == "/model"
    assert server["ports"] == [f"127.0.0.1:8000:{asked.port}"]


@pytest.mark.parametrize("kind", VARIANTS)
def test_the_manifest_is_valid_by_the_schemas_of_kubernetes(kind):
    from lightkube import codecs

    for given in yaml.safe_load_all(VARIANTS[kind]):
        # Wrong types raise, and names that the schema does not have are lost.
        assert codecs.from_dict(given).to_dict() == given


def test_a_name_or_a_type_that_kubernetes_does_not_have_is_found():
    from lightkube import codecs

    given = deployment(KUBERNETES)
    given["spec"]["template"]["spec"]["containers"][0]["readinesProbe"] = {}
    assert codecs.from_dict(given).to_dict() != given
    given["spec"]["replicas"] = "two"
    with pytest.raises(ValueError, match="replicas"):
        codecs.from_dict(given)


@pytest.mark.parametrize("kind", VARIANTS)
def test_a_pod_is_ready_by_its_health_and_has_the_time_to_drain(kind):
    given = deployment(VARIANTS[kind])
    pod = given["spec"]["template"]["spec"]
    (server,) = pod["containers"]
    asked = server_of(server["args"])
    assert server["readinessProbe"]["httpGet"]["path"] == server["startupProbe"]["httpGet"]["path"] == "/health"
    assert "livenessProbe" not in server  # an engine that dies ends the process, and draining is not ill
    before = server["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert before > server["readinessProbe"]["periodSeconds"]
    assert before + asked.drain_seconds + 5 <= pod["terminationGracePeriodSeconds"]
    assert given["spec"]["selector"]["matchLabels"].items() <= given["spec"]["template"]["metadata"]["labels"].items()
    chips = {"gpu": "nvidia.com/gpu", "tpu": "google.com/tpu"}
    assert [name for name in server["resources"]["limits"] if "/" in name] == [chips[kind]]
    assert (asked.mesh is None) == (kind == "gpu")


def test_every_mount_has_its_volume_and_the_service_finds_the_pods():
    objects = {each["kind"]: each for each in yaml.safe_load_all(KUBERNETES)}
    pod = objects["Deployment"]["spec"]["template"]
    (server,) = pod["spec"]["containers"]
    assert {mount["name"] for mount in server["volumeMounts"]} == {volume["name"] for volume in pod["spec"]["volumes"]}
    for kind in ("Service", "PodDisruptionBudget"):
        selector = objects[kind]["spec"]["selector"]
        assert selector.get("matchLabels", selector).items() <= pod["metadata"]["labels"].items()
    assert objects["Service"]["spec"]["ports"][0]["targetPort"] in {port["name"] for port in server["ports"]}
