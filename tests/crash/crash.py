#!/usr/bin/env python3
"""Kills a server again and again (SIGKILL, at moments that a seed decides) while it works: nothing it promised may be lost.

`crash.py ORTUS [--rounds 12] [--seed 1]`

Clients send predictions and jobs (small ones, long ones, and ones whose requests and results are files), upload
versions of models, get others from a hub on loopback, and delete them again, until the process is killed; some
processes are killed before they are ready. Each is followed by another on the same store and port. Then:

* every job that was accepted (202) succeeded, once: its result is the right one, no request became two jobs, and
  what was seen of a finished job never changed afterwards. A job that ran when the process was killed runs again:
  jobs are run at least once and completed exactly once. So the runs of the last process are counted: it ran each job
  that it completed once, and none that had been completed before;
* every model that was to change is wholly as before or wholly as after, and as after where the client saw the answer:
  the files under its name are the source's, all of them load and answer;
* nothing of what was under way stays in the store: `.ortus` holds in the end what it held in the beginning, after one
  more start, but for what a download goes on from.

A kill ends the process, not the machine: what a power cut does to a disk is not seen here. Everything is on
loopback and ends by itself. Standard library only. Each finding is a line that begins with `ok` or `FAILED`; exits
with 1 where one failed. `make crash` runs it.
"""

import argparse
import collections
import contextlib
import datetime
import hashlib
import http.client
import json
import os
import pathlib
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
FIXTURES = ROOT / "tests" / "fixtures" / "store"
sys.path.insert(0, str(ROOT / "tests" / "browser"))
from _hub import Hub  # noqa: E402

START_SECONDS = 60
SETTLE_SECONDS = 60
# A life ends so long after the process was ready: what ran at the last kill is done by then, so that no job runs at three kills, after which it would
# be given up.
LIFE_SECONDS = (0.4, 1.6)
# The share of kills that are followed by one of a process that is not ready yet.
EARLY_SHARE = 0.4
EARLY_SECONDS = (0.0, 0.5)
# Longer than what is kept inside the jobs' file.
LARGE_NUMBERS = 20_000
PADDING_BYTES = 3 << 20
UPLOADED, FETCHED = ("up-a", "up-b", "up-c"), ("got-a", "got-b")

failed = False


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("ortus", help="the server's binary")
    parser.add_argument("--rounds", type=int, default=12, help="kills under load (12)")
    parser.add_argument("--seed", type=int, default=1, help="of the moments and of the load (1)")
    arguments = parser.parse_args()
    print(f"{arguments.rounds} kills under load, seed {arguments.seed}")
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        (folder / "hub" / "1").mkdir(parents=True)
        (folder / "hub" / "1" / "model.onnx").write_bytes(graph(1))
        with Hub({"someone/adder": folder / "hub" / "1"}) as hub, Server(arguments.ortus, folder, hub) as server:
            # Connections break when their process is killed.
            hub.server.handle_error = lambda *_: None
            crash(server, hub, arguments)
    sys.exit(1 if failed else 0)


def finding(holds, text):
    global failed
    failed = failed or not holds
    print(f"{'ok    ' if holds else 'FAILED'} {text}", flush=True)


def graph(version):
    """The graph that adds `version`, made longer by bytes that are no part of it: an unknown field of the format, whose number is 1000."""
    padding = bytes(place // 7 % 251 for place in range(1 << 16)) * (PADDING_BYTES >> 16)
    length, size = len(padding), b""
    while length >= 0x80:
        size, length = size + bytes([length & 0x7F | 0x80]), length >> 7
    content = (FIXTURES / "versions" / str(version) / "model.onnx").read_bytes()
    return content + b"\xc2\x3e" + size + bytes([length]) + padding


# --- the server ---------------------------------------------------------------------------------


class Server:
    """One store and port, and the process that has them now."""

    def __init__(self, ortus, folder, hub):
        self.ortus, self.folder, self.store = os.path.abspath(ortus), folder, folder / "models"
        # Only jobs are sent to the first three: their runs are counted.
        for name, fixture in (("adder", "versions/1"), ("long", "slow/1"), ("large", "echo/1"), ("mlp", "mlp/1")):
            shutil.copytree(FIXTURES / fixture, self.store / name / "1")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("ORTUS_", "HF_", "HUGGING"))}
        self.environment = kept | {
            "HF_HOME": str(folder / "hf"),
            "ORTUS_HUB__HF_ENDPOINT": hub.url,
            "ORTUS_HUB__ALLOWED_HOSTS": hub.url.removeprefix("http://"),
            "ORTUS_HUB__RESERVE_MB": "0",
            "ORTUS_LIMITS__MAX_JOBS": "100000",
            "ORTUS_TELEMETRY__LOG_LEVEL": "warn",
        }
        self.log = (folder / "log").open("w")
        self.process = None

    def __enter__(self):
        self.launch()
        self.wait_ready()
        return self

    def __exit__(self, *_):
        self.kill()
        self.log.close()

    def launch(self):
        command = [self.ortus, "serve", "--models", self.store, "--listen", f"127.0.0.1:{self.port}"]
        self.process = subprocess.Popen(
            command, cwd=self.folder, env=self.environment, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log
        )

    def wait_ready(self):
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self.process.poll() is None:
            with contextlib.suppress(OSError):
                if self.get("/readyz")[0] == 200:
                    return
            time.sleep(0.02)
        raise SystemExit(f"a server did not become ready:\n{(self.folder / 'log').read_text()[-4000:]}")

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10)

    def call(self, method, path, body=None, headers=()):
        """Status and body as JSON, over a connection of its own."""
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)) as connection:
            connection.request(method, path, body, dict(headers))
            response = connection.getresponse()
            content = response.read()
            return response.status, json.loads(content) if content.startswith((b"{", b"[")) else content

    def get(self, path):
        return self.call("GET", path)

    def post(self, path, value, **headers):
        headers = {"Content-Type": "application/json"} | {name.replace("_", "-"): value for name, value in headers.items()}
        return self.call("POST", path, json.dumps(value), headers)

    def outputs(self, model, inputs):
        """What a model answers, or `None`."""
        status, answer = self.post(f"/v1/models/{model}/predict", {"inputs": inputs})
        return answer["outputs"] if status == 200 else None


# --- the load -----------------------------------------------------------------------------------


class Load:
    """What clients send until the process is killed, and what they were told."""

    def __init__(self, server, hub, seed):
        self.server, self.hub = server, hub
        self.random = random.Random(seed)
        self.counts, self.problems = collections.Counter(), []
        self.lock = threading.Lock()
        # By the id of the request: the job's id where 202 came, and what its result must be.
        self.accepted, self.unanswered, self.expected = {}, set(), {}
        self.number = 0
        self.mlp = server.outputs("mlp", {"x": [[0.5] * 32]})
        self.long = {n: server.outputs("long", {"n": n}) for n in (0, 10_000, 40_000)}
        # The versions that each model may have; more than one while a change is under way.
        self.models = {name: [()] for name in (*UPLOADED, *FETCHED)}
        self.stopping = threading.Event()
        self.threads = []

    def begin(self):
        self.stopping.clear()
        work = [self.predict] * 2 + [self.submit] * 2
        work += [lambda name=name: self.upload_or_delete(name) for name in UPLOADED]
        work += [lambda name=name: self.fetch_or_delete(name) for name in FETCHED]
        self.threads = [threading.Thread(target=self.repeat, args=(each,)) for each in work]
        for thread in self.threads:
            thread.start()

    def end(self):
        """After the kill: every client has seen its connection break by now, or does so at its next call."""
        self.stopping.set()
        self.hub.hold.set()
        for thread in self.threads:
            thread.join()

    def repeat(self, work):
        while not self.stopping.is_set():
            try:
                work()
            except (OSError, http.client.HTTPException):
                # The kill, and nothing else, ends connections.
                if not self.stopping.wait(5):
                    self.problem("a connection broke while the process was alive")
                return

    def problem(self, text):
        with self.lock:
            self.problems.append(text)

    def count(self, what):
        with self.lock:
            self.counts[what] += 1

    def predict(self):
        outputs = self.server.outputs("mlp", {"x": [[0.5] * 32]})
        if outputs != self.mlp:
            self.problem(f"another prediction: {outputs}")
        self.count("predictions")

    def submit(self):
        with self.lock:
            self.number += 1
            number, kind = self.number, self.random.random()
        request_id = f"crash-{number}"
        if kind < 0.8:
            model, inputs, outputs = "adder", {"x": [number, number + 0.5]}, {"y": [number + 1, number + 1.5]}
        elif kind < 0.95:
            turns = (0, 10_000, 40_000)[number % 3]
            model, inputs, outputs = "long", {"n": turns}, self.long[turns]
        else:
            numbers = [[float(number)] * LARGE_NUMBERS]
            model, inputs, outputs = "large", {"x": numbers}, {"y": numbers}
        with self.lock:
            self.expected[request_id] = outputs
            self.unanswered.add(request_id)
        status, job = self.server.post(f"/v1/models/{model}/jobs", {"inputs": inputs}, x_request_id=request_id)
        with self.lock:
            self.unanswered.discard(request_id)
            if status == 202:
                self.accepted[request_id] = job["id"]
                self.counts[f"jobs for {model}"] += 1
            else:
                self.problems.append(f"a job: {status} {job}")
        time.sleep(0.004)

    def upload_or_delete(self, name):
        (versions,) = self.models[name]
        if len(versions) == 2:
            return self.delete(name)
        version = len(versions) + 1
        self.models[name] = [versions, (*versions, version)]
        boundary = "a-boundary-of-the-form"
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="model.onnx"\r\n\r\n'
        body = head.encode() + graph(version) + f"\r\n--{boundary}--\r\n".encode()
        headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
        status, answer = self.server.call("POST", f"/v1/models/{name}/versions", body, headers)
        if status != 201 or answer["version"] != str(version):
            raise ValueError(f"an upload to {name} as its version {version}: {status} {answer}")
        self.models[name] = [(*versions, version)]
        self.count("uploads")

    def fetch_or_delete(self, name):
        (versions,) = self.models[name]
        if versions:
            return self.delete(name)
        # Some transfers stand still in the middle for a while.
        with self.lock:
            pause = self.random.choice((0, 0, 0.1, 0.3))
        if pause:
            self.hub.hold.clear()
        order = {"name": name, "source": "huggingface", "model_id": "someone/adder"}
        self.models[name] = [(), (1,)]
        status, answer = self.server.post("/v1/models", order)
        if status != 202:
            raise ValueError(f"an order of {name}: {status} {answer}")
        self.stopping.wait(pause)
        self.hub.hold.set()
        while True:
            status, download = self.server.get(f"/v1/downloads/{answer['download']['id']}")
            if download["state"] == "done":
                break
            if status != 200 or download["state"] in ("failed", "cancelled"):
                raise ValueError(f"a download of {name}: {status} {download}")
            time.sleep(0.01)
        self.models[name] = [(1,)]
        self.count("downloads")

    def delete(self, name):
        (versions,) = self.models[name]
        self.models[name] = [versions, ()]
        status, answer = self.server.call("DELETE", f"/v1/models/{name}")
        if status != 200:
            raise ValueError(f"a delete of {name}: {status} {answer}")
        self.models[name] = [()]
        self.count("deletes")


# --- what must hold -----------------------------------------------------------------------------


def crash(server, hub, arguments):
    load = Load(server, hub, arguments.seed)
    moments = random.Random(arguments.seed)
    before = own_files(server.store)
    rows = rows_of_a_job(server)
    finished, early, kills, undone = {}, 0, [], collections.Counter()
    for _ in range(arguments.rounds):
        load.begin()
        time.sleep(moments.uniform(*LIFE_SECONDS))
        server.kill()
        kills.append(time.time())
        load.end()
        if moments.random() < EARLY_SHARE:
            server.launch()
            time.sleep(moments.uniform(*EARLY_SECONDS))
            server.kill()
            early += 1
            kills.append(time.time())
        server.launch()
        server.wait_ready()
        models_whole(server, load, undone)
        finished_jobs_stay(server, finished)
    sent = ", ".join(f"{count} {what}" for what, count in sorted(load.counts.items()))
    print(f"       {arguments.rounds} kills under load, {early} before a process was ready; answered: {sent}")
    print(f"       changes of models cut by a kill: {undone['as before']} as before, {undone['as after']} as after")
    finding(not load.problems, f"answers that were not as expected: {len(load.problems)}" + "".join(f"\n       {text}" for text in load.problems[:10]))
    finding(undone["neither"] == 0, f"models that are neither as before nor as after: {undone['neither']}")
    jobs = all_jobs_end(server)
    jobs_once(load, jobs, finished)
    results_right(server, load, jobs)
    jobs_met_kills(jobs, kills)
    runs_once(server, jobs, rows, kills[-1])
    nothing_left(server, load, jobs, before)


def runs_of(server, model):
    """Rows that this process has run of a model."""
    status, answer = server.get(f"/v2/models/{model}/stats")
    if status != 200:
        raise SystemExit(f"the statistics of {model}: {status} {answer}")
    return sum(each["inference_count"] for each in answer["model_stats"])


def rows_of_a_job(server):
    """What one job adds to each model's count."""
    before = {model: runs_of(server, model) for model in ("adder", "long", "large")}
    for model, inputs in (("adder", {"x": [1.0, 2.0]}), ("long", {"n": 0}), ("large", {"x": [[1.0] * LARGE_NUMBERS]})):
        job = server.post(f"/v1/models/{model}/jobs", {"inputs": inputs})[1]["id"]
        while server.get(f"/v1/jobs/{job}")[1]["status"] != "succeeded":
            time.sleep(0.01)
        server.call("DELETE", f"/v1/jobs/{job}")
    return {model: runs_of(server, model) - before[model] for model in before}


def models_whole(server, load, undone):
    """Each model that was to change has one of its two states, wholly; from here on it is that one."""
    for name, states in load.models.items():
        state = state_of(server, name)
        if state not in states:
            undone["neither"] += 1
            load.problem(f"{name} is {state} and may be one of {states}")
        elif len(states) == 2:
            undone["as after" if state == states[1] else "as before"] += 1
        load.models[name] = [state if isinstance(state, tuple) else ()]
    for name in ("adder", "long", "large", "mlp"):
        status, model = server.get(f"/v1/models/{name}")
        if status != 200 or model["state"] != "ready":
            load.problem(f"{name} after a restart: {status} {model}")


def state_of(server, name):
    """The versions of a model, where its files, its state and its answers agree; else what is wrong."""
    folder = server.store / name
    status, model = server.get(f"/v1/models/{name}")
    if status == 404:
        return "a folder that is not served" if folder.exists() else ()
    if status != 200 or model["state"] != "ready":
        return f"{status} {model}"
    versions = tuple(sorted(int(path.name) for path in folder.iterdir() if path.is_dir()))
    for version in versions:
        content = (folder / str(version) / "model.onnx").read_bytes()
        if hashlib.sha256(content).digest() != hashlib.sha256(graph(version)).digest():
            return f"version {version} with {len(content)} bytes of something else"
    if server.outputs(name, {"x": [0.0, 1.0]}) != {"y": [float(versions[-1]), versions[-1] + 1.0]}:
        return f"versions {versions} with another's answer"
    return versions


def list_jobs(server):
    jobs, after = [], ""
    while after is not None:
        status, page = server.get(f"/v1/jobs?limit=200{after}")
        if status != 200:
            raise SystemExit(f"the list of jobs: {status} {page}")
        jobs += page["jobs"]
        after = f"&after={page['next']}" if page.get("next") else None
    return jobs


def finished_jobs_stay(server, finished):
    """What is known of a job that has ended is so for ever."""
    for job in list_jobs(server):
        if job["status"] not in ("queued", "running"):
            end = (job["status"], job["finished_at"], job.get("result_bytes"))
            if finished.setdefault(job["id"], end) != end:
                finding(False, f"a finished job changed: {finished[job['id']]}, then {end}")


def all_jobs_end(server):
    deadline = time.monotonic() + SETTLE_SECONDS
    while True:
        jobs = list_jobs(server)
        if all(job["status"] not in ("queued", "running") for job in jobs) or time.monotonic() > deadline:
            return jobs
        time.sleep(0.1)


def jobs_once(load, jobs, finished):
    states = collections.Counter(job["status"] for job in jobs)
    finding(set(states) == {"succeeded"}, f"jobs: {dict(states)}")
    ids = {job["id"] for job in jobs}
    lost = [job for job in load.accepted.values() if job not in ids]
    finding(not lost, f"accepted jobs: {len(load.accepted)}, lost: {len(lost)}")
    of_requests = collections.Counter(job["request_id"] for job in jobs)
    twice = [request for request, count in of_requests.items() if count > 1]
    unasked = set(of_requests) - set(load.expected)
    unseen = set(of_requests) - set(load.accepted)
    finding(
        not twice and not unasked and unseen <= load.unanswered,
        f"one job for a request: {len(twice)} have more, {len(unasked)} were not asked for;"
        f" taken, but killed before the answer: {len(unseen)} of {len(load.unanswered)} requests without an answer",
    )
    changed = [job["id"] for job in jobs if job["id"] in finished and finished[job["id"]][1] != job["finished_at"]]
    finding(not changed, f"jobs seen finished after one of the restarts: {len(finished)}, finished anew: {len(changed)}")


def results_right(server, load, jobs):
    wrong = []
    for job in jobs:
        status, answer = server.get(f"/v1/jobs/{job['id']}/result")
        if status != 200 or answer["outputs"] != load.expected.get(job["request_id"]):
            wrong.append(f"{job['id']}: {status} {str(answer)[:200]}")
    finding(not wrong, f"results: {len(jobs)}, wrong: {len(wrong)}" + "".join(f"\n       {text}" for text in wrong[:5]))


def moment(text):
    return datetime.datetime.fromisoformat(text).timestamp()


def jobs_met_kills(jobs, kills):
    met = collections.Counter()
    for job in jobs:
        met["waited"] += any(moment(job["created_at"]) < kill < moment(job["finished_at"]) for kill in kills)
        met["done before"] += moment(job["finished_at"]) < kills[-1]
    finding(met["waited"] and met["done before"], f"jobs that were accepted and not done at a kill: {met['waited']} of {len(jobs)}")


def runs_once(server, jobs, rows, since):
    """The last process ran what it completed, once each, and nothing else."""
    done = collections.Counter(job["model"] for job in jobs if moment(job["finished_at"]) >= since)
    ran = {model: runs_of(server, model) / of_one for model, of_one in rows.items()}
    finding(
        all(ran[model] == done[model] for model in rows),
        "the last process completed " + ", ".join(f"{done[model]} jobs of {model} in {ran[model]:g} runs" for model in rows),
    )


def nothing_left(server, load, jobs, before):
    for job in jobs:
        if server.call("DELETE", f"/v1/jobs/{job['id']}")[0] != 204:
            finding(False, f"the job {job['id']} could not be removed")
    for name, (versions,) in load.models.items():
        if versions:
            server.call("DELETE", f"/v1/models/{name}")
    # What cannot be removed while it is used goes at the next start, as that of a killed process does.
    server.kill()
    server.launch()
    server.wait_ready()
    deadline = time.monotonic() + SETTLE_SECONDS
    while (left := own_files(server.store) - before) and time.monotonic() < deadline:
        time.sleep(0.2)
    names = sorted(path.name for path in server.store.iterdir() if not path.name.startswith("."))
    finding(names == ["adder", "large", "long", "mlp"], f"models in the store in the end: {names}")
    size = sum(path.stat().st_size for path in (server.store / ".ortus").rglob("*") if path.is_file())
    finding(not left, f"left in .ortus: {sorted(left)[:10]}; {size:,} bytes in all")


def own_files(store):
    """What is in `.ortus` besides what stays once it was made."""
    own = store / ".ortus"
    files = {str(path.relative_to(own)) for path in own.rglob("*") if path.is_file()}
    models = [f"optimized/{path.name}/" for path in store.iterdir() if not path.name.startswith(".")]
    # What a download that was cut goes on from: one folder, since all get the same.
    downloads = {name.split("/")[1] for name in files if name.startswith("downloads/")}
    kept = {"jobs/jobs.redb", "install.lock", "audit.log"}
    return {
        name
        for name in files - kept
        if not name.startswith(tuple(models)) and not (len(downloads) == 1 and name.startswith("downloads/"))
    }


if __name__ == "__main__":
    main()
