#!/usr/bin/env python3
"""Offers a server more than it can do, and measures what is left of what it can do.

`overload.py ORTUS [--seconds 8] [--run-ms 5] [--times 1 2 5 10] [--body-bytes 0]`

The model turns a matrix for some milliseconds on one thread; one instance of it runs, so the other core is left to the
connections and to this program. The peak rate is what clients in a closed loop get, each sending when it has its answer.
Then a multiple of it is offered in an open loop: requests are due at their times, however the server is doing, and a latency counts
from the time that its request was due. The first quarter of each measurement fills the queue and is not counted. Asked is:

* goodput: answers a second, at least 0.9 of the peak, also when ten times of it is offered;
* every other answer is 503 with `Retry-After`, and none is missing;
* the p99 of what was admitted: no more than the queue's length at the rate that was reached, and a fifth;
* resident memory: no more than a body and a connection for each request in flight above that of an idle server.

What other programs take of the processor meanwhile is missing in the goodput, so it is measured, too: a measurement beside which they
took more than a twentieth of the machine is made again, and counts the third time.

Everything is on loopback and ends by itself. Standard library only. Each finding is a line that begins with `ok` or `FAILED`;
exits with 1 where one failed. `make overload` runs it, which needs an idle machine.
"""

import argparse
import collections
import http.client
import json
import os
import pathlib
import re
import selectors
import shutil
import socket
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
FIXTURE = ROOT / "tests" / "fixtures" / "store" / "slow"
START_SECONDS = 60
# Of all clients together; each waits for one answer at a time.
CONNECTIONS_MAX = 2000
ANSWER_SECONDS = 30
GOODPUT_MIN = 0.9
LATENCY_SLACK = 1.2
# What the server may hold for each request in flight besides its body: what its connection reads ahead and its task.
CONNECTION_BYTES = 160 << 10
# What others may take of the machine's processors.
OTHERS_MAX = 0.05
TRIES = 3
# As long as by default.
QUEUE = 256
MODEL_TOML = f"[batch]\ninstances = 1\nmax_queue = {QUEUE}\n"

failed = False


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("ortus", help="the server's binary, a release build")
    parser.add_argument("--seconds", type=float, default=8, help="of each measurement (8)")
    parser.add_argument("--run-ms", type=float, default=5, help="of one run of the model (5)")
    parser.add_argument("--times", type=float, nargs="+", default=[1, 2, 5, 10], help="of the peak to offer (1 2 5 10)")
    parser.add_argument("--body-bytes", type=int, default=0, help="that each body has at least (0)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as store, Server(arguments.ortus, pathlib.Path(store)) as server:
        turns = calibrated(server, arguments.run_ms / 1e3)
        request = request_of(turns, arguments.body_bytes)
        peak = max((closed(server, request, clients, arguments.seconds / 2), clients) for clients in (1, 4, 16, 64))
        print(f"the peak: {peak[0]:.1f} a second, with {peak[1]} clients; bodies of {len(request)} bytes")
        for times in arguments.times:
            check(offered(server, request, peak[0] * times, arguments.seconds), times, peak[0], len(request))
    sys.exit(1 if failed else 0)


def finding(holds, text):
    global failed
    failed = failed or not holds
    print(f"{'ok    ' if holds else 'FAILED'} {text}", flush=True)


# --- the server ---------------------------------------------------------------------------------


class Server:
    def __init__(self, ortus, store):
        shutil.copytree(FIXTURE, store / "slow")
        (store / "slow" / "model.toml").write_text(MODEL_TOML)
        self.command = [os.path.abspath(ortus), "serve", "--models", str(store), "--listen", "127.0.0.1:0"]

    def __enter__(self):
        kept = {name: value for name, value in os.environ.items() if not name.startswith("ORTUS_")}
        self.process = subprocess.Popen(
            self.command, env=kept | {"ORTUS_TELEMETRY__LOG_LEVEL": "error"}, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
        )
        match = re.search(r"http://127\.0\.0\.1:(\d+)", self.process.stdout.readline())
        if not match:
            raise SystemExit("the server did not start")
        self.port = int(match.group(1))
        deadline = time.monotonic() + START_SECONDS
        while self.get("/readyz")[0] != 200:
            if time.monotonic() > deadline:
                raise SystemExit("the server did not become ready")
            time.sleep(0.05)
        return self

    def __exit__(self, *_):
        ended = self.process.poll()
        self.process.terminate()
        finding(ended is None and self.process.wait(30) == 0, "the server ended when it was asked to, and not before")

    def get(self, path):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.request("GET", path)
        answer = connection.getresponse()
        try:
            return answer.status, answer.read()
        finally:
            connection.close()

    def resident(self):
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+) kB", status).group(1)) << 10


# --- the load -----------------------------------------------------------------------------------


def request_of(turns, body_bytes):
    body = json.dumps({"inputs": {"n": turns}, "timeout_ms": 1000 * ANSWER_SECONDS}).encode().ljust(body_bytes)
    head = f"POST /v1/models/slow/predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def calibrated(server, seconds):
    """The turns whose run takes so long."""
    with Clients(server.port, 1) as clients:
        turns, took = 1000, 0.0
        while took < seconds * 4:
            turns *= 2
            took = min(clients.alone(request_of(turns, 0)) for _ in range(3))
        return max(1, round(turns * seconds / took))


def closed(server, request, count, seconds):
    """Answers a second of so many clients in a closed loop."""
    with Clients(server.port, count) as clients:
        begun = time.perf_counter()
        end, answered = begun + seconds, 0
        for _ in range(count):
            clients.send(request, begun)
        while (now := time.perf_counter()) < end:
            for answer in clients.answers(end - now):
                if answer.status != 200:
                    raise SystemExit(f"{count} clients in a closed loop: an answer {answer.status}")
                answered += 1
                clients.send(request, answer.at)
        clients.drain()
        return answered / seconds


Answer = collections.namedtuple("Answer", "status due at has_retry_after")


class Clients:
    """Connections that are kept, and more of them where all are waiting for an answer."""

    def __init__(self, port, count):
        self.address, self.selector = ("127.0.0.1", port), selectors.EpollSelector()
        self.idle = [self.connect() for _ in range(count)]
        self.count, self.waiting, self.broken = count, 0, 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.selector.close()

    def connect(self):
        connection = socket.create_connection(self.address)
        connection.setsockopt(socket.SOL_TCP, socket.TCP_NODELAY, 1)
        return connection

    def send(self, request, due):
        """Whether a connection was left for it."""
        if not self.idle and self.count >= CONNECTIONS_MAX:
            return False
        if self.idle:
            connection = self.idle.pop()
        else:
            connection, self.count = self.connect(), self.count + 1
        connection.sendall(request)
        self.selector.register(connection, selectors.EVENT_READ, [due, b""])
        self.waiting += 1
        return True

    def answers(self, seconds):
        """What has come, or comes within the time."""
        for key, _ in self.selector.select(max(0, seconds)):
            connection, (due, have) = key.fileobj, key.data
            piece = connection.recv(1 << 16)
            have += piece
            end = have.find(b"\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", have[:end].lower()) if end > 0 else None
            if piece and (length is None or len(have) < end + 4 + int(length.group(1))):
                key.data[1] = have
                continue
            self.selector.unregister(connection)
            self.waiting -= 1
            if not piece or b"connection: close" in have[:end].lower():
                connection.close()
                self.count -= 1
            else:
                self.idle.append(connection)
            if not piece:
                self.broken += 1
                continue
            yield Answer(int(have[9:12]), due, time.perf_counter(), b"retry-after: " in have[:end].lower())

    def drain(self):
        end, all_answers = time.perf_counter() + ANSWER_SECONDS, []
        while self.waiting and (now := time.perf_counter()) < end:
            all_answers += self.answers(end - now)
        return all_answers

    def alone(self, request):
        """Seconds of one request."""
        begun = time.perf_counter()
        self.send(request, begun)
        (answer,) = self.drain()
        if answer.status != 200:
            raise SystemExit(f"a single request was answered with {answer.status}")
        return answer.at - begun


def offered(server, request, rate, seconds):
    for left in reversed(range(TRIES)):
        measured = Offered(server, request, rate, seconds)
        if measured.others_cpu <= OTHERS_MAX or not left:
            return measured
        print(f"       others took {measured.others_cpu:.0%} of the machine: goodput was {measured.goodput:.1f} a second; measured again", flush=True)


class Busy:
    """Seconds of processor time: of the whole machine, of the server, and of this program."""

    def __init__(self, server):
        tick = os.sysconf("SC_CLK_TCK")
        # user nice system idle iowait irq softirq steal; what a hypervisor takes is missing to us, too.
        machine = [int(ticks) for ticks in pathlib.Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
        own = pathlib.Path(f"/proc/{server.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        self.at, self.this = time.perf_counter(), time.process_time()
        self.machine = (sum(machine) - machine[3] - machine[4]) / tick
        self.server = (int(own[11]) + int(own[12])) / tick

    def of_others_since(self, before):
        """The share of all processors that other programs took."""
        others = (self.machine - before.machine) - (self.server - before.server) - (self.this - before.this)
        return max(0.0, others) / (self.at - before.at) / os.cpu_count()


class Offered:
    """What became of requests that were offered at a rate."""

    def __init__(self, server, request, rate, seconds):
        self.rate, self.unsent, self.resident = rate, 0, server.resident()
        self.idle_resident = self.resident
        busy, begun = Busy(server), time.perf_counter()
        counted_from, end, sent, answers, looked = begun + seconds / 4, begun + seconds, 0, [], begun
        self.flight = 0
        with Clients(server.port, 8) as clients:
            while (now := time.perf_counter()) < end:
                while (due := begun + sent / rate) <= now:
                    self.unsent += not clients.send(request, due)
                    sent += 1
                answers += clients.answers(min(due, end) - time.perf_counter())
                self.flight = max(self.flight, clients.waiting)
                if now - looked > 0.25:
                    looked, self.resident = now, max(self.resident, server.resident())
            after = Busy(server)
            self.cpu = (after.this - busy.this) / (after.at - busy.at)
            self.others_cpu = after.of_others_since(busy)
            answers += clients.drain()
            self.missing = clients.waiting + clients.broken
        inside = [answer for answer in answers if counted_from <= answer.at < end]
        self.goodput = sum(answer.status == 200 for answer in inside) / (end - counted_from)
        self.admitted = sorted(answer.at - answer.due for answer in inside if answer.status == 200)
        self.refused = sorted(answer.at - answer.due for answer in inside if answer.status == 503)
        self.others = collections.Counter(answer.status for answer in answers if answer.status not in (200, 503))
        self.without_retry_after = sum(answer.status == 503 and not answer.has_retry_after for answer in answers)


def percentile_ms(values, percent):
    return values[min(len(values) - 1, int(len(values) * percent / 100))] * 1e3 if values else 0.0


def check(offered, times, peak, body_bytes):
    name = f"{times:g} × the peak, {offered.rate:.0f} a second"
    share = len(offered.refused) / max(1, len(offered.refused) + len(offered.admitted))
    print(
        f"{name}: refused {share:.0%}, in {percentile_ms(offered.refused, 50):.2f} ms (p50), {percentile_ms(offered.refused, 99):.2f} ms (p99);"
        f" at most {offered.flight} in flight; this program took {offered.cpu:.2f} cores, others {offered.others_cpu:.0%} of the machine"
    )
    # What is offered at the peak itself is admitted as it comes.
    goodput_min = GOODPUT_MIN * min(1, times)
    finding(offered.goodput >= goodput_min * peak, f"{name}: goodput {offered.goodput:.1f} a second, {offered.goodput / peak:.2f} of the peak")
    bad = sum(offered.others.values()) + offered.missing + offered.unsent + offered.without_retry_after
    finding(
        not bad,
        f"{name}: other answers {dict(offered.others)}, missing {offered.missing}, not sent {offered.unsent},"
        f" 503 without Retry-After {offered.without_retry_after}",
    )
    bound = (QUEUE + 2) / max(offered.goodput, 1) * LATENCY_SLACK * 1e3
    p50, p99 = percentile_ms(offered.admitted, 50), percentile_ms(offered.admitted, 99)
    finding(p99 <= bound, f"{name}: admitted p50 {p50:.0f} ms, p99 {p99:.0f} ms; a queue of {QUEUE} at this rate takes {bound / LATENCY_SLACK:.0f} ms")
    room = offered.flight * (body_bytes + CONNECTION_BYTES) + (8 << 20)
    grown = offered.resident - offered.idle_resident
    finding(grown <= room, f"{name}: resident {offered.resident / 1e6:.0f} MB, {grown / 1e6:.1f} MB more than before; {room / 1e6:.0f} MB may be")


if __name__ == "__main__":
    main()
