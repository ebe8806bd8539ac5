"""The Helm chart, rendered without a cluster: what it makes, what it refuses, and that every object is one that Kubernetes takes."""

import base64
import functools
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import helm_python as helm
import kubernetes_validate
import pytest
import typer
import yaml
from images import ENTERED, locked

from tasks import nodes, placement
from tasks.cli.app import app
from tasks.recipe import section

CHART = Path(__file__).parents[1] / "charts" / "secateur"
VALUES = yaml.safe_load((CHART / "values.yaml").read_text())
DEMO = yaml.safe_load((CHART / "values-demo.yaml").read_text())
SCHEMA = json.loads((CHART / "values.schema.json").read_text())

# the least that an installation says
EXTERNAL = {
    "global": {"secateur": {"stepsSecretName": "steps"}},
    "bucket": {"uri": "s3://models/secateur"},
    "mlflow": {"secretName": "mlflow", "database": {"host": "postgres.example"}},
    "serving": {"secretName": "serving"},
    "airflow": {
        "data": {"metadataSecretName": "airflow-database"},
        "fernetKeySecretName": "fernet",
        "apiSecretKeySecretName": "api",
        "jwtSecretName": "jwt",
    },
}
CELERY = {"airflow": {"executor": "CeleryExecutor", "data": {"brokerUrlSecretName": "broker"}}}
LOCAL = {"airflow": {"executor": "LocalExecutor", "images": {"airflow": {"repository": "secateur-worker"}}}}
EDGE = {
    "queue": "edge",
    "cpus": 1.5,
    "nodeSelector": {"kubernetes.io/arch": "arm64"},
    "tolerations": [{"key": "edge", "operator": "Exists", "effect": "NoSchedule"}],
}
TARGETS = {"targets": {"edge-cpu": EDGE, "server-cpu": {"queue": "server", "nodeSelector": {"pool": "server"}}}}
GPUS = {"steps": {"train": {"gpus": 2, "nodeSelector": {"pool": "gpu"}}}, "recovery": {"distributed": True}}
INGRESS = {"enabled": True, "host": "it.example", "className": "nginx", "tlsSecretName": "certificate"}
BEFORE = [{"namespaceSelector": {"matchLabels": {"name": "ingress"}}}]
HTTPS = {"annotations": {"nginx.ingress.kubernetes.io/backend-protocol": "HTTPS"}}
EXPOSED = {
    "mlflow": {"ingress": INGRESS, "allowedHosts": ["mlflow.internal"], "database": {"sslmode": "verify-ca"}},
    "settings": {"databaseSslmode": "verify-full"},
    "serving": {"ingress": {**INGRESS, **HTTPS}, "tlsSecretName": "own", "models": ["digits-cnn"], "log": False},
    "networkPolicies": {"mlflowFrom": BEFORE, "servingFrom": BEFORE},
    "images": {"pullSecrets": ["registry"]},
    "prepare": {"adminSecretName": "admin"},
    "recipes": {"mine.yaml": "model: digits-cnn\n"},
    "global": {"secateur": {"authoritiesConfigMapName": "authorities"}},
}
MONITORED = {
    "serving": {"serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}}},
    "networkPolicies": {"servingFrom": [{"podSelector": {}}]},
}
# names that YAML would read as numbers
NUMBERS = {
    "global": {"secateur": {"stepsSecretName": "1", "authoritiesConfigMapName": "2"}},
    "images": {"pullSecrets": ["3"]},
    "prepare": {"adminSecretName": "4"},
    "mlflow": {"secretName": "5", "ingress": {"className": "6", "tlsSecretName": "7"}},
    "serving": {"secretName": "8", "tlsSecretName": "9", "serviceMonitor": {"interval": "30"}},
    "airflow": {
        "executor": "KubernetesExecutor,CeleryExecutor",
        "data": {"metadataSecretName": "10", "brokerUrlSecretName": "11"},
        "fernetKeySecretName": "12",
        "apiSecretKeySecretName": "13",
        "logs": {"persistence": {"enabled": True, "existingClaim": "14"}},
        "workers": {"kubernetes": {"serviceAccount": {"name": "15"}}},
    },
    "recovery": {"distributed": True},
    "steps": {"control": {"queue": "16"}},
    "targets": {"4090": {"queue": "4091", "nodeSelector": {"gpu": "4090"}}},
}
THEIRS = {"mlflow": {"enabled": False, "uri": "https://mlflow.example", "secretName": ""}}
BARE = {"serving": {"enabled": False, "secretName": ""}, "networkPolicies": {"enabled": False}}

# what `airflow:` sets, by the names of the official chart 1.22.0's own values.yaml; below them is Kubernetes' or free
OFFICIAL = yaml.safe_load("""[
workers.celery.persistence.size, workers.kubernetes.resources, scheduler.serviceAccount.automountServiceAccountToken,
airflowVersion, apiSecretKeySecretName, config, createUserJob.enabled, webserver.defaultUser.enabled, data.brokerUrlSecretName, data.metadataSecretName, executor, extraEnv,
extraEnvFrom, fernetKeySecretName, images.airflow.repository, images.airflow.tag, images.pod_template.repository, images.pod_template.tag,
jwtSecretName, migrateDatabaseJob.extraVolumeMounts, migrateDatabaseJob.extraVolumes, migrateDatabaseJob.serviceAccount.automountServiceAccountToken, postgresql.enabled, redis.enabled, securityContexts.containers,
securityContexts.pod, useStandardNaming, volumeMounts, volumes,
apiServer.extraVolumeMounts, apiServer.extraVolumes, apiServer.podDisruptionBudget.enabled, apiServer.resources,
dagProcessor.extraVolumeMounts, dagProcessor.extraVolumes, dagProcessor.resources, dagProcessor.serviceAccount.automountServiceAccountToken,
scheduler.extraVolumeMounts, scheduler.extraVolumes, scheduler.podDisruptionBudget.enabled, scheduler.resources,
statsd.resources, statsd.securityContexts.container, statsd.securityContexts.pod, statsd.serviceAccount.automountServiceAccountToken,
triggerer.extraVolumeMounts, triggerer.extraVolumes, triggerer.persistence.enabled, triggerer.resources,
triggerer.serviceAccount.automountServiceAccountToken,
workers.celery.enableDefault, workers.kubernetes.extraVolumeMounts, workers.kubernetes.extraVolumes, workers.kubernetes.serviceAccount.create,
workers.kubernetes.serviceAccount.name
]""")

Values = dict[str, Any]
Object = dict[str, Any]


def together(*several: Values) -> Values:
    """Values laid over one another, as Helm does."""
    merged: Values = {}
    for values in several:
        for key, value in values.items():
            inner = merged.get(key)
            merged[key] = together(inner, value) if isinstance(value, dict) and isinstance(inner, dict) else value
    return merged


CASES = {
    "kubernetes": EXTERNAL,
    "celery": together(EXTERNAL, CELERY, TARGETS),
    "local": together(EXTERNAL, LOCAL),
    "both": together(EXTERNAL, CELERY, TARGETS, GPUS, {"airflow": {"executor": "KubernetesExecutor,CeleryExecutor"}}),
    "distributed": together(EXTERNAL, TARGETS, GPUS),
    "exposed": together(EXTERNAL, EXPOSED),
    "monitored": together(EXTERNAL, MONITORED, {"serving": {"tlsSecretName": "own"}}),
    "their MLflow": together(EXTERNAL, THEIRS),
    "bare": together(EXTERNAL, BARE),
    "demo": DEMO,
    "numbers": together(EXTERNAL, CELERY, EXPOSED, MONITORED, NUMBERS),
}


def render(values: Values, chart: Path = CHART, under: str = "secateur/templates/") -> list[Object]:
    with helm.Chart.load(chart) as loaded:
        made = loaded.render(values, name="team", namespace="models")
    texts = [text for path, text in made.items() if path.startswith(under) and path.endswith(".yaml")]
    return [found for text in texts for found in yaml.load_all(text, yaml.CSafeLoader) if found]


def refusal(values: Values) -> str:
    with pytest.raises(helm.HelmError) as refused:
        render(values)
    return str(refused.value)


@pytest.fixture(scope="module")
def rendered() -> dict[str, list[Object]]:
    return {case: render(values) for case, values in CASES.items()}


@functools.cache
def validate(text: str) -> None:
    """Against Kubernetes' own schema, unknown keys refused; what several cases have in common once."""
    kubernetes_validate.validate(json.loads(text), "1.37", strict=True)


def the(found: list[Object], kind: str, name: str) -> Object:
    return next(one for one in found if (one["kind"], one["metadata"]["name"]) == (kind, name))


def pods(found: list[Object]) -> Iterator[tuple[str, Object]]:
    """Every pod, by the object that makes it: `helm test` runs one that nothing makes."""
    for one in found:
        if one["kind"] == "Pod" or "template" in one.get("spec", {}):
            pod = one if one["kind"] == "Pod" else one["spec"]["template"]
            yield f"{one['kind']} {one['metadata']['name']}", pod["spec"]


def containers(pod: Object) -> list[Object]:
    return [*pod.get("initContainers", ()), *pod["containers"]]


def variables(container: Object) -> dict[str, Any]:
    return {one["name"]: one.get("value", one.get("valueFrom")) for one in container.get("env", ())}


@pytest.mark.parametrize("case", CASES)
def test_every_object_is_one_that_kubernetes_takes(rendered: dict[str, list[Object]], case: str) -> None:
    names = [(one["kind"], one["metadata"]["name"]) for one in rendered[case]]
    assert len(names) == len(set(names)) > 5
    for one in rendered[case]:
        if one["kind"] != "ServiceMonitor":  # of Prometheus' operator, not of Kubernetes
            validate(json.dumps(one))
        labels = (
            [one["metadata"].get("labels", {}), one["spec"].get("template", {}).get("metadata", {}).get("labels", {})]
            if "spec" in one
            else []
        )
        assert all(len(str(value)) < 64 for of in labels for value in of.values())


@pytest.mark.parametrize("case", CASES)
def test_every_pod_keeps_the_restricted_standard(rendered: dict[str, list[Object]], case: str) -> None:
    seen = dict(pods(rendered[case]))
    assert seen
    for name, pod in seen.items():
        security = pod["securityContext"]
        assert security["runAsNonRoot"] is True, name
        assert security["runAsUser"] == (999 if name.endswith("-postgres") else 50000), name
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert pod["automountServiceAccountToken"] is False, name
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
        assert all(
            set(volume) - {"name"} <= {"emptyDir", "configMap", "secret", "persistentVolumeClaim"}
            for volume in pod["volumes"]
        )
        for container in containers(pod):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }, name
            assert container["resources"]["requests"]
            assert container["resources"]["limits"]["memory"]
            assert not [port for port in container.get("ports", ()) if "hostPort" in port]
            assert re.fullmatch(r".+:(?!latest$).+", container["image"])


def test_airflow_keeps_it_too() -> None:
    airflow = VALUES["airflow"]
    for of in (airflow["securityContexts"], airflow["statsd"]["securityContexts"]):
        assert of["pod"]["runAsNonRoot"] is True
        assert of["pod"]["seccompProfile"] == {"type": "RuntimeDefault"}
        container = of.get("containers") or of["container"]
        assert container == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
    assert {"name": "secateur-home", "mountPath": "/opt/airflow"} in airflow["volumeMounts"]


@pytest.mark.parametrize("case", CASES)
def test_what_airflows_entry_point_does_not_know_is_started_without_it(
    rendered: dict[str, list[Object]], case: str
) -> None:
    on_airflow = {
        f"{name} {container['name']}": container
        for name, pod in pods(rendered[case])
        for container in containers(pod)
        if re.search(r"secateur-(airflow|worker):", container["image"])
    }
    assert {"Job team-prepare prepare", "Pod team-doctor doctor"} <= set(on_airflow)
    for name, container in on_airflow.items():
        assert "command" in container or container["args"][0] in ENTERED, name


@pytest.mark.parametrize("case", CASES)
def test_secrets_come_by_reference_alone(rendered: dict[str, list[Object]], case: str) -> None:
    if case != "demo":
        assert not [one for one in rendered[case] if one["kind"] == "Secret"]
    secret = re.compile(r"PASSWORD|SECRET|TOKEN|KEY|SQL_ALCHEMY|BROKER_URL")
    for _, pod in pods(rendered[case]):
        for container in containers(pod):
            for name, value in variables(container).items():
                assert not secret.search(name) or "secretKeyRef" in value or name == "RCLONE_AUTH_KEY", name
            words = " ".join(container.get("command", []) + container.get("args", []))
            assert not re.search(r"://[^ /@]*:[^ /@]*@", words)


def test_a_trial_makes_each_password_anew_and_fits_them_together(rendered: dict[str, list[Object]]) -> None:
    first, second = (
        {one["metadata"]["name"]: one["stringData"] for one in found if one["kind"] == "Secret"}
        for found in (rendered["demo"], render(DEMO))
    )
    own, steps, mlflow = first["team-demo"], first["secateur-demo-steps"], first["secateur-demo-mlflow"]
    assert {len(value) for value in own.values()} == {32}
    assert len(set(own.values())) == len(own)
    assert not set(own.values()) & set(second["team-demo"].values())
    assert steps["MLFLOW_TRACKING_PASSWORD"] == mlflow["MLFLOW_AUTH_ADMIN_PASSWORD"] == own["mlflow"]
    assert steps["AWS_SECRET_ACCESS_KEY"] == mlflow["AWS_SECRET_ACCESS_KEY"] == own["s3-secret"]
    assert f":{own['airflow-database']}@team-postgres:5432/" in first["secateur-demo-airflow-database"]["connection"]
    assert len(base64.urlsafe_b64decode(first["secateur-demo-fernet"]["fernet-key"])) == 32
    for name, values in first.items():
        for key, value in values.items():  # none is one of the chart's
            known = key.endswith(("USERNAME", "EMAIL"))
            assert known or any(one in value or value == _encoded(one) for one in own.values()), (name, key)
    for _, pod in pods(rendered["demo"]):
        for wanted in (key for one in containers(pod) for key in _references(one)):
            assert wanted["key"] in first[wanted["name"]] or wanted.get("optional")


def _encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _references(container: Object) -> list[Object]:
    return [value["secretKeyRef"] for value in variables(container).values() if isinstance(value, dict)]


@pytest.mark.parametrize("case", CASES)
def test_where_steps_run_is_a_placement(rendered: dict[str, list[Object]], case: str) -> None:
    text = the(rendered[case], "ConfigMap", "team-placement")["data"]["placement.yaml"]
    places = section(placement.Placement, text, case)
    values = together(VALUES, CASES[case])
    assert places.train.gpus == values["steps"]["train"]["gpus"]
    assert places.train.memory_gb == 16
    assert set(places.targets) == set(values["targets"])
    if "edge-cpu" in places.targets:
        edge, server = places.targets["edge-cpu"], places.targets["server-cpu"]
        assert (edge.cpus, edge.memory_gb, edge.node_selector) == (1.5, 8, EDGE["nodeSelector"])
        assert edge.tolerations[0].key == "edge"
        assert (server.cpus, server.node_selector) == (2, {"pool": "server"})


def test_celery_has_a_worker_for_each_queue(rendered: dict[str, list[Object]]) -> None:
    workers = {name: pod for name, pod in pods(rendered["celery"]) if pod["containers"][0]["name"] == "worker"}
    queues = {name: pod["containers"][0]["args"][3] for name, pod in workers.items()}
    assert queues == {
        "Deployment team-worker-control": "default",
        "Deployment team-worker-train": "train",
        "Deployment team-worker-bench": "bench",
        "Deployment team-device-edge-cpu": "edge",
        "Deployment team-device-server-cpu": "server",
    }
    number = dict(pods(rendered["numbers"]))["Deployment team-device-4090"]["containers"][0]
    assert number["args"][3] == "4091"
    assert variables(number)["SECATEUR_DEVICE"] == "4090"
    edge = workers["Deployment team-device-edge-cpu"]
    assert edge["nodeSelector"] == EDGE["nodeSelector"]
    assert edge["tolerations"] == EDGE["tolerations"]
    assert variables(edge["containers"][0])["SECATEUR_DEVICE"] == "edge-cpu"
    assert edge["containers"][0]["resources"] == {
        "requests": {"cpu": "1.5", "memory": "8Gi"},
        "limits": {"memory": "8Gi"},
    }
    strategy = {
        name: the(rendered["celery"], "Deployment", name.split()[1])["spec"]["strategy"]["type"] for name in workers
    }
    assert {name.split("-")[-1] for name, kind in strategy.items() if kind == "RollingUpdate"} == {"control", "train"}
    shared = the(rendered["celery"], "ConfigMap", "team-environment")["data"]
    assert shared["AIRFLOW__OPERATORS__DEFAULT_QUEUE"] == queues["Deployment team-worker-control"]
    assert not any("JWT" in str(pod) for name, pod in pods(rendered["celery"]) if "worker" in name)
    a_day = 24 * 3600  # after which Redis would give a step to a second worker
    assert int(shared["AIRFLOW__CELERY_BROKER_TRANSPORT_OPTIONS__VISIBILITY_TIMEOUT"]) > a_day
    for case in ("kubernetes", "local"):
        assert not [name for name, _ in pods(rendered[case]) if "worker" in name]


def test_workers_start_anew_for_another_environment_and_for_nothing_else() -> None:
    def marks(changes: Values) -> set[str]:
        found = [
            one
            for one in render(together(EXTERNAL, CELERY, {"recipes": {"a.yaml": "model: a"}}, changes))
            if "worker" in one["metadata"]["name"] and one["kind"] == "Deployment"
        ]
        return {one["spec"]["template"]["metadata"]["annotations"]["checksum/environment"] for one in found}

    (mark,) = marks({})
    assert marks(
        {"recipes": {"b.yaml": "model: b"}, "steps": {"bench": {"memoryGb": 9}}, "targets": TARGETS["targets"]}
    ) == {mark}
    assert marks({"bucket": {"uri": "s3://other"}}) != {mark}


def test_what_reads_settings_when_it_starts_is_found_by_the_selectors_that_the_docs_give(
    rendered: dict[str, list[Object]],
) -> None:
    text = (CHART.parents[1] / "docs" / "kubernetes.md").read_text()
    theirs, ours = re.findall(r"kubectl rollout restart (\S+) --namespace secateur --selector (\S+)", text)
    assert theirs == ("deployment,statefulset", "release=secateur")  # the labels of the official chart
    wanted = dict(pair.split("=") for pair in ours[1].replace("instance=secateur", "instance=team").split(","))
    for one in rendered["celery"]:
        if one["kind"] == "Deployment":
            assert wanted.items() <= one["metadata"]["labels"].items()


def test_gpus_of_a_kind_of_step_are_asked_for(rendered: dict[str, list[Object]]) -> None:
    train = dict(pods(rendered["both"]))["Deployment team-worker-train"]
    assert train["nodeSelector"] == {"pool": "gpu"}
    assert train["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 2
    bench = dict(pods(rendered["both"]))["Deployment team-worker-bench"]
    assert "nvidia.com/gpu" not in bench["containers"][0]["resources"]["limits"]


def test_only_distributed_recovery_asks_the_kubernetes_api(rendered: dict[str, list[Object]]) -> None:
    for case, found in rendered.items():
        account = together(VALUES, CASES[case])["airflow"]["workers"]["kubernetes"]["serviceAccount"]["name"]
        roles = [one for one in found if one["kind"] in ("Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding")]
        tokens = [one["metadata"]["name"] for one in found if one.get("automountServiceAccountToken")]
        distributed = together(VALUES, CASES[case])["recovery"]["distributed"]
        assert [one["kind"] for one in roles] == (["Role", "RoleBinding"] if distributed else []), case
        assert tokens == ([account] if distributed else []), case
    role, binding = (
        the(rendered["distributed"], "Role", "team-recovery"),
        the(rendered["distributed"], "RoleBinding", "team-recovery"),
    )
    may = {
        (group, resource): set(rule["verbs"])
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }
    assert may == {
        ("", "pods"): {"get"},
        ("", "services"): {"create", "get", "delete"},
        ("batch", "jobs"): {"create", "get", "list", "delete"},
        ("batch", "jobs/status"): {"get"},
        (nodes.OPERATOR["group"], nodes.OPERATOR["plural"]): {"create", "get", "list", "delete"},
    }
    assert [one["name"] for one in binding["subjects"]] == ["secateur-steps"]


def _selects(selector: Object, labels: dict[str, str]) -> bool:
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items())


def _reaches(found: list[Object], source: dict[str, str], to: dict[str, str], port: int) -> bool:
    """Whether the network policies let one pod of the namespace speak to another."""

    def allowed(side: str, me: dict[str, str], other: dict[str, str]) -> bool:
        mine = [
            one["spec"] for one in found if one["kind"] == "NetworkPolicy" and _selects(one["spec"]["podSelector"], me)
        ]
        mine = [spec for spec in mine if side.title() in spec["policyTypes"]]
        rules = [rule for spec in mine for rule in spec.get(side, ())]
        peers = "from" if side == "ingress" else "to"
        return not mine or any(
            (
                peers not in rule
                or any("podSelector" in peer and _selects(peer["podSelector"], other) for peer in rule[peers])
            )
            and ("ports" not in rule or any(one["port"] == port for one in rule["ports"]))
            for rule in rules
        )

    return allowed("egress", source, to) and allowed("ingress", to, source)


OUTSIDE = {"app": "outside of the release"}


def test_pods_reach_what_they_need_and_nothing_else(rendered: dict[str, list[Object]]) -> None:
    found = rendered["celery"]
    own = {"app.kubernetes.io/name": "secateur", "app.kubernetes.io/instance": "team"}
    parts = ("mlflow", "mlflow-migration", "serving", "prepare", "postgres", "s3")
    of = {one: {**own, "app.kubernetes.io/component": one} for one in parts}
    doctor = the(found, "Pod", "team-doctor")["metadata"]["labels"]
    worker = the(found, "Deployment", "team-worker-train")["spec"]["template"]["metadata"]["labels"]
    airflow = {"tier": "airflow", "release": "team", "component": "scheduler"}
    machine = {
        "app.kubernetes.io/name": "secateur",
        "app.kubernetes.io/component": "recovery",
        "secateur/nodes": "secateur-1",
    }
    stranger = {"app": "else"}
    for source, to, port in (
        (worker, of["mlflow"], 5000),
        (airflow, of["mlflow"], 5000),
        (machine, of["mlflow"], 5000),
        (worker, airflow, 8080),
        (airflow, worker, 8793),
        (machine, machine, nodes.PORT),
        (machine, machine, 41234),
        (stranger, of["serving"], 8500),
        (doctor, of["mlflow"], 5000),
        (doctor, airflow, 8080),
        (doctor, OUTSIDE, 6379),
        (of["prepare"], OUTSIDE, 5432),
        (of["mlflow-migration"], OUTSIDE, 5432),
    ):
        assert _reaches(found, source, to, port), (source, to, port)
    for source, to, port in (
        (stranger, of["mlflow"], 5000),
        (stranger, worker, 8793),
        (stranger, machine, nodes.PORT),
        (stranger, airflow, 8080),
        (of["serving"], of["mlflow"], 5000),
        (worker, of["mlflow"], 22),
        (of["prepare"], of["mlflow"], 5000),
        (of["mlflow-migration"], airflow, 8080),
        (OUTSIDE, doctor, 8080),
    ):
        assert not _reaches(found, source, to, port), (source, to, port)
    assert not _reaches(rendered["exposed"], stranger, of["serving"], 8500)
    for source in (airflow, doctor, of["prepare"], of["mlflow"]):
        assert _reaches(rendered["demo"], source, of["postgres"], 5432), source
    for source in (airflow, doctor, of["serving"], of["mlflow"]):
        assert _reaches(rendered["demo"], source, of["s3"], 9000), source
    for to, port in (("postgres", 5432), ("s3", 9000)):
        assert not _reaches(rendered["demo"], stranger, of[to], port)
        assert not _reaches(rendered["demo"], of["serving"], of[to], 22)


def test_ports_outside_are_those_of_the_values(rendered: dict[str, list[Object]]) -> None:
    own = {"app.kubernetes.io/name": "secateur", "app.kubernetes.io/instance": "team"}
    serving, migration = ({**own, "app.kubernetes.io/component": one} for one in ("serving", "mlflow-migration"))
    airflow = {"tier": "airflow", "release": "team"}
    elsewhere = {
        "bucket": {"endpoint": "https://s3.example:9000"},
        "mlflow": {"database": {"port": 6432}},
        "settings": {"notifyEmail": "team@example"},
        "networkPolicies": {"egress": [*VALUES["networkPolicies"]["egress"], {"ports": [{"port": 1025}]}]},
    }
    found = render(together(EXTERNAL, elsewhere))
    for port in (53, 443, 5432, 6432, 9000):
        assert _reaches(found, serving, OUTSIDE, port)
        assert _reaches(found, migration, OUTSIDE, port)
        assert _reaches(found, airflow, OUTSIDE, port)
    for port in (80, 6432, 9000):
        assert not _reaches(rendered["kubernetes"], airflow, OUTSIDE, port)
    closed = render(together(EXTERNAL, {"networkPolicies": {"egress": []}}))
    assert [port for port in (53, 443, 5432) if _reaches(closed, airflow, OUTSIDE, port)] == [53, 5432]
    for uri, port in (("http://mlflow.example/path", 80), ("http://mlflow.example:5001", 5001)):
        assert _reaches(render(together(EXTERNAL, THEIRS, {"mlflow": {"uri": uri}})), airflow, OUTSIDE, port)


def test_rules_that_name_an_address_stay_as_narrow() -> None:
    rules = [{"to": [{"ipBlock": {"cidr": "10.0.0.0/8"}}], "ports": [{"port": 9000}, {"port": 5432}]}]
    narrow = {"bucket": {"endpoint": "http://s3.example:9000"}, "networkPolicies": {"egress": rules}}
    for one in render(together(EXTERNAL, narrow)):
        if one["kind"] == "NetworkPolicy":
            outside = [rule for rule in one["spec"].get("egress", ()) if "to" not in rule]
            assert {port["port"] for rule in outside for port in rule["ports"]} <= {53}


def test_mlflow_asks_who_comes_and_by_which_name(rendered: dict[str, list[Object]]) -> None:
    pod = dict(pods(rendered["exposed"]))["Deployment team-mlflow"]
    args = pod["containers"][0]["args"]
    hosts = next(one for one in args if one.startswith("--allowed-hosts=")).partition("=")[2].split(",")
    assert {
        "team-mlflow",
        "team-mlflow:5000",
        "localhost:5000",
        "it.example",
        "it.example:443",
        "mlflow.internal",
    } <= set(hosts)
    assert "*" not in hosts
    assert "--cors-allowed-origins=https://mlflow.internal,https://it.example" in args
    assert "--app-name=basic-auth" in args
    assert "--artifacts-destination=s3://models/secateur/mlflow" in args
    assert pod["containers"][0]["livenessProbe"]["httpGet"]["path"] == "/health"  # answers by any name
    address = the(rendered["exposed"], "ConfigMap", "team-environment")["data"]["MLFLOW_TRACKING_URI"]
    assert address.removeprefix("http://") in hosts


def test_databases_are_migrated_before_their_servers_start(rendered: dict[str, list[Object]]) -> None:
    job = the(rendered["kubernetes"], "Job", "team-mlflow-migration")
    assert job["metadata"]["annotations"]["helm.sh/hook"] == "pre-install,pre-upgrade"
    pod = job["spec"]["template"]["spec"]
    assert "serviceAccountName" not in pod  # the release's are made after this hook
    commands = [container["command"] for container in containers(pod)]
    assert [command[:-1] for command in commands] == [
        ["mlflow", "db", "upgrade"],
        ["python", "-m", "mlflow.server.auth", "db", "upgrade", "--url"],
    ]
    server = dict(pods(rendered["demo"]))["Deployment team-mlflow"]
    assert [
        container["command"] for container in server["initContainers"]
    ] == commands  # its Postgres comes with the release
    assert not [one for one in rendered["demo"] if one["metadata"]["name"] == "team-mlflow-migration"]


def test_pools_are_imported_and_an_administrator_made_from_a_secret(rendered: dict[str, list[Object]]) -> None:
    for case, made in (("kubernetes", False), ("exposed", True)):
        job = the(rendered[case], "Job", "team-prepare")
        container = job["spec"]["template"]["spec"]["containers"][0]
        assert job["metadata"]["annotations"]["helm.sh/hook"] == "post-install,post-upgrade"
        assert "secateur pools > /tmp/pools.json\nairflow pools import /tmp/pools.json" in container["args"][-1]
        assert ("users create" in container["args"][-1]) == made
        assert ("AIRFLOW_ADMIN_PASSWORD" in variables(container)) == made


def test_the_server_of_models_asks_for_a_token(rendered: dict[str, list[Object]]) -> None:
    plain, exposed = (
        dict(pods(rendered[case]))["Deployment team-serving"]["containers"][0] for case in ("kubernetes", "exposed")
    )
    assert variables(plain)["SECATEUR_SERVE_TOKEN"] == {
        "secretKeyRef": {"name": "serving", "key": "SECATEUR_SERVE_TOKEN"}
    }
    assert plain["args"][:2] == ["serve", "--host=0.0.0.0"]
    assert plain["livenessProbe"]["httpGet"] == {"path": "/v2/health/live", "port": "http", "scheme": "HTTP"}
    assert plain["readinessProbe"]["httpGet"]["path"] == "/v2/health/ready"
    assert {"digits-cnn", "--tls-cert=/etc/tls/tls.crt", "--no-log"} <= set(exposed["args"])
    assert exposed["readinessProbe"]["httpGet"]["scheme"] == "HTTPS"
    endpoint = the(rendered["monitored"], "ServiceMonitor", "team-serving")["spec"]["endpoints"][0]
    assert endpoint["authorization"]["credentials"] == {"name": "serving", "key": "SECATEUR_SERVE_TOKEN"}
    assert endpoint["scheme"] == "https"
    number = the(rendered["numbers"], "ServiceMonitor", "team-serving")["spec"]["endpoints"][0]
    assert (number["interval"], number["authorization"]["credentials"]["name"]) == ("30", "8")
    # the name that docs/kubernetes.md asks of the certificate, by its own authority or by that of the installation
    named = {"serverName": "team-serving.models", "ca": {"secret": {"name": "own", "key": "ca.crt"}}}
    assert endpoint["tlsConfig"] == named
    both = render(together(EXTERNAL, EXPOSED, MONITORED))
    ca = the(both, "ServiceMonitor", "team-serving")["spec"]["endpoints"][0]["tlsConfig"]["ca"]
    assert ca == {"configMap": {"name": "authorities", "key": "ca.crt"}}


def test_own_authorities_are_known_to_every_client(rendered: dict[str, list[Object]]) -> None:
    shared = the(rendered["exposed"], "ConfigMap", "team-environment")["data"]
    names = ("REQUESTS_CA_BUNDLE", "AWS_CA_BUNDLE", "PGSSLROOTCERT")
    assert {shared[name] for name in names} == {"/etc/secateur-authorities/ca.crt"}
    for name, pod in pods(rendered["exposed"]):
        mounts = {one["mountPath"] for container in pod["containers"] for one in container["volumeMounts"]}
        assert "/etc/secateur-authorities" in mounts, name
        sources = [one["configMap"]["name"] for one in pod["volumes"] if one["name"] == "authorities"]
        assert sources == ["authorities"], name
    server = dict(pods(rendered["exposed"]))["Deployment team-mlflow"]["containers"][0]
    assert variables(server)["PGSSLROOTCERT"] == "/etc/secateur-authorities/ca.crt"
    assert "REQUESTS_CA_BUNDLE" not in the(rendered["kubernetes"], "ConfigMap", "team-environment")["data"]
    airflow = VALUES["airflow"]
    parts = ("scheduler", "apiServer", "dagProcessor", "triggerer", "migrateDatabaseJob")
    for part in (*(airflow[name] for name in parts), airflow["workers"]["kubernetes"]):
        assert "secateur-authorities" in {one["name"] for one in part["extraVolumes"]}
        assert "/etc/secateur-authorities" in {one["mountPath"] for one in part["extraVolumeMounts"]}


def test_its_options_are_those_of_the_command(rendered: dict[str, list[Object]]) -> None:
    options = typer.main.get_group(app).commands["serve"].params
    known = {name for option in options for name in (*option.opts, *option.secondary_opts)}
    guarded = render(together(EXTERNAL, {"serving": {"auth": False}}))
    for found in (rendered["exposed"], guarded):
        args = dict(pods(found))["Deployment team-serving"]["containers"][0]["args"]
        assert {one.partition("=")[0] for one in args if one.startswith("--")} <= known
    assert "--no-auth" in args


def test_ways_in_end_in_tls(rendered: dict[str, list[Object]]) -> None:
    ways = [one for one in rendered["exposed"] if one["kind"] == "Ingress"]
    assert len(ways) == 2
    assert all(one["spec"]["tls"] == [{"hosts": ["it.example"], "secretName": "certificate"}] for one in ways)


def test_workers_keep_their_logs_where_airflows_chart_keeps_them() -> None:
    kept = {"airflow": {"logs": {"persistence": {"enabled": True, "subPath": "airflow"}}}}
    workers = {name: pod for name, pod in pods(render(together(EXTERNAL, CELERY, kept))) if "worker" in name}
    assert workers
    for pod in workers.values():
        assert {"name": "logs", "persistentVolumeClaim": {"claimName": "team-logs"}} in pod["volumes"]
        mount = {"name": "logs", "mountPath": "/opt/airflow/logs", "subPath": "airflow"}
        assert mount in pod["containers"][0]["volumeMounts"]


def test_deployments_have_disruption_budgets(rendered: dict[str, list[Object]]) -> None:
    for found in rendered.values():
        budgets = [one["spec"]["selector"] for one in found if one["kind"] == "PodDisruptionBudget"]
        assert [one["spec"]["selector"] for one in found if one["kind"] == "Deployment"] == budgets


REFUSED: dict[str, Values] = {
    "airflow.data.metadataSecretName: expected the name of a secret with key connection": {
        "airflow": {"data": {"metadataSecretName": ""}}
    },
    "airflow.fernetKeySecretName: expected the name": {"airflow": {"fernetKeySecretName": ""}},
    "airflow.jwtSecretName: expected the name": {"airflow": {"jwtSecretName": ""}},
    "global.secateur.stepsSecretName: expected the name of a secret with keys AWS_ACCESS_KEY_ID": {
        "global": {"secateur": {"stepsSecretName": ""}}
    },
    "mlflow.secretName: expected the name of a secret with keys PGPASSWORD": {"mlflow": {"secretName": ""}},
    "serving.secretName: expected the name of a secret with keys SECATEUR_SERVE_TOKEN": {"serving": {"secretName": ""}},
    "airflow.data.brokerUrlSecretName: expected the name": {"airflow": {"executor": "CeleryExecutor"}},
    "targets.edge.queue: expected a queue of its own with the CeleryExecutor, got none": together(
        CELERY, {"targets": {"edge": {"cpus": 1}}}
    ),
    "targets.edge.nodeSelector: expected labels of the nodes that are this device": {"targets": {"edge": {"cpus": 1}}},
    "targets.edge-cpu: expected none with the LocalExecutor": together(LOCAL, {"targets": {"edge-cpu": EDGE}}),
    "targets.two.queue: expected a queue of its own, got q, which is that of targets.one": {
        "targets": {"one": {"queue": "q"}, "two": {"queue": "q"}}
    },
    "targets.one.queue: expected a queue of its own, got bench, which is that of steps.bench": {
        "targets": {"one": {"queue": "bench"}}
    },
    "targets: a name must be of small letters": {"targets": {"Edge": {"queue": "edge"}}},
    "steps.train.queue: expected a queue": together(CELERY, {"steps": {"train": {"queue": ""}}}),
    "recovery.distributed: expected airflow.executor KubernetesExecutor": together(
        CELERY, {"recovery": {"distributed": True}}
    ),
    "expected secateur-worker with the LocalExecutor": {"airflow": {"executor": "LocalExecutor"}},
    "airflow.images.pod_template: expected images.worker, secateur-worker:0.1.0": {
        "airflow": {"images": {"pod_template": {"tag": "0.0.9"}}}
    },
    "mlflow.ingress: expected host and tlsSecretName": {"mlflow": {"ingress": {**INGRESS, "tlsSecretName": ""}}},
    "serving.ingress: expected host and tlsSecretName": {"serving": {"ingress": {**INGRESS, "host": ""}}},
    "serving.auth: expected true with serving.ingress": {"serving": {"auth": False, "ingress": INGRESS}},
    "airflow.ingress.apiServer.hosts: expected tls.enabled": {
        "airflow": {"ingress": {"apiServer": {"enabled": True, "hosts": [{"name": "a.example"}]}}}
    },
    "airflow.ingress.apiServer.hosts: expected tls.enabled and tls.secretName of b.example": {
        "airflow": {"ingress": {"apiServer": {"enabled": True, "hosts": ["b.example"]}}}
    },
    "airflow.ingress.enabled, airflow.ingress.apiServer.host: expected none": {
        "airflow": {"ingress": {"enabled": True}}
    },
    "airflow.createUserJob.enabled, airflow.webserver.defaultUser.enabled: expected false": {
        "airflow": {"createUserJob": {"enabled": True}}
    },
    "expected false, for it makes a user with a password": {
        "airflow": {"webserver": {"defaultUser": {"enabled": True}}}
    },
    "airflow.useStandardNaming, airflow.nameOverride: expected true": {"airflow": {"useStandardNaming": False}},
    "expected true and none, for parts of this chart": {"airflow": {"nameOverride": "flow"}},
    "bucket.uri: expected an address like s3://": {"bucket": {"uri": ""}},
    "mlflow.uri: expected none where mlflow.enabled": {"mlflow": {"uri": "https://mlflow.example"}},
    "mlflow.uri: expected the address of your MLflow": {"mlflow": {"enabled": False}},
    "mlflow.database.host: expected the host of a Postgres": {"mlflow": {"database": {"host": ""}}},
    "airflow.volumes: expected secateur-home of values.yaml beside": {
        "airflow": {"volumes": [{"name": "x", "emptyDir": {}}]}
    },
    "airflow.extraEnv: expected secateur.stepsEnvironment": {"airflow": {"extraEnv": "- {name: A, value: b}"}},
    "airflow.scheduler.extraVolumes: expected secateur-placement": {"airflow": {"scheduler": {"extraVolumes": []}}},
    "airflow.migrateDatabaseJob.extraVolumes: expected secateur-authorities": {
        "airflow": {"migrateDatabaseJob": {"extraVolumes": []}}
    },
    "settings.databaseSslmode: expected global.secateur.authoritiesConfigMapName with verify-full, got none": {
        "settings": {"databaseSslmode": "verify-full"}
    },
    "mlflow.database.sslmode: expected global.secateur.authoritiesConfigMapName with verify-ca, got none": {
        "mlflow": {"database": {"sslmode": "verify-ca"}}
    },
    "networkPolicies.egress: expected a rule with the mail server's port for settings.notifyEmail, got the default": {
        "settings": {"notifyEmail": "team@example"}
    },
    "networkPolicies.mlflowFrom: expected who comes by mlflow.ingress, got nobody": {"mlflow": {"ingress": INGRESS}},
    "networkPolicies.servingFrom: expected who comes by serving.ingress, got nobody": {"serving": {"ingress": INGRESS}},
    "networkPolicies.servingFrom: expected who comes by serving.serviceMonitor, got nobody": together(
        MONITORED, {"networkPolicies": {"servingFrom": []}}
    ),
    "networkPolicies.airflowFrom: expected who comes by airflow.ingress.apiServer, got nobody": {
        "airflow": {"ingress": {"apiServer": {"enabled": True}}}
    },
    "serving.ingress.annotations: expected the protocol of the pods with serving.tlsSecretName, got none": {
        "serving": {"ingress": INGRESS, "tlsSecretName": "own"}
    },
    "for nginx add nginx.ingress.kubernetes.io/backend-protocol: HTTPS": {
        "serving": {
            "ingress": {**INGRESS, "annotations": {"nginx.ingress.kubernetes.io/backend-protocol": "http"}},
            "tlsSecretName": "own",
        }
    },
    "KubernetesExecutor, first of several, whose pods are the pattern of the machines, got CeleryExecutor,": together(
        CELERY, {"recovery": {"distributed": True}, "airflow": {"executor": "CeleryExecutor,KubernetesExecutor"}}
    ),
    "targets.first.nodeSelector: expected labels": together(
        CELERY, {"targets": {"first": {"queue": "q"}}, "airflow": {"executor": "KubernetesExecutor,CeleryExecutor"}}
    ),
    "targets.edge-cpu: expected none with the LocalExecutor, whose steps all": together(
        CELERY, LOCAL, {"targets": {"edge-cpu": EDGE}, "airflow": {"executor": "LocalExecutor,CeleryExecutor"}}
    ),
    "airflow.images.airflow.tag: expected release 0.1.0, that of images.worker, got 0.0.9": {
        "airflow": {"images": {"airflow": {"tag": "0.0.9"}}}
    },
    "images.mlflow.tag: expected release 0.1.0, that of images.worker, got 0.2.0": {
        "images": {"mlflow": {"tag": "0.2.0"}}
    },
    "airflow.airflowVersion: expected 3.3.2, which the images have, got 3.2.0": {
        "airflow": {"airflowVersion": "3.2.0"}
    },
    "images.serve.tag: expected a release, got latest": {"images": {"serve": {"tag": "latest"}}},
}


@pytest.mark.parametrize("sentence", REFUSED)
def test_what_cannot_work_is_refused_with_a_sentence(sentence: str) -> None:
    assert sentence in refusal(together(EXTERNAL, REFUSED[sentence]))


def test_an_image_of_ones_own_says_which_release_it_is_made_from() -> None:
    assert render(together(EXTERNAL, CELERY, {"images": {"worker": {"tag": "0.1.0-ours"}}}))
    # without a part, its image is nobody's
    assert render(together(EXTERNAL, {"serving": {"enabled": False}, "images": {"serve": {"tag": "0.0.9"}}}))


def test_a_trial_is_not_half_external() -> None:
    said = refusal(
        together(
            DEMO, {"bucket": {"endpoint": "https://s3.example"}, "mlflow": {"database": {"host": "postgres.example"}}}
        )
    )
    assert "bucket.endpoint: expected none with demo.enabled" in said
    assert "mlflow.database.host: expected none with demo.enabled" in said
    said = refusal(together(DEMO, {"mlflow": {"database": {"port": 6432, "name": "models", "user": "us"}}}))
    assert "mlflow.database.port: expected 5432 with demo.enabled, which makes this one, got 6432; leave it out" in said
    assert "mlflow.database.name: expected mlflow with" in said
    assert "mlflow.database.user: expected mlflow with" in said


def test_all_that_is_missing_is_said_at_once() -> None:
    said = refusal({})
    assert all(f"{value}: expected" in said for value in ("bucket.uri", "mlflow.secretName", "airflow.jwtSecretName"))


def test_unknown_values_and_wrong_types_are_refused() -> None:
    wrong: list[Values] = [
        {"mflow": {}},
        {"serving": {"replica": 3}},
        {"targets": {"edge": {"queue": "edge", "gpu": 1}}},
        {"steps": {"gpu": {}}},
        {"steps": {"train": {"gpus": -1}}},
        {"serving": {"replicas": "two"}},
        {"airflow": {"executor": "SequentialExecutor"}},
        {"recipes": {"../mine.yaml": "model: a"}},
    ]
    for values in wrong:
        with pytest.raises(helm.HelmValuesError, match="schema"):
            render(together(EXTERNAL, values))


def _described(schema: Object, path: str = "") -> Iterator[tuple[str, Object]]:
    for key, one in schema.get("properties", {}).items():
        yield f"{path}{key}", one
        yield from _described(one, f"{path}{key}.")


def _given(values: Values, path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        yield f"{path}{key}", value
        if isinstance(value, dict):
            yield from _given(value, f"{path}{key}.")


def _comments() -> dict[str, str]:
    """What stands above each value in values.yaml."""
    found: dict[str, str] = {}
    where: list[str] = []
    above: list[str] = []
    for line in (CHART / "values.yaml").read_text().splitlines():
        comment, value = re.match(r" *# ?(.*)", line), re.match(r"( *)(\w+):", line)
        if value:
            where = [*where[: len(value[1]) // 2], value[2]]
            found[".".join(where)] = " ".join(above)
        above = [*above, comment[1]] if comment else []
    return found


def test_the_schema_says_what_values_yaml_says() -> None:
    described, given, comments = dict(_described(SCHEMA)), dict(_given(VALUES)), _comments()
    ours = {path for path in given if not path.startswith("airflow.")}
    assert ours == {path for path in described if not path.startswith("airflow.")}
    for path, schema in described.items():
        assert schema["description"] == comments[path] != "", path
        if "properties" in schema:
            assert schema["additionalProperties"] is (path in ("global", "airflow")), path
        else:
            assert schema["default"] == given[path], path
    assert SCHEMA["additionalProperties"] is False


def test_airflow_is_set_by_names_that_its_chart_has() -> None:
    for values in (VALUES["airflow"], DEMO["airflow"]):
        for path, value in _given(values):
            known = any(path == name or path.startswith(f"{name}.") for name in OFFICIAL)
            assert known or (isinstance(value, dict) and any(name.startswith(f"{path}.") for name in OFFICIAL)), path
    assert VALUES["airflow"]["airflowVersion"] == locked("apache-airflow")
    wanted = yaml.safe_load((CHART / "Chart.yaml").read_text())["dependencies"]
    assert [(one["name"], one["version"]) for one in wanted] == [("airflow", "1.22.0")]


STAND_IN = """
apiVersion: v1
kind: Pod
metadata: {name: scheduler}
spec:
  containers:
    - name: scheduler
      envFrom: {{- tpl .Values.extraEnvFrom . | nindent 8 }}
      env: {{- tpl .Values.extraEnv . | nindent 8 }}
        - {name: AIRFLOW__KUBERNETES_EXECUTOR__IMAGE, value: '{{ tpl .Values.config.kubernetes_executor.worker_container_repository . }}'}
      volumeMounts: {{- tpl (toYaml .Values.scheduler.extraVolumeMounts) . | nindent 8 }}
  volumes: {{- tpl (toYaml .Values.scheduler.extraVolumes) . | nindent 4 }}
"""


def test_airflow_is_told_what_steps_need(tmp_path: Path) -> None:
    chart = shutil.copytree(CHART, tmp_path / "secateur")
    airflow = chart / "charts" / "airflow"
    (airflow / "templates").mkdir(parents=True)
    (airflow / "Chart.yaml").write_text("{apiVersion: v2, name: airflow, version: 1.22.0}")
    (airflow / "templates" / "scheduler.yaml").write_text(STAND_IN)
    found = render(EXTERNAL, chart, under="")
    pod = the(found, "Pod", "scheduler")["spec"]
    told = variables(pod["containers"][0])
    assert told["AWS_SECRET_ACCESS_KEY"] == {"secretKeyRef": {"name": "steps", "key": "AWS_SECRET_ACCESS_KEY"}}
    assert told["AIRFLOW__KUBERNETES_EXECUTOR__IMAGE"] == "secateur-worker"
    shared = the(found, "ConfigMap", pod["containers"][0]["envFrom"][0]["configMapRef"]["name"])["data"]
    assert shared["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] == "false"
    # else the entry point of Airflow's image puts the broker's password on a command line
    assert shared["CONNECTION_CHECK_MAX_COUNT"] == "0"
    mounts = {one["name"]: one["mountPath"] for one in pod["containers"][0]["volumeMounts"]}
    maps = {one["name"]: one["configMap"]["name"] for one in pod["volumes"]}
    assert shared["SECATEUR_PLACEMENT"] == f"{mounts['secateur-placement']}/placement.yaml"
    assert the(found, "ConfigMap", maps["secateur-placement"])["data"]["placement.yaml"]


def test_helm_test_examines_the_release_with_the_settings_of_steps_and_of_airflow(
    rendered: dict[str, list[Object]],
) -> None:
    def doctor(case: str) -> tuple[Object, dict[str, Any]]:
        pod = the(rendered[case], "Pod", "team-doctor")
        (container,) = pod["spec"]["containers"]
        return pod, {**container, "told": variables(container)}

    pod, container = doctor("celery")
    assert pod["metadata"]["annotations"]["helm.sh/hook"] == "test"
    assert pod["metadata"]["labels"]["secateur/worker"] == "true"  # network policies let it reach what workers reach
    assert (container["image"], container["command"]) == ("secateur-worker:0.1.0", ["secateur", "doctor"])
    assert "args" not in container
    assert container["told"]["AIRFLOW__CORE__EXECUTOR"] == "CeleryExecutor"
    assert container["told"]["AIRFLOW__CELERY__BROKER_URL"] == {"secretKeyRef": {"name": "broker", "key": "connection"}}
    assert container["told"]["MLFLOW_BACKEND_STORE_URI"].startswith("postgresql+psycopg2://mlflow@postgres.example")
    assert "SECATEUR_AIRFLOW_URL" not in container["told"]  # as whom, nobody has said
    told = doctor("exposed")[1]["told"]
    assert told["SECATEUR_AIRFLOW_URL"] == "http://team-airflow-api-server:8080"
    assert told["SECATEUR_AIRFLOW_PASSWORD"] == {"secretKeyRef": {"name": "admin", "key": "AIRFLOW_ADMIN_PASSWORD"}}
    assert "MLFLOW_BACKEND_STORE_URI" not in doctor("their MLflow")[1]["told"]


def test_tls_to_airflows_database_is_a_variable_that_all_of_its_drivers_read(
    rendered: dict[str, list[Object]],
) -> None:
    asked = {case: the(found, "ConfigMap", "team-environment")["data"]["PGSSLMODE"] for case, found in rendered.items()}
    assert asked.pop("demo") == "disable"
    assert asked.pop("exposed") == asked.pop("numbers") == "verify-full"
    assert set(asked.values()) == {"require"}


def test_notes_say_what_to_open() -> None:
    with helm.Chart.load(CHART) as chart:
        text = {
            case: chart.render(CASES[case], name="team", namespace="models")["secateur/templates/NOTES.txt"]
            for case in ("exposed", "demo", "monitored", "kubernetes")
        }
    assert "https://it.example" in text["exposed"]
    assert "port-forward service/team-airflow-api-server 8080:8080" in text["demo"]
    assert "secret secateur-demo-admin" in text["demo"]
    assert "https://team-serving.models:8500/v2 from whom networkPolicies.servingFrom names" in text["monitored"]
    assert "http://team-serving.models:8500/v2 from pods of this namespace" in text["kubernetes"]
    assert "trial" in text["demo"]
    assert "trial" not in text["exposed"]


def test_lint_finds_nothing_but_the_chart_that_is_fetched() -> None:
    found = helm.lint(CHART)
    assert found["errors"] == []
    warned = {one["error"] for one in found["messages"] if one["severity"] > 1}
    assert warned <= {"chart directory is missing these dependencies: airflow"}
