#!/usr/bin/env python3
"""Loads a server for minutes with what clients do right and wrong, and checks that nothing is lost or kept.

`soak.py ORTUS BENCH_MODELS [--minutes 20] [--cycles 50] [--clients 8] [--seed 1]`

Part 1 loads and unloads a model of 100 MB again and again while another model answers steady traffic: no
request may be lost, the resident memory must come back to within 10 % of the start, and the other model's
p99 must not double. Part 2 sends a mix for `--minutes`: good requests (whose answers are compared), others
that must be refused, deadlines that pass, connections that are reset in the middle, jobs, streams of events that are
read to their end and others that are left; beside them one client uploads versions of a model, good and bad
ones, goes back, unloads, loads and deletes it. Memory, file descriptors and threads are looked at all the time and
must stay flat: after a warm-up of a fifth of the time, the medians of the last quarter may be no more than 4 %
(and 2 MB) of memory, 4 file descriptors and 2 threads above those of the first. The async runtime's threads are bounded by what can be asked of
them at once: those that a busy moment started take turns from then on, so they stay. In the end the clients' counts and
those of `/metrics` must agree to the last request: requests = answered + refused + cancelled; and all must be back.

Talks to a server that it starts on loopback, and to nothing else. Standard library only. Each finding is a
line that begins with `ok` or `FAILED`; exits with 1 where one failed. `make soak` runs it.
"""

import argparse
import collections
import contextlib
import http.client
import json
import os
import pathlib
import random
import re
import shutil
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
FIXTURES = ROOT / "tests" / "fixtures" / "store"
MAX_BODY = 4 << 20
# Turns of the model `slow` that take longer than any deadline here.
FOREVER = 10**12
START_SECONDS = 60
# How long a client keeps a connection that it does not use: half of header_read_timeout_ms.
IDLE_SECONDS = 5
SETTLE_SECONDS = 30
# Models whose requests are not in the counts that are compared: what jobs do, and what comes and goes.
NOT_COMPARED = ("jobbed", "churned")
# How often the process is looked at, and how far it may be above its beginning: MB as a share and beside it, descriptors, threads.
LOOK_SECONDS = 2
MEMORY_SHARE, MEMORY_MB, DESCRIPTORS, THREADS = 0.04, 2, 4, 2
# The name of the async runtime's threads; beside one for each core so many may be there as clients ask, and for what goes on beside requests.
ASYNC, ASYNC_BESIDE = "async", 16
# A version of a model that is uploaded has at least so many bytes.
UPLOAD_BYTES = 1 << 20

failed = False


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("ortus", help="the server's binary, a release build")
    parser.add_argument("models", type=pathlib.Path, help="what tools/make_bench_models.py wrote")
    parser.add_argument("--minutes", type=float, default=20, help="of the mixed load (20)")
    parser.add_argument("--cycles", type=int, default=50, help="loads and unloads of the big model (50)")
    parser.add_argument("--clients", type=int, default=8, help="connections of the mixed load (8)")
    parser.add_argument("--seed", type=int, default=1, help="of the mix (1)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as store:
        store = pathlib.Path(store)
        for name in ("mlp", "echo", "fails", "slow"):
            shutil.copytree(FIXTURES / name, store / name)
        # A model of its own, so that what jobs do is not in the counts that are compared.
        shutil.copytree(FIXTURES / "mlp", store / "jobbed")
        shutil.copytree(arguments.models / "big", store / "big")
        if arguments.cycles:
            with Server(arguments.ortus, store) as server:
                loads_under_traffic(server, arguments.cycles)
        if arguments.minutes:
            with Server(arguments.ortus, store) as server:
                mixed_load(server, arguments.minutes * 60, arguments.clients, arguments.seed)
    sys.exit(1 if failed else 0)


def finding(holds, text):
    global failed
    failed = failed or not holds
    print(f"{'ok    ' if holds else 'FAILED'} {text}", flush=True)


def graph(version):
    """The graph that adds `version`, made longer by bytes that are no part of it: an unknown field of the format, whose number is 1000."""
    content = (FIXTURES / "versions" / str(version) / "model.onnx").read_bytes()
    return content + b"\xc2\x3e\x80\x80\x40" + bytes(UPLOAD_BYTES)


# --- the server ---------------------------------------------------------------------------------


class Server:
    def __init__(self, binary, store):
        self.binary, self.store = os.path.abspath(binary), store

    def __enter__(self):
        self.log = tempfile.TemporaryFile("w+", errors="replace")
        environment = dict(os.environ, ORTUS_TELEMETRY__LOG_LEVEL="error", ORTUS_SERVER__MAX_BODY_BYTES=str(MAX_BODY))
        self.process = subprocess.Popen(
            [self.binary, "serve", "--models", str(self.store), "--listen", "127.0.0.1:0", "--grpc", "off"],
            env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self.log, text=True,
        )
        line = self.process.stdout.readline()
        match = re.search(r"http://127\.0\.0\.1:(\d+)", line)
        if not match:
            self.fail(f"it did not start: {line!r}")
        self.port = int(match.group(1))
        deadline = time.monotonic() + START_SECONDS
        while self.get("/readyz")[0] != 200:
            if time.monotonic() > deadline or self.process.poll() is not None:
                self.fail("it did not become ready")
            time.sleep(0.05)
        return self

    def __exit__(self, *_):
        if self.process.poll() is not None:
            self.fail(f"it ended with {self.process.returncode} in the middle")
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        finding(code == 0, f"the server ended with {code} when it was asked to")

    def fail(self, problem):
        self.log.seek(0)
        sys.stderr.write(self.log.read()[-4000:])
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        sys.exit(f"soak: the server: {problem}")

    def get(self, path):
        return self.call("GET", path)

    def call(self, method, path, body=None, content_type=None):
        """Status and body, over a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            connection.request(method, path, body, {"Content-Type": content_type} if content_type else {})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def must(self, method, path, body=None):
        status, answer = self.call(method, path, body)
        if not 200 <= status < 300:
            self.fail(f"{method} {path} was answered with {status}: {answer[:500]!r}")
        return answer

    def resources(self):
        """Resident MB, file descriptors, threads but for the async runtime's, and those."""
        process = pathlib.Path("/proc") / str(self.process.pid)
        status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
        threads = self.threads()
        own = threads.total() - threads[ASYNC]
        return int(status["VmRSS"].split()[0]) / 1024, len(os.listdir(process / "fd")), own, threads[ASYNC]

    def threads(self):
        """How many threads have each name; an instance that took another's place has its name with another number."""
        names = collections.Counter()
        for task in (pathlib.Path("/proc") / str(self.process.pid) / "task").iterdir():
            with contextlib.suppress(OSError):
                names[re.sub(r"^\d+:", "", (task / "comm").read_text().strip())] += 1
        return names

    def settled(self, is_back):
        """The resources once they are back, or after a while."""
        deadline = time.monotonic() + SETTLE_SECONDS
        while not is_back(self.resources()) and time.monotonic() < deadline:
            time.sleep(0.5)
        return self.resources()


# --- requests -----------------------------------------------------------------------------------


def head(method, path, content_type, length, more=""):
    return (
        f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {content_type}\r\nContent-Length: {length}\r\n{more}\r\n"
    ).encode()


def post(path, value):
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    return head("POST", path, "application/json", len(body)) + body


def predict(model, inputs, **more):
    return post(f"/v1/models/{model}/predict", {"inputs": inputs, **more})


def infer_echo(numbers):
    data = struct.pack(f"<{len(numbers)}f", *numbers)
    text = json.dumps({
        "inputs": [{"name": "x", "shape": [1, len(numbers)], "datatype": "FP32", "parameters": {"binary_data_size": len(data)}}],
        "parameters": {"binary_data_output": True},
    }).encode()
    length = len(text) + len(data)
    return head("POST", "/v2/models/echo/infer", "application/octet-stream", length, f"Inference-Header-Content-Length: {len(text)}\r\n") + text + data


class Connection:
    """One kept-alive connection; opened again where the server closes it after an answer."""

    def __init__(self, port):
        self.port, self.socket, self.rest, self.used = port, None, b"", 0.0

    def send(self, request):
        """Status and body of the answer."""
        # The server closes connections that nobody uses; whoever comes back to one in that moment would see it break.
        if time.monotonic() - self.used > IDLE_SECONDS:
            self.close()
        if self.socket is None:
            self.open()
        self.socket.sendall(request)
        buffer = self.rest
        while b"\r\n\r\n" not in buffer:
            buffer += self.receive()
        top, _, buffer = buffer.partition(b"\r\n\r\n")
        lines = top.decode("latin-1").lower().split("\r\n")
        # 204 has none.
        length = next((int(line.split(":")[1]) for line in lines if line.startswith("content-length:")), 0)
        while len(buffer) < length:
            buffer += self.receive()
        body, self.rest = buffer[:length], buffer[length:]
        self.used = time.monotonic()
        if "connection: close" in lines:
            self.close()
        return int(lines[0].split()[1]), body

    def open(self):
        self.socket = socket.create_connection(("127.0.0.1", self.port), timeout=60)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def receive(self):
        piece = self.socket.recv(1 << 18)
        if not piece:
            raise ConnectionError("the server closed the connection before the answer")
        return piece

    def close(self):
        if self.socket is not None:
            self.socket.close()
        self.socket, self.rest = None, b""


def reset_after(port, start, rest, seconds):
    """Sends bytes and resets the connection a moment later, as a client does that was killed.

    `rest` follows once the server has answered `start` with 100 Continue: then it has begun to read the request and
    counts it. Without that, nobody could say whether a request that was reset was ever seen.
    """
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(start)
        if rest is not None:
            answer = b""
            while b"\r\n\r\n" not in answer:
                piece = connection.recv(4096)
                if not piece:
                    raise ConnectionError("the server closed the connection in place of 100 Continue")
                answer += piece
            if not answer.startswith(b"HTTP/1.1 100 "):
                raise ValueError(f"{answer[:100]!r} in place of 100 Continue")
            connection.sendall(rest)
        time.sleep(seconds)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def expecting(request):
    """A request as head and body, the head asking whether the body is wanted."""
    top, _, body = request.partition(b"\r\n\r\n")
    return top + b"\r\nExpect: 100-continue\r\n\r\n", body


def percentile(values, percent):
    return sorted(values)[min(len(values) - 1, int(len(values) * percent / 100))] if values else 0.0


# --- part 1 -------------------------------------------------------------------------------------


def loads_under_traffic(server, cycles):
    print(f"loading and unloading 100 MB, {cycles} times, under traffic to another model")
    big = predict("big", [[0.5] * 5120])
    traffic = Traffic(server.port)
    with traffic:
        server.must("POST", "/v1/models/big/unload")
        traffic.forget()
        time.sleep(10)
        before = traffic.forget()
        start = server.resources()
        resident = []
        for _ in range(cycles):
            server.must("POST", "/v1/models/big/load")
            status, body = Connection(server.port).send(big)
            if status != 200:
                server.fail(f"the big model answered with {status}: {body[:500]!r}")
            server.must("POST", "/v1/models/big/unload")
            resident.append(server.resources()[0])
        during = traffic.forget()
        end = server.settled(lambda now: now[0] <= start[0] * 1.1)
    finding(
        end[0] <= start[0] * 1.1,
        f"resident memory: {start[0]:.0f} MB at the start, {end[0]:.0f} MB at the end"
        f" (unloaded: {resident[0]:.0f} MB the first time, {max(resident):.0f} MB at most)",
    )
    tail = [percentile(values, 99) * 1e3 for values in (before, during)]
    middle = [percentile(values, 50) * 1e3 for values in (before, during)]
    finding(
        tail[1] <= 2 * tail[0],
        f"the other model's p99: {tail[0]:.2f} ms before, {tail[1]:.2f} ms during (p50 {middle[0]:.2f}, {middle[1]:.2f})",
    )
    finding(not traffic.lost, f"requests to the other model: {traffic.count}, lost: {traffic.lost}")


class Traffic:
    """Two clients that ask `mlp` a few hundred times a second."""

    def __init__(self, port):
        self.port, self.stop, self.lock = port, threading.Event(), threading.Lock()
        self.latencies, self.lost, self.count = [], 0, 0

    def __enter__(self):
        self.threads = [threading.Thread(target=self.run) for _ in range(2)]
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        for thread in self.threads:
            thread.join()

    def forget(self):
        """The latencies since the last call."""
        with self.lock:
            latencies, self.latencies = self.latencies, []
            return latencies

    def run(self):
        connection, request = Connection(self.port), predict("mlp", {"x": [[0.5] * 32]})
        while not self.stop.is_set():
            started = time.monotonic()
            try:
                answered = connection.send(request)[0] == 200
            except OSError:
                connection.close()
                answered = False
            with self.lock:
                self.latencies.append(time.monotonic() - started)
                self.count += 1
                self.lost += not answered
            time.sleep(0.004)
        connection.close()


# --- part 2 -------------------------------------------------------------------------------------


class Client(threading.Thread):
    """One client of the mix. Counts what it was answered, by status, and what it did not wait for."""

    def __init__(self, server, seed, expected):
        super().__init__()
        self.server, self.random, self.expected = server, random.Random(seed), expected
        self.statuses, self.gone, self.jobs, self.done, self.problems = collections.Counter(), 0, [], 0, []
        self.connection = Connection(server.port)
        self.until = 0.0

    def run(self):
        kinds, weights = zip(*[
            (self.good, 40), (self.echo, 10), (self.good_beside_poison, 8), (self.poison, 8), (self.expires, 8), (self.cut_running, 5),
            (self.cut_quick, 5), (self.cut_body, 4), (self.cut_head, 2), (self.oversized, 2), (self.malformed, 6), (self.job, 2),
            (self.watch_job, 1), (self.leave_stream, 1), (self.look, 1),
        ])
        while time.monotonic() < self.until:
            kind = self.random.choices(kinds, weights)[0]
            try:
                kind()
            except (OSError, ValueError, KeyError) as error:
                self.problems.append(f"{kind.__name__}: {error!r}")
                self.connection.close()
        self.connection.close()

    def ask(self, request, *allowed):
        """The body where the answer is 200. A full queue is an answer, too."""
        status, body = self.connection.send(request)
        self.statuses[status] += 1
        if status not in (*allowed, 503):
            self.problems.append(f"{status} in place of {allowed}: {body[:200]!r}")
        return body if status == 200 else None

    def good(self):
        index = self.random.randrange(len(self.expected))
        row, answer = self.expected[index]
        body = self.ask(predict("mlp", {"x": [row]}), 200)
        if body is not None and not close(json.loads(body)["outputs"]["y"][0], answer):
            self.problems.append("mlp: an answer that is not its request's")

    def echo(self):
        numbers = [self.random.random() for _ in range(4)] * self.random.randrange(1, 4000)
        body = self.ask(infer_echo(numbers), 200)
        if body is not None and not body.endswith(struct.pack(f"<{len(numbers)}f", *numbers)):
            self.problems.append("echo: an answer that is not its request's")

    def good_beside_poison(self):
        body = self.ask(predict("fails", {"index": [0, 3, -1]}), 200)
        if body is not None and json.loads(body)["outputs"]["y"] != [10, 13, 13]:
            self.problems.append("fails: an answer that is not its request's")

    def poison(self):
        self.ask(predict("fails", {"index": [0, 9]}), 422)

    def expires(self):
        if self.random.random() < 0.5:
            self.ask(predict("slow", {"n": FOREVER}, timeout_ms=self.random.randrange(1, 40)), 504)
        else:
            self.ask(predict("mlp", {"x": [[0.5] * 32]}, timeout_ms=1), 200, 504)

    def cut(self, request, seconds, share=1.0):
        """Goes away `seconds` after a share of the body was sent."""
        top, body = expecting(request)
        reset_after(self.server.port, top, body[: int(len(body) * share)], self.random.uniform(0, seconds))
        self.gone += 1

    def cut_running(self):
        self.cut(predict("slow", {"n": FOREVER}, timeout_ms=5000), 0.03)

    def cut_quick(self):
        self.cut(predict("mlp", {"x": [[0.5] * 32]}), 0.003)

    def cut_body(self):
        self.cut(infer_echo([0.5] * 50_000), 0.02, self.random.uniform(0, 0.99))

    def cut_head(self):
        # No request as long as its head has no end: nobody counts it.
        reset_after(self.server.port, predict("mlp", {"x": []})[: self.random.randrange(1, 60)], None, 0.002)

    def oversized(self):
        # Said to be too large, and not sent: the answer comes at once, and the connection ends.
        self.ask(head("POST", "/v1/models/mlp/predict", "application/json", MAX_BODY + 1), 413)
        self.connection.close()

    def malformed(self):
        kind = self.random.randrange(5)
        if kind == 0:
            self.ask(post("/v1/models/mlp/predict", b'{"inputs": {"x": [[1,'), 400)
        elif kind == 1:
            self.ask(predict("mlp", {"x": [[1.0] * 31]}), 422)
        elif kind == 2:
            self.ask(predict("mlp", {"y": [[1.0] * 32]}), 422)
        elif kind == 3:
            self.ask(predict("nothing-here", [1]), 404)
        else:
            self.ask(head("POST", "/v1/models/mlp/predict", "text/html", 1) + b"x", 415)

    def job(self):
        status, body = self.connection.send(post("/v1/models/jobbed/jobs", {"inputs": {"x": [[0.5] * 32]}}))
        # 429, 503: as many wait as may.
        if status == 202:
            self.jobs.append(json.loads(body)["id"])
        elif status not in (429, 503):
            self.problems.append(f"a job: {status}: {body[:200]!r}")
        # A client that fetched its results lets go of them.
        for job in self.jobs[:-4]:
            status, body = self.connection.send(get(f"/v1/jobs/{job}"))
            state = json.loads(body).get("status")
            if state == "succeeded":
                status, _ = self.connection.send(delete(f"/v1/jobs/{job}"))
                self.jobs.remove(job)
                self.done += 1
            if status not in (200, 204) or state not in ("queued", "running", "succeeded"):
                self.problems.append(f"a job: {status} {state}")

    def watch_job(self):
        if not self.jobs:
            return
        status, text = self.server.get(f"/v1/jobs/{self.jobs[-1]}/events")
        if status != 200 or b"succeeded" not in text.rsplit(b"data:", 1)[-1]:
            self.problems.append(f"the events of a job: {status} {text[-200:]!r}")

    def leave_stream(self):
        # It has no end; the client leaves after its head.
        with socket.create_connection(("127.0.0.1", self.server.port), timeout=60) as connection:
            connection.sendall(get("/ui/live?of=/"))
            if not connection.recv(4096).startswith(b"HTTP/1.1 200 "):
                self.problems.append("the stream of the dashboard was refused")
            time.sleep(self.random.uniform(0, 0.5))

    def look(self):
        for path in ("/metrics", "/v1/stats", "/v1/models", "/", "/ui/jobs"):
            status, body = self.connection.send(get(path))
            if status != 200:
                self.problems.append(f"GET {path}: {status} {body[:200]!r}")


class Churn(threading.Thread):
    """One client that changes a model of its own, rightly and wrongly."""

    def __init__(self, server):
        super().__init__()
        self.server, self.problems, self.rounds = server, [], 0
        self.until = 0.0

    def run(self):
        while time.monotonic() < self.until:
            try:
                self.round()
                self.rounds += 1
            except (OSError, ValueError) as error:
                self.problems.append(f"a change of a model: {error!r}")

    def round(self):
        self.upload(graph(1), 201)
        self.answers(1)
        self.upload(b"no graph at all", 422)
        self.upload(graph(2), 201)
        self.answers(2)
        self.must(200, "POST", "/v1/models/churned/rollback")
        self.answers(1)
        self.must(200, "POST", "/v1/models/churned/unload")
        self.must(200, "POST", "/v1/models/churned/load")
        self.must(404, "POST", "/v1/models/nothing-here/load")
        self.must(422, "POST", "/v1/models", b'{"source": "nowhere"}', "application/json")
        self.answers(1)
        self.must(200, "DELETE", "/v1/models/churned")
        time.sleep(0.5)

    def upload(self, content, status):
        head = b'--form\r\nContent-Disposition: form-data; name="file"; filename="model.onnx"\r\n\r\n'
        body = head + content + b"\r\n--form--\r\n"
        self.must(status, "POST", "/v1/models/churned/versions", body, "multipart/form-data; boundary=form")

    def answers(self, version):
        body = self.must(200, "POST", "/v1/models/churned/predict", b'{"inputs": [0.0, 1.0]}', "application/json")
        if json.loads(body)["outputs"]["y"] != [version, version + 1]:
            raise ValueError(f"version {version} answered {body!r}")

    def must(self, expected, *call):
        status, body = self.server.call(*call)
        if status != expected:
            raise ValueError(f"{call[0]} {call[1]}: {status} in place of {expected}: {body[:200]!r}")
        return body


class Watch(threading.Thread):
    """Looks at the process until it is stopped."""

    def __init__(self, server, clients):
        super().__init__()
        self.server, self.clients, self.stop = server, clients, threading.Event()
        self.begun, self.looks = time.monotonic(), []

    def run(self):
        while not self.stop.wait(LOOK_SECONDS):
            self.looks.append((time.monotonic() - self.begun, *self.server.resources()))

    def end(self):
        self.stop.set()
        self.join()

    def report(self):
        """A line for each tenth, and whether it stayed flat after the first fifth."""
        looks = self.looks
        print("       minute  resident MB  file descriptors  threads  async threads   (medians of tenths)")
        for tenth in range(10):
            part = looks[len(looks) * tenth // 10 : len(looks) * (tenth + 1) // 10]
            if part:
                middle = [statistics.median(column) for column in zip(*part)]
                print(f"       {middle[0] / 60:6.1f}  {middle[1]:11.1f}  {middle[2]:16.0f}  {middle[3]:7.0f}  {middle[4]:13.0f}")
        warm = looks[len(looks) // 5 :]
        quarter = max(1, len(warm) // 4)
        first, last = ([statistics.median(column) for column in zip(*part)] for part in (warm[:quarter], warm[-quarter:]))
        slope = statistics.linear_regression([look[0] / 3600 for look in warm], [look[1] for look in warm]).slope
        limits = (first[1] * (1 + MEMORY_SHARE) + MEMORY_MB, first[2] + DESCRIPTORS, first[3] + THREADS)
        for name, place in (("resident MB", 1), ("file descriptors", 2), ("threads", 3)):
            more = f" ({slope:+.1f} MB an hour)" if place == 1 else ""
            finding(
                last[place] <= limits[place - 1],
                f"{name} under load: {first[place]:.1f} after the warm-up, {last[place]:.1f} in the end, {limits[place - 1]:.1f} may be{more}",
            )
        most, may = max(look[4] for look in looks), os.cpu_count() + self.clients + ASYNC_BESIDE
        finding(most <= may, f"threads of the async runtime: {most} at most, {may} may be")


def get(path):
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()


def delete(path):
    return f"DELETE {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()


def close(got, expected):
    return len(got) == len(expected) and all(abs(a - b) <= 1e-4 + 1e-4 * abs(b) for a, b in zip(got, expected))


def mixed_load(server, seconds, clients, seed):
    print(f"mixed load for {seconds:.0f} s, {clients} clients, seed {seed}")
    numbers = random.Random(seed)
    connection, expected = Connection(server.port), []
    own = collections.Counter()
    for _ in range(8):
        row = [numbers.uniform(-1, 1) for _ in range(32)]
        status, body = connection.send(predict("mlp", {"x": [row]}))
        own[status] += 1
        expected.append((row, json.loads(body)["outputs"]["y"][0]))
    connection.close()
    workers = [Client(server, seed * 1000 + index, expected) for index in range(clients)]
    # Whatever grows with the first requests has grown after the first tenth.
    early = Churn(server)
    run_for([*workers, early], min(seconds / 10, 30))
    rest([*workers, early])
    # Idle threads and closed connections go within seconds.
    time.sleep(min(seconds / 4, 15))
    start, names = server.resources(), server.threads()
    again = [Client(server, seed * 2000 + index, expected) for index in range(clients)]
    churn, watch = Churn(server), Watch(server, clients)
    watch.start()
    run_for([*again, churn], seconds)
    rest([*again, churn])
    watch.end()
    everyone = workers + again
    statuses = sum((worker.statuses for worker in everyone), own)
    cut = sum(worker.gone for worker in everyone)
    problems = [problem for worker in (*everyone, early, churn) for problem in worker.problems]
    print(f"sent: {sum(statuses.values()) + cut}; answered: {dict(sorted(statuses.items()))}; cut by the client: {cut}")
    finding(churn.rounds > 0, f"a model was uploaded, changed and deleted: {churn.rounds} times")
    finding(not problems, f"answers that were not as expected: {len(problems)}" + "".join(f"\n       {text}" for text in problems[:10]))
    jobs_ended(server, [job for worker in everyone for job in worker.jobs], sum(worker.done for worker in everyone))
    watch.report()
    counts_agree(server, statuses, cut)
    end = server.settled(lambda now: now[0] <= start[0] * 1.1 and now[1] <= start[1])
    finding(end[0] <= start[0] * 1.1, f"resident memory: {start[0]:.0f} MB at the start, {end[0]:.0f} MB at the end")
    finding(end[1] <= start[1], f"file descriptors: {start[1]} at the start, {end[1]} at the end")
    more = server.threads() - names
    more.pop(ASYNC, None)
    finding(not more, f"threads: {start[2]} at the start, {end[2]} at the end; more of {dict(more)}, besides the async runtime's")


def run_for(workers, seconds):
    for worker in workers:
        worker.until = time.monotonic() + seconds
        worker.start()


def rest(workers):
    for worker in workers:
        worker.join()


def jobs_ended(server, jobs, done):
    states = collections.Counter(succeeded=done)
    deadline = time.monotonic() + 60
    for job in jobs:
        while True:
            status, body = server.get(f"/v1/jobs/{job}")
            state = json.loads(body).get("status") or json.loads(body).get("state") if status == 200 else str(status)
            if state not in ("queued", "running") or time.monotonic() > deadline:
                break
            time.sleep(0.05)
        states[state] += 1
    finding(set(states) == {"succeeded"}, f"jobs: {dict(states)}")


SAMPLE = re.compile(r'^(\w+)\{(.*)\} ([0-9.eE+]+)$')
LABEL = re.compile(r'(\w+)="([^"]*)"')


def samples(server, name):
    """Labels and value of each sample of a metric."""
    for line in server.must("GET", "/metrics").decode().splitlines():
        match = SAMPLE.match(line)
        if match and match.group(1) == name:
            yield dict(LABEL.findall(match.group(2))), float(match.group(3))


def counts_agree(server, statuses, cut):
    if server.get("/metrics")[0] != 200:
        finding(False, "the server has no /metrics: its counts cannot be compared")
        return
    deadline = time.monotonic() + SETTLE_SECONDS
    while any(value for labels, value in samples(server, "ortus_inflight")) and time.monotonic() < deadline:
        time.sleep(0.2)
    counted = collections.Counter()
    for labels, value in samples(server, "ortus_requests_total"):
        if labels["model"] not in NOT_COMPARED:
            counted[int(labels["code"])] += int(value)
    cancelled = collections.Counter()
    for labels, value in samples(server, "ortus_cancelled_total"):
        if labels["model"] not in NOT_COMPARED:
            cancelled[labels["reason"]] += int(value)
    # A request that was cut may have been answered before anyone noticed; nobody saw that answer.
    unseen = counted.copy()
    unseen.subtract(statuses)
    missed = {code: -number for code, number in unseen.items() if number < 0}
    sent = sum(statuses.values()) + cut
    answered = counted[200]
    refused = sum(number for code, number in counted.items() if code not in (200, 499))
    finding(
        sum(counted.values()) == sent and not missed,
        f"/metrics: {answered} answered + {refused} refused + {counted[499]} cancelled = {sum(counted.values())}; the clients sent {sent}"
        + (f"; answers that were not counted: {missed}" if missed else ""),
    )
    finding(
        cancelled["disconnected"] == counted[499] and cancelled["expired"] == counted[504],
        f"/metrics: cancelled {dict(cancelled)}; by status {{499: {counted[499]}, 504: {counted[504]}}}",
    )


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
    # An interrupt is no success.
    sys.exit(130)
