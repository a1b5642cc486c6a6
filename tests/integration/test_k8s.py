"""The Kubernetes deployment: what it renders to, and what a real control plane makes of it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from smoa.rpc import LIVE

ROOT = Path(__file__).resolve().parents[2]
K8S = ROOT / "k8s"
NAMESPACE = "smoa-dev"
SERVICES = {"router": "Deployment", "executor": "Deployment", "optimizer": "StatefulSet", "gateway": "Deployment"}
BACKING = {"qdrant": "StatefulSet", "store": "StatefulSet"}
"""What `dev` brings besides; Kafka's pods are its operator's."""
GPU = "nvidia.com/gpu"
PORTS = 7  # what `serve` takes, from the one it is given

Object = dict[str, Any]
Kubectl = Callable[..., "subprocess.CompletedProcess[str]"]

pytestmark = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")


def overlay_with(component: str, folder: Path) -> Path:
    """The dev overlay with a component, in `folder`."""
    folder = folder.resolve()
    overlay = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "namespace": NAMESPACE,
        "resources": [os.path.relpath(K8S / "overlays/dev", folder)],
        "components": [os.path.relpath(K8S / "components" / component, folder)],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(overlay))
    return folder


def render(folder: Path) -> list[Object]:
    done = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return [found for found in yaml.safe_load_all(done.stdout) if found]


@pytest.fixture(params=["base", "dev", "dev+gpu"])
def variant(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, list[Object]]:
    """A name and what it renders to."""
    name = str(request.param)
    folder = {"base": K8S / "base", "dev": K8S / "overlays/dev"}.get(name) or overlay_with("gpu", tmp_path)
    return name, render(folder)


def workloads(objects: list[Object], wanted: Iterable[str] = SERVICES) -> dict[str, Object]:
    found = {one["metadata"]["name"]: one for one in objects if "template" in one.get("spec", {})}
    return {name: one for name, one in found.items() if name in wanted}


def environment(container: Object) -> dict[str, Any]:
    return {entry["name"]: entry.get("value", entry.get("valueFrom")) for entry in container.get("env", [])}


def only_container(workload: Object) -> Object:
    spec = workload["spec"]["template"]["spec"]
    assert "initContainers" not in spec
    (container,) = spec["containers"]
    assert isinstance(container, dict)
    return container


def test_every_pod_meets_the_restricted_profile(variant: tuple[str, list[Object]]) -> None:
    variant_name, objects = variant
    expected = SERVICES | ({} if variant_name == "base" else BACKING)
    found = workloads(objects, expected)
    assert {name: workload["kind"] for name, workload in found.items()} == expected
    for name, workload in found.items():
        spec, container = workload["spec"]["template"]["spec"], only_container(workload)
        assert spec["serviceAccountName"] == name
        assert spec["automountServiceAccountToken"] is False
        assert spec["terminationGracePeriodSeconds"] == (60 if name == "qdrant" else 30)
        pod_security = spec["securityContext"]
        assert pod_security["runAsNonRoot"] is True
        assert pod_security["runAsUser"] == pod_security["fsGroup"] == (10001 if name in SERVICES else 1000)
        assert pod_security["seccompProfile"] == {"type": "RuntimeDefault"}
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert not any("hostPath" in volume for volume in spec["volumes"])


def test_every_mount_has_its_volume_and_everything_written_is_mounted(variant: tuple[str, list[Object]]) -> None:
    _, objects = variant
    of_their_own = {"qdrant": {"storage", "snapshots"}, "store": {"data"}}
    for service, workload in workloads(objects, SERVICES | BACKING).items():
        container = only_container(workload)
        volumes = {volume["name"]: volume for volume in workload["spec"]["template"]["spec"]["volumes"]}
        claims = {claim["metadata"]["name"] for claim in workload["spec"].get("volumeClaimTemplates", [])}
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        assert set(mounts.values()) == set(volumes) | claims
        assert not set(volumes) & claims
        assert claims == set(), "there may be no storage class, and a router is made anew from the server"
        if service in BACKING:
            assert of_their_own[service] <= set(mounts.values())
            continue
        assert "emptyDir" in volumes[mounts["/tmp"]]
        values = environment(container)
        folders = [values[f"SMOA_{service.upper()}_DATA_FOLDER"], *([values["SMOA_CACHE"]] if service == "executor" else [])]
        for folder in folders:
            assert any(Path(folder).is_relative_to(mount) for mount in mounts), folder


def test_every_container_has_probes_and_resources(variant: tuple[str, list[Object]]) -> None:
    _, objects = variant
    for name, workload in workloads(objects).items():
        container = only_container(workload)
        resources = container["resources"]
        assert {"cpu", "memory"} <= set(resources["requests"])
        assert "memory" in resources["limits"]
        assert ("cpu" in resources["limits"]) is (name != "executor")
        for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
            probe = container[kind]
            if name == "optimizer":
                assert probe["exec"]["command"][:2] == ["python", "-c"]
                assert f"{environment(container)['SMOA_OPTIMIZER_DATA_FOLDER']}/heartbeat" in probe["exec"]["command"][2]
            elif name == "gateway":
                (port,) = container["ports"]
                assert probe["httpGet"] == {"path": "/readyz" if kind == "readinessProbe" else "/healthz", "port": port["name"]}
                assert environment(container)["SMOA_GATEWAY_ADDRESS"] == f"0.0.0.0:{port['containerPort']}"
            else:
                (port,) = [port for port in container["ports"] if port["name"] == "grpc"]
                assert probe["grpc"]["port"] == port["containerPort"]
                assert probe["grpc"].get("service", "") == (LIVE if kind == "livenessProbe" else "")
                assert environment(container)[f"SMOA_{name.upper()}_ADDRESS"] == f"0.0.0.0:{port['containerPort']}"
        # A slow start is given more time than a stuck process.
        patience = {
            kind: container[kind]["periodSeconds"] * container[kind]["failureThreshold"] for kind in ("startupProbe", "livenessProbe")
        }
        assert patience["startupProbe"] >= 300
        assert patience["startupProbe"] > patience["livenessProbe"]


def test_a_gpu_only_with_the_component(variant: tuple[str, list[Object]]) -> None:
    variant_name, objects = variant
    for name, workload in workloads(objects).items():
        container = only_container(workload)
        wanted = (variant_name, name) == ("dev+gpu", "executor")
        assert container["resources"]["limits"].get(GPU) == (1 if wanted else None)
        assert environment(container).get("SMOA_EXECUTOR_DEVICE") == ("cuda" if wanted else None)


def test_the_namespace_refuses_what_is_not_restricted_and_holds_the_rest(variant: tuple[str, list[Object]]) -> None:
    name, objects = variant
    expected = "smoa" if name == "base" else NAMESPACE
    (namespace,) = [found for found in objects if found["kind"] == "Namespace"]
    assert namespace["metadata"]["name"] == expected
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce-version"] == "latest"
    assert {found["metadata"]["namespace"] for found in objects if found is not namespace} == {expected}


def test_parts_find_each_other(variant: tuple[str, list[Object]]) -> None:
    variant_name, objects = variant
    found = workloads(objects)
    services = {item["metadata"]["name"]: item["spec"] for item in objects if item["kind"] == "Service"}
    budgets = {item["metadata"]["name"]: item["spec"] for item in objects if item["kind"] == "PodDisruptionBudget"}
    (config,) = [item for item in objects if item["kind"] == "ConfigMap"]
    assert set(services) == {*SERVICES, *(() if variant_name == "base" else BACKING)}
    for name, workload in found.items():
        template_labels = workload["spec"]["template"]["metadata"]["labels"]
        assert services[name]["selector"].items() <= template_labels.items()
        assert workload["spec"]["selector"]["matchLabels"].items() <= template_labels.items()
        expected_labels = {"name": f"smoa-{name}", "component": name, "part-of": "smoa"}
        assert template_labels == {f"app.kubernetes.io/{key}": value for key, value in expected_labels.items()}
        sources = only_container(workload)["envFrom"]
        assert {"configMapRef": {"name": config["metadata"]["name"]}} in sources
    assert set(budgets) == {"router", "executor", "gateway"}
    for name, budget in budgets.items():
        assert budget["selector"] == found[name]["spec"]["selector"]
        assert found[name]["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    assert services["router"].get("clusterIP") is None
    assert services["executor"]["clusterIP"] == "None"
    assert found["router"]["spec"]["replicas"] == 2
    elsewhere = ".kafka.svc" if variant_name == "base" else ""
    assert config["data"]["SMOA_KAFKA_BOOTSTRAP"] == f"kafka-kafka-bootstrap{elsewhere}:9092"
    assert config["data"]["SMOA_QDRANT_URL"] == "http://qdrant:6333"
    assert config["data"]["SMOA_STORE"] == "s3://smoa-adapters"
    assert environment(only_container(found["router"]))["SMOA_QDRANT_API_KEY"]["secretKeyRef"]["name"] == "qdrant"
    optimizer = environment(only_container(found["optimizer"]))
    assert optimizer["SMOA_ROUTER"] == "router:50051"
    assert optimizer["SMOA_OPTIMIZER_INSTANCE_ID"]["fieldRef"]["fieldPath"] == "metadata.name"
    assert environment(only_container(found["router"]))["SMOA_INSECURE"] == "true"


def test_every_setting_is_one_that_a_service_reads(variant: tuple[str, list[Object]]) -> None:
    import dataclasses

    from services.executor.settings import ExecutorSettings
    from services.gateway.settings import GatewaySettings
    from services.optimizer.settings import OptimizerSettings
    from services.router.settings import RouterSettings

    _, objects = variant
    by_service: dict[str, set[str]] = {
        name: {item.metadata.get("key") or f"SMOA_{name.upper()}_{item.name.upper()}" for item in dataclasses.fields(cls)}
        for name, cls in (
            ("router", RouterSettings),
            ("executor", ExecutorSettings),
            ("optimizer", OptimizerSettings),
            ("gateway", GatewaySettings),
        )
    }
    by_service["executor"] |= {"SMOA_CACHE", "POD_IP"}  # the second is part of the address it advertises
    for name, workload in workloads(objects).items():
        assert set(environment(only_container(workload))) <= by_service[name]
    (config,) = [item for item in objects if item["kind"] == "ConfigMap"]
    shared = {key for key in config["data"] if key.startswith("SMOA_")}
    assert shared <= set().union(*by_service.values()) | {"SMOA_LOG_LEVEL"}


@pytest.mark.parametrize(("age", "startup", "steady"), [(0, 0, 0), (30, 1, 0), (90, 1, 1), (None, 1, 1)])
def test_the_optimizers_probes_judge_the_age_of_its_heartbeat(tmp_path: Path, age: int | None, startup: int, steady: int) -> None:
    container = only_container(workloads(render(K8S / "base"))["optimizer"])
    heartbeat = tmp_path / "heartbeat"
    if age is not None:
        heartbeat.touch()
        os.utime(heartbeat, times=(time.time() - age,) * 2)
    folder = environment(container)["SMOA_OPTIMIZER_DATA_FOLDER"]
    for kind, expected in (("startupProbe", startup), ("readinessProbe", steady), ("livenessProbe", steady)):
        command = [part.replace(folder, str(tmp_path)) for part in container[kind]["exec"]["command"]]
        assert subprocess.run(command, capture_output=True, timeout=30).returncode == expected, kind


def free_ports() -> int:
    """The first of PORTS consecutive ports that nobody has."""
    for first in range(24000, 32000, PORTS):
        with contextlib.ExitStack() as stack:
            try:
                for port in range(first, first + PORTS):
                    stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            except OSError:
                continue
            return first
    raise AssertionError("no free ports")


@pytest.fixture(scope="module")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kubectl]:
    """`kubectl` against a control plane of our own."""
    home = os.environ.get("SMOA_TEST_K8S_HOME")
    if not home:
        pytest.skip("SMOA_TEST_K8S_HOME is not set: the folder that holds `serve`, a control plane for tests")
    folder = tmp_path_factory.mktemp("control-plane")
    log, kubeconfig = folder / "serve.log", folder / "kubeconfig"
    with (
        log.open("wb") as output,
        subprocess.Popen(
            [str(Path(home) / "serve"), str(folder), str(free_ports())],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        ) as process,
    ):
        try:
            deadline = time.monotonic() + 120
            while not kubeconfig.exists():
                assert process.poll() is None, f"the control plane ended: {log.read_text()}"
                assert time.monotonic() < deadline, f"no control plane after 120 s: {log.read_text()}"
                time.sleep(0.2)

            def kubectl(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
                command = ["kubectl", "--kubeconfig", str(kubeconfig), *arguments]
                return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=150)

            yield kubectl
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(15)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def ok(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stderr
    return done.stdout


def await_rollout(kubectl: Kubectl, name: str) -> None:
    done = kubectl("-n", NAMESPACE, "rollout", "status", f"{(SERVICES | BACKING)[name].lower()}/{name}", "--timeout=120s")
    if done.returncode:
        events = kubectl("-n", NAMESPACE, "get", "events", "--sort-by=.lastTimestamp").stdout
        raise AssertionError(f"{name}: {done.stderr}\n{events}")


def pods(kubectl: Kubectl, name: str) -> list[Object]:
    """The pods of a service that are not on their way out."""
    label = f"app.kubernetes.io/name={'smoa-' * (name in SERVICES)}{name}"
    listed = json.loads(ok(kubectl("-n", NAMESPACE, "get", "pods", "-l", label, "-o", "json")))
    return [pod for pod in listed["items"] if "deletionTimestamp" not in pod["metadata"]]


@pytest.fixture(scope="module")
def deployed(control_plane: Kubectl) -> Kubectl:
    """The dev overlay, applied."""
    ok(control_plane("apply", "-k", str(K8S / "overlays/dev")))
    return control_plane


def test_dev_rolls_out(deployed: Kubectl) -> None:
    for name in (*BACKING, *SERVICES):
        await_rollout(deployed, name)
        assert [pod["status"]["phase"] for pod in pods(deployed, name)] == ["Running"] * (2 if name in ("router", "gateway") else 1)


def test_kafka_and_its_topics_are_what_the_services_work_with(deployed: Kubectl) -> None:
    """As Strimzi's definitions take them; its operator would make them so."""
    from services.optimizer.stream.changelog import COUNTS, JOINS
    from smoa.topics import TOPICS

    listed = json.loads(ok(deployed("-n", NAMESPACE, "get", "kafkatopics.kafka.strimzi.io", "-o", "json")))["items"]
    found = {one["metadata"]["name"]: one["spec"] for one in listed}
    wanted = {topic.name: topic for topic in (*TOPICS, JOINS, COUNTS)}
    assert found.keys() == wanted.keys()
    assert {spec["partitions"] for spec in found.values()} == {12}, "they are joined by partition"
    for name, topic in wanted.items():
        settings = {"cleanup.policy": "compact"} if topic.compacted else {}
        assert {key: str(value) for key, value in found[name].get("config", {}).items()} == settings | dict(topic.settings)
    (pool,) = json.loads(ok(deployed("-n", NAMESPACE, "get", "kafkanodepools.kafka.strimzi.io", "-o", "json")))["items"]
    assert pool["spec"]["replicas"] == 1
    optimizer = environment(only_container(workloads(render(K8S / "overlays/dev"))["optimizer"]))
    (config,) = [one for one in render(K8S / "overlays/dev") if one["kind"] == "ConfigMap"]
    assert int(config["data"]["SMOA_OPTIMIZER_PARTITIONS"]) == 12
    assert "SMOA_OPTIMIZER_PARTITIONS" not in optimizer
    base = {one["kind"]: one["spec"] for one in yaml.safe_load_all((K8S / "components/kafka/cluster.yaml").read_text())}
    assert (base["KafkaNodePool"]["replicas"], base["Kafka"]["kafka"]["config"]["min.insync.replicas"]) == (3, 2)


def test_the_model_cache_is_one_claim_for_all_executors(deployed: Kubectl, tmp_path: Path) -> None:
    objects = render(overlay_with("model-cache", tmp_path))
    (claim,) = [one for one in objects if one["kind"] == "PersistentVolumeClaim"]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    (cache,) = [one for one in workloads(objects)["executor"]["spec"]["template"]["spec"]["volumes"] if one["name"] == "cache"]
    assert cache == {"name": "cache", "persistentVolumeClaim": {"claimName": claim["metadata"]["name"]}}
    ok(deployed("apply", "--dry-run=server", "-k", str(tmp_path)))


def test_the_jobs_that_learn_are_restricted_and_run_commands_that_exist(tmp_path: Path) -> None:
    objects = render(overlay_with("learning", tmp_path))
    jobs = {found["metadata"]["name"]: found["spec"] for found in objects if found["kind"] == "CronJob"}
    assert set(jobs) == {"learn-ranker", "propose", "qdrant-snapshot"}
    assert {found["metadata"]["namespace"] for found in objects if found["kind"] == "CronJob"} == {NAMESPACE}
    (config,) = [found["metadata"]["name"] for found in objects if found["kind"] == "ConfigMap"]
    for spec in jobs.values():
        pod = spec["jobTemplate"]["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        assert (spec["concurrencyPolicy"], pod["restartPolicy"], pod["automountServiceAccountToken"]) == ("Forbid", "Never", False)
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert container["command"] == ["tini", "--", "smoa"]
        assert ":" in container["image"], "without a tag it would be one that nobody built"
        assert {"configMapRef": {"name": config}} in container["envFrom"]
        shown = subprocess.run([str(Path(sys.executable).parent / "smoa"), *container["args"], "--help"], capture_output=True, text=True)
        assert shown.returncode == 0, shown.stderr
        known = {"SMOA_ROUTER", "SMOA_EXECUTOR", "SMOA_CACHE", "SMOA_QDRANT_API_KEY"}
        assert set(environment(container)) <= known
        assert {"memory"} <= set(container["resources"]["limits"])


def test_a_job_that_learns_is_started(deployed: Kubectl, tmp_path: Path) -> None:
    ok(deployed("apply", "-k", str(overlay_with("learning", tmp_path))))
    for name in ("learn-ranker", "propose"):
        ok(deployed("-n", NAMESPACE, "create", "job", f"{name}-now", f"--from=cronjob/{name}"))
        waited = deployed("-n", NAMESPACE, "wait", "--for=jsonpath={.status.active}=1", f"job/{name}-now", "--timeout=60s")
        assert ok(waited) == f"job.batch/{name}-now condition met\n"
        ok(deployed("-n", NAMESPACE, "delete", "job", f"{name}-now", "--wait=false"))
        ok(deployed("-n", NAMESPACE, "delete", "cronjob", name))


def test_the_api_server_accepts_every_object_of_the_base(control_plane: Kubectl) -> None:
    # Not rolled out: it is like dev. A dry run still needs the namespace.
    ok(control_plane("create", "namespace", "smoa"))
    try:
        accepted = ok(control_plane("apply", "--dry-run=server", "-k", str(K8S / "base")))
    finally:
        ok(control_plane("delete", "namespace", "smoa", "--wait=false"))
    for name, kind in SERVICES.items():
        assert f"{kind.lower()}.apps/{name} created (server dry run)" in accepted


def test_a_pod_that_is_not_restricted_is_refused(deployed: Kubectl) -> None:
    router = pods(deployed, "router")[0]
    spec = {"containers": [{"name": "plain", "image": "busybox"}]}
    plain = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "plain", "namespace": NAMESPACE}, "spec": spec}
    refused = deployed("create", "-f", "-", stdin=json.dumps(plain))
    assert refused.returncode != 0
    assert 'violates PodSecurity "restricted:latest"' in refused.stderr
    # The same place takes a pod with the router's security, so it was that and nothing else.
    plain["spec"] = {
        "securityContext": router["spec"]["securityContext"],
        "containers": [{**spec["containers"][0], "securityContext": router["spec"]["containers"][0]["securityContext"]}],
    }
    ok(deployed("create", "--dry-run=server", "-f", "-", stdin=json.dumps(plain)))


def test_with_the_component_the_executor_takes_the_gpu_of_its_node(deployed: Kubectl, tmp_path: Path) -> None:
    ok(deployed("apply", "-k", str(overlay_with("gpu", tmp_path))))
    await_rollout(deployed, "executor")
    (executor,) = pods(deployed, "executor")
    assert executor["spec"]["containers"][0]["resources"]["limits"][GPU] == "1"
    assert executor["spec"]["containers"][0]["resources"]["requests"][GPU] == "1"
    assert executor["spec"]["nodeName"] == "g"
