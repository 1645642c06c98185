"""Holds the manifests, the chart and the Dockerfile to the published schemas and to a real server. `python3 check.py ORTUS`

- Kubernetes's schemas of each version since 1.30, strictly (kubernetes-validate); KServe's from the models of its package.
- The chart, rendered by Helm's own library, is with its defaults what deploy/kubernetes has.
- Each pod is locked down, and its end leaves the time that the settings take.
- Each pod's and the image's arguments and variables start a server, as another user over a store that it cannot write, and
  every port, probe, metric and name is asked of it.
- In the end mistakes are made up, and each must be found.

Talks to servers that it starts on loopback, and to nothing else. Needs requirements.txt, and ORT_DYLIB_PATH as the server does.
"""

import ast
import contextlib
import copy
import http.client
import importlib.util
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

import helm_python
import kubernetes_validate
import kubernetes_validate.utils
import yaml

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent
VERSIONS = [version for version in kubernetes_validate.utils.all_versions() if int(version.split(".")[1]) >= 30]
START_SECONDS = 30
# What a stop may take after shutdown_grace_ms: the last poll, and the last spans.
AFTER_GRACE = 3
UID = 10001


def documents(folder, without=()):
    """(file, object) of each manifest."""
    for path in sorted(folder.glob("*.yaml")):
        if path.name not in without:
            for document in yaml.safe_load_all(path.read_text()):
                yield path.name, document


def rendered(values):
    with helm_python.Chart.load(str(HERE / "helm/ortus")) as chart:
        files = chart.render(values, name="ortus", namespace="ortus")
    for name, text in sorted(files.items()):
        for document in yaml.safe_load_all(text):
            if document:
                yield name.rsplit("/", 1)[-1], document


# --- schemas ------------------------------------------------------------------------------------


def kubernetes_problems(where, document):
    for version in VERSIONS:
        try:
            kubernetes_validate.validate(document, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            at = "/".join(str(part) for part in error.path)
            yield f"{where}: Kubernetes {version}: {at}: {error.message[:300]}"
            return
        except kubernetes_validate.SchemaNotFoundError as error:
            yield f"{where}: {error.message}"
            return


class KServe:
    """The types of KServe's objects, read from the sources of its package without running them."""

    def __init__(self):
        package = importlib.util.find_spec("kserve").submodule_search_locations[0]
        self.types = {}
        for path in (pathlib.Path(package) / "models").glob("v1*.py"):
            for node in ast.parse(path.read_text()).body:
                if isinstance(node, ast.ClassDef):
                    maps = {
                        item.targets[0].id: ast.literal_eval(item.value)
                        for item in node.body
                        if isinstance(item, ast.Assign) and item.targets[0].id in ("openapi_types", "attribute_map")
                    }
                    names = maps["attribute_map"]
                    self.types[node.name] = {names[key]: kind for key, kind in maps["openapi_types"].items()}

    def problems(self, where, value, kind):
        """What of `value` is not as its type says. Kubernetes's own types are looked at by `kubernetes_problems`, in a pod."""
        if inner := re.fullmatch(r"list\[(.*)\]", kind):
            if not isinstance(value, list):
                yield f"{where}: a list is expected"
                return
            for number, item in enumerate(value):
                yield from self.problems(f"{where}/{number}", item, inner[1])
        elif kind in self.types:
            if not isinstance(value, dict):
                yield f"{where}: an object is expected"
                return
            for key, item in value.items():
                if key not in self.types[kind]:
                    yield f"{where}: {kind} has no field {key}"
                else:
                    yield from self.problems(f"{where}/{key}", item, self.types[kind][key])
        else:
            plain = {"str": str, "int": int, "bool": bool, "dict(str, str)": dict}.get(kind)
            if plain and not isinstance(value, plain):
                yield f"{where}: {kind} is expected"

    def check(self, where, document):
        group, version = document["apiVersion"].split("/")
        kind = f"{version[0].upper()}{version[1:]}{document['kind']}"
        if group != "serving.kserve.io" or kind not in self.types:
            yield f"{where}: KServe has no {document['apiVersion']} {document['kind']}"
            return
        yield from self.problems(where, document, kind)


def runtime_pod(document):
    """The pod that a ServingRuntime describes, as a Deployment to look at."""
    labels = {"app.kubernetes.io/name": "ortus"}
    spec = {key: copy.deepcopy(document["spec"][key]) for key in ("containers", "volumes")}
    return {
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "ortus"},
        "spec": {"selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": spec}},
    }


# --- what pods must be --------------------------------------------------------------------------


def pod_problems(where, pod):
    """Of a pod whose container must be locked down."""
    for container in pod["containers"]:
        context = {**pod.get("securityContext", {}), **container.get("securityContext", {})}
        wanted = {
            "runAsNonRoot": True, "runAsUser": UID, "readOnlyRootFilesystem": True, "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]}, "seccompProfile": {"type": "RuntimeDefault"},
        }
        for key, value in wanted.items():
            if context.get(key) != value:
                yield f"{where}: {key} is {context.get(key)}, not {value}"
        for key in ("requests", "limits"):
            if "memory" not in container.get("resources", {}).get(key, {}):
                yield f"{where}: no {key} of memory"
        volumes = {volume["name"] for volume in pod["volumes"]}
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        for path, name in mounts.items():
            if name not in volumes:
                yield f"{where}: {path} names the volume {name}, which is not there"


def grace_problems(where, pod, environment, ends_after):
    container = pod["containers"][0]
    pause = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    needed = pause + int(environment["ORTUS_SERVER__SHUTDOWN_GRACE_MS"]) / 1000 + AFTER_GRACE
    if ends_after < needed:
        yield f"{where}: terminationGracePeriodSeconds is {ends_after}, a stop may take {needed:g}"


def settings_of(container, configs):
    environment = {variable["name"]: variable["value"] for variable in container.get("env", [])}
    for source in container.get("envFrom", []):
        environment |= configs[source["configMapRef"]["name"]]
    return environment


def port_of(container, port):
    """The number of a port that may be named."""
    if isinstance(port, int):
        return port
    return next((each["containerPort"] for each in container["ports"] if each["name"] == port), None)


# --- a real server ------------------------------------------------------------------------------


@contextlib.contextmanager
def server(ortus, arguments, environment, writes_store=False):
    """Starts it as a pod would: settings as they are, but on a free port of loopback and with folders of this machine.

    Gives its ports of REST and of gRPC (None: off), those that the settings name, a key where it asks for one, a function that
    says what it said, and one that runs the program where the server runs, and gives what that says."""
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        shutil.copytree(ROOT / "models" / "digits", folder / "models" / "digits")
        (folder / "cache").mkdir()
        environment, arguments = dict(environment), list(arguments)
        named = {
            "--listen": environment.get("ORTUS_SERVER__LISTEN", "127.0.0.1:8080"),
            "--grpc": environment.get("ORTUS_SERVER__GRPC_LISTEN", "127.0.0.1:8081"),
        }
        flags = {"--listen": "127.0.0.1:0", "--grpc": "127.0.0.1:0", "--models": str(folder / "models")}
        for place, flag in enumerate(arguments):
            if flag in flags:
                if flag in named:
                    named[flag] = arguments[place + 1]
                if arguments[place + 1] != "off":
                    arguments[place + 1] = flags[flag]
        if "--grpc" not in arguments and "ORTUS_SERVER__GRPC_LISTEN" not in environment:
            # Another server may have the usual port here.
            arguments += ["--grpc", flags["--grpc"]]
        settings = [None if address == "off" else int(address.rsplit(":", 1)[1]) for address in named.values()]
        for key, value in (
            ("ORTUS_SERVER__LISTEN", flags["--listen"]), ("ORTUS_STORE__MODELS_DIR", flags["--models"]),
            ("ORTUS_SERVER__GRPC_LISTEN", flags["--grpc"] if settings[1] else "off"),
            ("ORTUS_OPTIMIZATION__CACHE_DIR", str(folder / "cache")), ("ORTUS_AUTH__KEYS_FILE", str(folder / "keys.json")),
        ):
            if key in environment:
                environment[key] = value
        kept = {key: os.environ[key] for key in ("PATH", "ORT_DYLIB_PATH") if key in os.environ}
        other = {}
        if os.geteuid() == 0:
            # Nothing but the cache is this user's, as in the pod.
            folder.chmod(0o755)
            for path in (folder / "cache", folder / "models") if writes_store else (folder / "cache",):
                os.chown(path, UID, UID)
            reachable = subprocess.run(
                ["test", "-x", ortus, "-a", "-r", kept.get("ORT_DYLIB_PATH", "/")], user=UID, group=UID, extra_groups=[]
            )
            if reachable.returncode == 0:
                other = {"user": UID, "group": UID, "extra_groups": []}
            else:
                print("       the server runs as root here: another user does not reach its files")
        key = None
        if "ORTUS_AUTH__KEYS_FILE" in environment:
            made = {**kept, "ORTUS_AUTH__KEYS_FILE": environment["ORTUS_AUTH__KEYS_FILE"]}
            create = [ortus, "key", "create", "--role", "infer", "--name", "check"]
            key = subprocess.run(create, env=made, cwd=folder, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
            # A Secret's files belong to root and the pod's fsGroup.
            (folder / "keys.json").chmod(0o444)
        log, place = folder / "log", {"env": {**kept, **environment}, "cwd": folder / "models", **other}
        with log.open("w") as output:
            process = subprocess.Popen(
                [ortus, *arguments], stdout=output, stderr=subprocess.STDOUT, start_new_session=True, **place
            )
        inside = lambda *more: subprocess.run([ortus, *more], check=True, stdout=subprocess.PIPE, text=True, timeout=30, **place).stdout
        try:
            yield started(process, log, settings[1] is not None), settings, key, log.read_text, inside
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(START_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


class NotStarted(Exception):
    pass


def started(process, log, has_grpc):
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        said = log.read_text()
        found = re.search(r"listening on http://127\.0\.0\.1:(\d+)", said)
        grpc = re.search(r"gRPC on 127\.0\.0\.1:(\d+)", said)
        if found and (grpc or not has_grpc):
            port = int(found[1])
            while time.monotonic() < deadline and ask(port, "/readyz")[0] != 200:
                time.sleep(0.02)
            return port, grpc and int(grpc[1])
        time.sleep(0.02)
    raise NotStarted(log.read_text()[-600:])


def ask(port, path, host="127.0.0.1", method="GET", body=None, headers=None):
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)) as connection:
        connection.request(method, path, body, {"Host": host, **(headers or {})})
        response = connection.getresponse()
        return response.status, response.read().decode()


def speaks_http2(port):
    """Whether the port answers the opening of HTTP/2, with which gRPC begins, by its settings."""
    with contextlib.closing(socket.create_connection(("127.0.0.1", port), timeout=10)) as connection:
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
        head = connection.recv(9, socket.MSG_WAITALL)
        return len(head) == 9 and head[3] == 4


def live_problems(where, ortus, pod, configs, annotations, names, metrics=(), offered=lambda *ports: [port for port in ports if port]):
    """Whether a server with the pod's settings starts, and has what the pod says of it; `names` are what clients call it, `offered`
    says which of its ports of REST and of gRPC the container names."""
    container = pod["containers"][0]
    environment = settings_of(container, configs)
    try:
        with server(ortus, container["args"], environment) as ((port, grpc), (listens_on, grpc_on), key, said, _):
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                get = container[probe]["httpGet"]
                if port_of(container, get["port"]) != listens_on:
                    yield f"{where}: {probe} asks port {get['port']}, the server listens on {listens_on}"
                if (status := ask(port, get["path"])[0]) != 200:
                    yield f"{where}: {probe}: {get['path']} answers {status}"
            ports = offered(listens_on, grpc_on)
            if [each["containerPort"] for each in container["ports"]] != ports:
                yield f"{where}: the server listens on {ports}, the ports are {container['ports']}"
            if grpc_on and not speaks_http2(grpc):
                yield f"{where}: the port of gRPC speaks no HTTP/2"
            prefix = next(key for key in annotations if key.endswith("/port")).rsplit("/", 1)[0]
            if int(annotations[f"{prefix}/port"]) != listens_on:
                yield f"{where}: {prefix}/port is not the port of the server"
            path, headers = annotations[f"{prefix}/path"], {"Authorization": f"Bearer {key}"} if key else {}
            if key and (status := ask(port, path)[0]) != 401:
                yield f"{where}: without a key {path} answers {status}"
            status, text = ask(port, path, headers=headers)
            for metric in metrics:
                if status != 200 or not re.search(rf"^{metric}{{", text, re.MULTILINE):
                    yield f"{where}: /metrics has no {metric}"
            if "--insecure" not in container["args"] and environment.get("ORTUS_AUTH__REQUIRE") != "true":
                # The server here listens on loopback, and so starts all the same.
                yield f"{where}: without a key in the Secret, a server that others reach does not start"
            for name in names:
                if (status := ask(port, "/livez", host=name)[0]) != 200:
                    yield f"{where}: asked as {name} it answers {status}"
            picture = (ROOT / "models/digits/samples/seven.png").read_bytes()
            call = ("/v1/models/digits/predict", "127.0.0.1", "POST", picture, {"Content-Type": "image/png", **headers})
            if (status := ask(port, *call)[0]) != 200:
                yield f"{where}: a prediction answers {status}"
            if "no optimised state can be kept" in said():
                yield f"{where}: cache_dir is not a place that it can write"
    except NotStarted as error:
        yield f"{where}: the server does not start: {error}"


# --- the sets -----------------------------------------------------------------------------------


def set_problems(name, objects, ortus, rules):
    """Of one set of manifests that belong together. `ortus` is None where no server is to be started."""
    for where, document in objects:
        yield from kubernetes_problems(f"{name}/{where}", document)
    by_kind = {}
    for _, document in objects:
        by_kind.setdefault(document["kind"], document)
    deployment, service, scaler = by_kind["Deployment"], by_kind["Service"], by_kind["HorizontalPodAutoscaler"]
    template = deployment["spec"]["template"]
    pod, labels = template["spec"], template["metadata"]["labels"]
    container = pod["containers"][0]
    config = by_kind["ConfigMap"]
    configs = {config["metadata"]["name"]: config["data"]}
    yield from pod_problems(f"{name}/pod", pod)
    yield from grace_problems(f"{name}/pod", pod, settings_of(container, configs), pod["terminationGracePeriodSeconds"])
    selectors = {
        "Deployment": deployment["spec"]["selector"]["matchLabels"],
        "Service": service["spec"]["selector"],
        "PodDisruptionBudget": by_kind["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        "NetworkPolicy": by_kind["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
    }
    for kind, selector in selectors.items():
        if not selector or any(labels.get(key) != value for key, value in selector.items()):
            yield f"{name}: the {kind} selects {selector}, the pods have {labels}"
    ports = {
        "Service": [port["targetPort"] for port in service["spec"]["ports"]],
        "NetworkPolicy": [port["port"] for port in by_kind["NetworkPolicy"]["spec"]["ingress"][0]["ports"]],
    }
    for kind, named in ports.items():
        if [port_of(container, port) for port in named] != [port["containerPort"] for port in container["ports"]]:
            yield f"{name}: the {kind} names the ports {named}, the pod has {container['ports']}"
    target = scaler["spec"]["scaleTargetRef"]
    if (target["kind"], target["name"]) != ("Deployment", deployment["metadata"]["name"]):
        yield f"{name}: the autoscaler's target is {target}"
    claims = {volume["persistentVolumeClaim"]["claimName"] for volume in pod["volumes"] if "persistentVolumeClaim" in volume}
    if "PersistentVolumeClaim" in by_kind and claims != {by_kind["PersistentVolumeClaim"]["metadata"]["name"]}:
        yield f"{name}: the pods mount {claims}"
    metrics = [metric["pods"]["metric"]["name"] for metric in scaler["spec"]["metrics"]]
    for metric in metrics:
        if not any(rule["name"]["as"] == metric and rule["seriesQuery"].startswith(f"{metric}{{") for rule in rules):
            yield f"{name}: prometheus-adapter.yaml has no rule for {metric}"
    if ortus:
        service_name = f"{service['metadata']['name']}.ortus"
        names = [service["metadata"]["name"], service_name, f"{service_name}.svc", f"{service_name}.svc.cluster.local"]
        yield from live_problems(f"{name}/pod", ortus, pod, configs, template["metadata"]["annotations"], names, metrics)


# What KServe's protocols are called, and the name by which it knows the port that speaks them.
KSERVE_PORTS = {"v2": "http1", "grpc-v2": "h2c"}


def kserve_problems(objects, ortus):
    kserve = KServe()
    for where, document in objects:
        yield from kserve.check(f"kserve/{where}", document)
    of_kind = lambda kind: [document for _, document in objects if document["kind"] == kind]
    runtimes = {runtime["metadata"]["name"]: runtime for runtime in of_kind("ServingRuntime")}
    for runtime in runtimes.values():
        yield from runtime_problems(runtime, ortus)
    for service in of_kind("InferenceService"):
        where, predictor = f"kserve/{service['metadata']['name']}", service["spec"]["predictor"]
        model = predictor["model"]
        runtime = runtimes.pop(model["runtime"], None)
        if not runtime or model["protocolVersion"] not in runtime["spec"]["protocolVersions"]:
            yield f"{where}: it does not name a runtime of its own and its protocol"
            continue
        if model["modelFormat"]["name"] not in [each["name"] for each in runtime["spec"]["supportedModelFormats"]]:
            yield f"{where}: the runtime does not have its format"
        pod = runtime_pod(runtime)["spec"]["template"]["spec"]
        environment = settings_of(pod["containers"][0], {})
        yield from grace_problems(where, pod, environment, predictor["terminationGracePeriodSeconds"])
    for name in runtimes:
        yield f"kserve: {name} has no example"


def runtime_problems(runtime, ortus):
    name, spec = runtime["metadata"]["name"], runtime["spec"]
    as_deployment, where = runtime_pod(runtime), f"kserve/{name}"
    yield from kubernetes_problems(where, as_deployment)
    pod = as_deployment["spec"]["template"]["spec"]
    yield from pod_problems(where, pod)
    ports = [port["name"] for port in pod["containers"][0]["ports"]]
    expected = [KSERVE_PORTS.get(protocol) for protocol in spec.get("protocolVersions", [])]
    if len(ports) != 1 or ports != expected:
        yield f"{where}: its ports are {ports}; KServe takes one, and for its protocols that is {expected}"
    if ortus:
        offered = (lambda rest, grpc: [grpc]) if ports == ["h2c"] else (lambda rest, grpc: [rest])
        names = ["digits-default.example.com"]
        yield from live_problems(where, ortus, pod, {}, spec["annotations"], names, offered=offered)


def image_problems(text, ortus):
    """Of the Dockerfile as text; tests/image builds it."""
    for source in re.findall(r"^COPY (?!--from)(?:--\S+ )*(\S+) ", text, re.MULTILINE):
        if not (ROOT / source).exists():
            yield f"Dockerfile: there is no {source}"
    stages = set(re.findall(r"^FROM \S+ AS (\S+)", text, re.MULTILINE))
    for stage in re.findall(r"^COPY --from=(\S+)", text, re.MULTILINE):
        if stage not in stages:
            yield f"Dockerfile: there is no stage {stage}"
    if f"USER {UID}:{UID}" not in text:
        yield f"Dockerfile: its user is not {UID}"
    command = json.loads(re.search(r"^CMD (\[.*\])", text, re.MULTILINE)[1])
    health = json.loads(re.search(r"HEALTHCHECK [^[]*CMD (\[.*\])", text)[1])
    environment = dict(re.findall(r"\b(ORTUS_\w+)=(\S+)", text))
    exposed = [int(port) for port in re.search(r"^EXPOSE (.+)$", text, re.MULTILINE)[1].split()]
    if health != ["/usr/local/bin/ortus", "health"] or exposed[0] != 8080:
        yield "Dockerfile: the health check does not ask the server where it listens"
    if not ortus:
        return
    try:
        with server(ortus, command, environment, writes_store=True) as ((port, grpc), listens_on, _, _, inside):
            if listens_on != exposed:
                yield f"Dockerfile: the server listens on {listens_on}; EXPOSE names other ports"
            if not speaks_http2(grpc):
                yield "Dockerfile: the port of gRPC speaks no HTTP/2"
            asked = lambda headers: ask(port, "/v1/models", headers=headers)[0]
            if (status := asked({})) != 200:
                yield f"Dockerfile: a server that was just started answers {status}"
            # As `docker exec` does, which has the image's folder and variables, and none of the command's flags.
            key = inside("key", "create", "--role", "admin").strip()
            deadline = time.monotonic() + START_SECONDS
            while (status := asked({})) == 200 and time.monotonic() < deadline:
                time.sleep(0.1)
            if status != 401 or asked({"Authorization": f"Bearer {key}"}) != 200:
                yield f"Dockerfile: a key that is made inside is not the server's: without it, a call is answered {status}"
    except NotStarted as error:
        yield f"Dockerfile: the server does not start: {error}"


def all_sets():
    base = list(documents(HERE / "kubernetes", without=("kustomization.yaml", "prometheus-adapter.yaml")))
    adapter = yaml.safe_load((HERE / "kubernetes/prometheus-adapter.yaml").read_text())
    return base, list(rendered({})), list(documents(HERE / "kserve")), adapter["rules"]["custom"]


def difference_problems(base, chart):
    """The chart's defaults are the manifests, but for the namespace and the image's tag, which kustomization.yaml has."""
    of_kind = lambda objects: {document["kind"]: document for _, document in objects if document["kind"] != "Namespace"}
    ours, theirs = copy.deepcopy(of_kind(base)), copy.deepcopy(of_kind(chart))
    kustomization = yaml.safe_load((HERE / "kubernetes/kustomization.yaml").read_text())
    for container in ours["Deployment"]["spec"]["template"]["spec"]["containers"]:
        container["image"] += f":{kustomization['images'][0]['newTag']}"
    for kind in sorted(set(ours) | set(theirs)):
        if ours.get(kind) != theirs.get(kind):
            yield f"the chart's {kind} is not that of deploy/kubernetes"
    listed = set(kustomization["resources"])
    files = {path.name for path in (HERE / "kubernetes").glob("*.yaml")} - {"kustomization.yaml", "prometheus-adapter.yaml"}
    if listed != files:
        yield f"kustomization.yaml lists {sorted(listed ^ files)} or lacks them"


def changed(objects, kind, path, value):
    """The same objects with one place changed; `value` of ... removes it."""
    objects = copy.deepcopy(objects)
    place = next(document for _, document in objects if document["kind"] == kind)
    for key in path[:-1]:
        place = place[key]
    if value is ...:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return objects


POD = ("spec", "template", "spec")
MISTAKES = [
    ("Deployment", (*POD, "containers", 0, "redinessProbe"), {}),
    ("Deployment", (*POD, "terminationGracePeriodSeconds"), 20),
    ("Deployment", (*POD, "containers", 0, "securityContext", "readOnlyRootFilesystem"), ...),
    ("Deployment", (*POD, "containers", 0, "readinessProbe", "httpGet", "path"), "/ready"),
    ("Deployment", (*POD, "containers", 0, "livenessProbe", "httpGet", "port"), 8081),
    ("Deployment", (*POD, "containers", 0, "args"), ["serve", "--insecur"]),
    ("ConfigMap", ("data", "ORTUS_AUTH__REQUIRE"), ...),
    ("ConfigMap", ("data", "ORTUS_AUTH__KEYS_FILE"), ...),
    ("ConfigMap", ("data", "ORTUS_SERVER__LISTEN_ON"), "0.0.0.0:8080"),
    ("ConfigMap", ("data", "ORTUS_OPTIMIZATION__CACHE_DIR"), ...),
    ("ConfigMap", ("data", "ORTUS_SERVER__ALLOWED_HOSTS"), "ortus"),
    ("Service", ("spec", "selector"), {"app": "ortus"}),
    ("Service", ("spec", "ports", 0, "targetPort"), "web"),
    ("HorizontalPodAutoscaler", ("spec", "metrics", 0, "pods", "metric", "name"), "ortus_queue_length"),
    ("NetworkPolicy", ("spec", "ingress", 0, "ports", 0, "port"), "grpc"),
    ("Service", ("spec", "ports", 1, "targetPort"), "http"),
    ("ConfigMap", ("data", "ORTUS_SERVER__GRPC_LISTEN"), "off"),
]
KSERVE_MISTAKES = [
    ("ServingRuntime", ("spec", "protocolVersion"), ["v2"]),
    ("ServingRuntime", ("spec", "supportedModelFormats", 0, "autoselect"), True),
    ("ServingRuntime", ("spec", "containers", 0, "readinessProbe", "httpGet", "path"), "/v2/ready"),
    ("InferenceService", ("spec", "predictor", "model", "storageURI"), "pvc://x"),
    ("InferenceService", ("spec", "predictor", "model", "protocolVersion"), "v1"),
    ("InferenceService", ("spec", "predictor", "model", "runtime"), "ortus"),
    ("ServingRuntime", ("spec", "containers", 0, "ports", 0, "name"), "http1"),
    ("ServingRuntime", ("spec", "containers", 0, "ports", 0, "containerPort"), 8080),
    ("ServingRuntime", ("spec", "protocolVersions"), ["v2", "grpc-v2"]),
]


def missed(base, kserve, rules, ortus):
    """Made-up mistakes that nothing complains of."""
    for kind, path, value in MISTAKES:
        if not any(True for _ in set_problems("made up", changed(base, kind, path, value), ortus, rules)):
            yield f"a mistake is not found: {kind} {path} = {value}"
    for kind, path, value in KSERVE_MISTAKES:
        if not any(True for _ in kserve_problems(changed(kserve, kind, path, value), ortus)):
            yield f"a mistake is not found: {kind} {path} = {value}"


def main():
    ortus = str(pathlib.Path(sys.argv[1]).resolve())
    base, chart, kserve, rules = all_sets()
    dockerfile = (ROOT / "Dockerfile").read_text()
    changed_values = {"preStopSeconds": 9, "settings": {"SERVER__SHUTDOWN_GRACE_MS": "30500"}, "store": {"existingClaim": "mine"}}
    parts = [
        ("deploy/kubernetes", set_problems("kubernetes", base, ortus, rules)),
        ("deploy/helm", set_problems("helm", chart, ortus, rules)),
        ("deploy/helm with other values", set_problems("helm", list(rendered(changed_values)), None, rules)),
        ("deploy/helm beside deploy/kubernetes", difference_problems(base, chart)),
        ("deploy/kserve", kserve_problems(kserve, ortus)),
        ("Dockerfile", image_problems(dockerfile, ortus)),
        (f"{len(MISTAKES + KSERVE_MISTAKES)} made-up mistakes", missed(base, kserve, rules, ortus)),
    ]
    failed = 0
    print(f"Kubernetes {VERSIONS[0]} to {VERSIONS[-1]}, Helm {helm_python.helm_sdk_version()}")
    for name, problems in parts:
        found = list(problems)
        print(f"{'FAILED' if found else 'ok    '} {name}", *found, sep="\n       ", flush=True)
        failed += bool(found)
    print(f"{len(parts) - failed} passed, {failed} failed")
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
