#!/usr/bin/env python3
"""Restarts two servers behind nginx in turn, under load: no request may fail, and no accepted job may be lost.

`rolling.py ORTUS [--rounds 3] [--clients 8] [--no-kill]`

Starts two processes with stores of their own, Debian's nginx with deploy/nginx.conf in front of them (ports
changed), and clients that send predictions and jobs without a pause, over connections that they keep and over
new ones. Each process in turn gets SIGTERM, is waited for and started again, as deploy/nginx.conf says. Every
request must be answered as it should, and every job that was accepted (202) must be done. Then one process is
ended by SIGKILL, and what clients and nginx saw of that is printed, not judged. In the end the restarts are
made under an nginx that asks the other process only where a connection was refused: so it is seen whether the
server itself breaks requests off. Last, one stops while a client takes its answer slowly.

Everything is on loopback and ends by itself. Standard library only. Each finding is a line that begins with
`ok` or `FAILED`; exits with 1 where one failed. `make rolling` runs it.
"""

import argparse
import collections
import contextlib
import http.client
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
FIXTURES = ROOT / "tests" / "fixtures" / "store"
SITE = ROOT / "deploy" / "nginx.conf"
START_SECONDS = 30
# shutdown_grace_ms, and what comes after it.
STOP_SECONDS = 25
# What nginx is given between two restarts: it counts whole seconds, so fail_timeout of deploy/nginx.conf may take two.
SETTLE_SECONDS = 2.3
# How nginx's log says that a process went away with a request. Closing a port takes the connections with it that came in the
# same microseconds, so there may be one; a server that cuts connections in use shows several a stop.
BROKEN = "while reading response header from upstream"
# Comes beside another line, or after a 503.
DISABLED = "upstream server temporarily disabled"
REPEATS = "error timeout http_503 non_idempotent;"
PREDICTION = json.dumps({"inputs": {"x": [[0.5] * 32]}})

failed = False


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("ortus", help="the server's binary")
    parser.add_argument("--rounds", type=int, default=3, help="restarts of each process (3)")
    parser.add_argument("--clients", type=int, default=8, help="that send predictions (8)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        folder = pathlib.Path(folder)
        ports = free_ports(3)
        servers = [stack.enter_context(Server(arguments.ortus, folder / f"ortus{n}", ports[n])) for n in (0, 1)]
        with Nginx(folder / "nginx", ports) as nginx:
            rolling_restart(servers, nginx, arguments.rounds, arguments.clients)
            kill(servers, nginx, arguments.clients)
        with Nginx(folder / "bare-nginx", ports, repeats=False) as nginx:
            bare_restart(servers, nginx, arguments.clients)
        slow_reader(servers[0])
    sys.exit(1 if failed else 0)


def finding(holds, text):
    global failed
    failed = failed or not holds
    print(f"{'ok    ' if holds else 'FAILED'} {text}", flush=True)


def free_ports(count):
    """Ports that are free now; a restarted process takes its own again."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


class Server:
    """A process of the server with a store of its own."""

    def __init__(self, ortus, folder, port):
        self.ortus, self.folder, self.port = ortus, folder, port
        for name in ("mlp", "echo"):
            shutil.copytree(FIXTURES / name, folder / "models" / name)
        self.log = (folder / "log").open("w")
        self.process = None

    def __enter__(self):
        self.start()
        return self

    def start(self):
        environment = dict(os.environ, ORTUS_TELEMETRY__LOG_LEVEL="warn,ortus::app=info")
        command = [self.ortus, "serve", "--models", self.folder / "models", "--listen", f"127.0.0.1:{self.port}", "--grpc", "off"]
        self.process = subprocess.Popen(
            command, cwd=self.folder, env=environment, stdout=self.log, stderr=self.log, start_new_session=True
        )
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self.process.poll() is None:
            with contextlib.suppress(OSError):
                if self.get("/readyz")[0] == 200:
                    return
            time.sleep(0.02)
        raise SystemExit(f"a server did not become ready:\n{(self.folder / 'log').read_text()}")

    def get(self, path):
        """Past nginx."""
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)) as connection:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read()

    def stop(self):
        """The exit status after SIGTERM, and the seconds it took."""
        begun = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(STOP_SECONDS), time.monotonic() - begun
        except subprocess.TimeoutExpired:
            return None, time.monotonic() - begun

    def __exit__(self, *_):
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait(10)
        self.log.close()


class Nginx:
    """nginx with deploy/nginx.conf, on ports that are free. Without `repeats`, what was sent once is not sent again."""

    def __init__(self, folder, ports, repeats=True):
        binary = shutil.which("nginx") or "/usr/sbin/nginx"
        folder.mkdir()
        self.folder, self.port = folder, ports[2]
        site = SITE.read_text()
        for old, new in zip(("127.0.0.1:8091", "127.0.0.1:8092", "127.0.0.1:8080"), ports, strict=True):
            if old not in site or REPEATS not in site:
                raise SystemExit(f"deploy/nginx.conf no longer names {old} or {REPEATS}")
            site = site.replace(old, f"127.0.0.1:{new}")
        if not repeats:
            site = site.replace(REPEATS, "error timeout;")
        (folder / "site.conf").write_text(site)
        temporary = "".join(
            f"    {name}_temp_path {folder}/{name};\n" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        (folder / "nginx.conf").write_text(
            f"daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/error.log warn;\n"
            "events { worker_connections 512; }\n"
            "http {\n"
            "    log_format tries '$request_method $uri $status | $upstream_addr | $upstream_status';\n"
            f"    access_log {folder}/access.log tries;\n{temporary}    include {folder}/site.conf;\n}}\n"
        )
        user = ["-g", "user root;"] if os.geteuid() == 0 else []
        self.command = [binary, "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", str(folder / "error.log"), *user]
        self.process = None

    def __enter__(self):
        subprocess.run([*self.command, "-t", "-q"], check=True)
        self.process = subprocess.Popen(self.command, start_new_session=True)
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self.process.poll() is None:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return self
            time.sleep(0.02)
        raise SystemExit(f"nginx did not start:\n{(self.folder / 'error.log').read_text()}")

    def outputs(self):
        """Of one prediction."""
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)) as connection:
            connection.request("POST", "/v1/models/mlp/predict", PREDICTION, {"Content-Type": "application/json"})
            return json.loads(connection.getresponse().read())["outputs"]

    def tries(self):
        """What nginx was answered by upstreams, as `method path: first try, second try`, for requests of more than one try."""
        counts = collections.Counter()
        for line in (self.folder / "access.log").read_text().splitlines():
            request, _, statuses = line.split(" | ")
            if "," in statuses:
                counts[f"{request.rsplit(' ', 1)[0]}: {statuses}"] += 1
        return counts

    def errors(self):
        """Kinds of lines in its log, with one example of each."""
        kinds = collections.Counter()
        for line in (self.folder / "error.log").read_text().splitlines():
            if DISABLED in line:
                continue
            text = line.split("*", 1)[-1].split(" ", 1)[-1].split(", client:")[0]
            request = line.split('request: "')[-1].split(" ")[0] if 'request: "' in line else "-"
            kinds[f"{request}: {text}"] += 1
        return kinds

    def forget(self):
        """Empties the logs; nginx appends."""
        for name in ("access.log", "error.log"):
            os.truncate(self.folder / name, 0)

    def __exit__(self, *_):
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(10)


class Load:
    """Clients that send without a pause until the block ends."""

    def __init__(self, nginx, clients, job_clients):
        self.port, self.stopping = nginx.port, threading.Event()
        self.expected = nginx.outputs()
        self.lock = threading.Lock()
        self.answered = collections.Counter()
        self.problems = collections.Counter()
        self.jobs = []
        jobs = [threading.Thread(target=self.send, args=("jobs", True, 0.02)) for _ in range(job_clients)]
        # Every second client takes a new connection for each request.
        predictions = [threading.Thread(target=self.send, args=("predict", n % 2 == 0, 0.001)) for n in range(clients)]
        self.threads = jobs + predictions

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.stopping.set()
        for thread in self.threads:
            thread.join(60)

    def send(self, call, keeps, pause):
        connection = None
        while not self.stopping.is_set():
            try:
                if connection is None or not keeps:
                    if connection is not None:
                        connection.close()
                    connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
                connection.request(
                    "POST", f"/v1/models/mlp/{call}", PREDICTION, {"Content-Type": "application/json"}
                )
                response = connection.getresponse()
                body = response.read()
                problem = self.problem(call, response.status, body)
            except (OSError, http.client.HTTPException) as error:
                problem = f"{type(error).__name__}: {error}"
                connection.close()
                connection = None
            with self.lock:
                if problem is None:
                    self.answered[call] += 1
                else:
                    self.problems[f"{call}: {problem}"] += 1
            time.sleep(pause)
        if connection is not None:
            connection.close()

    def problem(self, call, status, body):
        """What is wrong with an answer."""
        if status != (202 if call == "jobs" else 200):
            return f"{status} {body[:200].decode(errors='replace')}"
        answer = json.loads(body)
        if call == "jobs":
            with self.lock:
                self.jobs.append(answer["id"])
        elif answer["outputs"] != self.expected:
            return f"another answer than before: {body[:200]!r}"
        return None


def rolling_restart(servers, nginx, rounds, clients):
    with Load(nginx, clients, job_clients=2) as load:
        stops = restarts(servers, rounds)
    slowest = max(seconds for _, seconds in stops)
    finding(all(status == 0 for status, _ in stops), f"{len(stops)} stops by SIGTERM, the slowest in {slowest:.1f} s")
    sent = " and ".join(f"{count} {call}" for call, count in sorted(load.answered.items()))
    finding(len(load.answered) == 2 and not load.problems, f"every request answered as it should: {sent}")
    lost = unfinished(servers, load.jobs)
    finding(not lost, f"every accepted job is done: {len(load.jobs)}, not done {dict(lost)}")
    report(load, nginx)
    nginx.forget()


def bare_restart(servers, nginx, clients):
    # No jobs: their 503 would tell nginx that a process stops.
    with Load(nginx, clients + 4, job_clients=0) as load:
        stops = restarts(servers, 2)
    broken = sum(count for line, count in nginx.errors().items() if BROKEN in line)
    what = f"{load.answered['predict']} answered, {len(stops)} stops, {broken} broken off"
    finding(load.answered and broken <= len(stops), f"nginx repeats nothing: at most one request a stop breaks off: {what}")
    report(load, nginx)


def slow_reader(server):
    """Reads an answer of 10 MB only when the server has been stopping for longer than it lets connections be silent."""
    length = 4 * 16 * 150528
    head = json.dumps({
        "inputs": [{"name": "x", "shape": [16, 150528], "datatype": "FP32", "parameters": {"binary_data_size": length}}],
        "parameters": {"binary_data_output": True},
    }).encode()
    headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(head))}
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)) as connection:
        connection.sock = socket.socket()
        connection.sock.settimeout(20)
        connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        connection.sock.connect(("127.0.0.1", server.port))
        connection.request("POST", "/v2/models/echo/infer", head + bytes(length), headers)
        response = connection.getresponse()
        server.process.send_signal(signal.SIGTERM)
        time.sleep(1.5)
        try:
            got = len(response.read())
        except (OSError, http.client.IncompleteRead) as error:
            got = len(getattr(error, "partial", b""))
    finding(got > length, f"who reads slowly gets the whole answer of a server that stops: {got} of at least {length} bytes")


def restarts(servers, rounds):
    """Stops each server in turn and starts it again; the exit status and the seconds of each stop."""
    stops = []
    time.sleep(1)
    for _ in range(rounds):
        for server in servers:
            stops.append(server.stop())
            server.start()
            time.sleep(SETTLE_SECONDS)
    return stops


def unfinished(servers, jobs):
    """The states of jobs that are not done within the time that a restart may take."""
    deadline = time.monotonic() + START_SECONDS
    left = set(jobs)
    while True:
        states = {job: state(servers, job) for job in left}
        left = {job for job in left if states[job] != "succeeded"}
        if not left or time.monotonic() > deadline:
            return collections.Counter(states[job] for job in left)
        time.sleep(0.2)


def state(servers, job):
    for server in servers:
        status, body = server.get(f"/v1/jobs/{job}")
        if status == 200:
            return json.loads(body)["status"]
    return "unknown"


def kill(servers, nginx, clients):
    with Load(nginx, clients, job_clients=2) as load:
        time.sleep(1)
        servers[0].process.kill()
        servers[0].process.wait()
        time.sleep(1)
        servers[0].start()
        time.sleep(SETTLE_SECONDS)
    sent = " and ".join(f"{count} {call}" for call, count in sorted(load.answered.items()))
    lost = unfinished(servers, load.jobs)
    print(f"       SIGKILL, not judged: answered {sent}; failed {sum(load.problems.values())}; jobs not done {dict(lost)}")
    report(load, nginx)


def report(load, nginx):
    for what, lines in (("client", load.problems), ("nginx, tries", nginx.tries()), ("nginx, log", nginx.errors())):
        for line, count in lines.most_common(12):
            print(f"       {what}: {count} × {line}")


if __name__ == "__main__":
    main()
