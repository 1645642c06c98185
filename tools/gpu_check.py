#!/usr/bin/env python3
"""Checks on a GPU machine that the server really runs its models on the GPU.

`gpu_check.py ORTUS` inspects `models/digits`, serves the folder with the device set to CUDA and
without fallback, posts a sample, and asserts that the answer is right and that the server
says `cuda:0` of the model. Exits with 1 and one line where anything of that is not so.
Standard library only; ORT_DYLIB_PATH and LD_LIBRARY_PATH must point at the GPU build.
"""

import json
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent
START_SECONDS = 120
DEVICE = "cuda:0"


class CheckError(Exception):
    """What was not as it should be, in one line."""


def main():
    if len(sys.argv) != 2:
        sys.exit("usage: gpu_check.py ORTUS    (the server's binary)")
    binary = os.path.abspath(sys.argv[1])
    environment = dict(os.environ, ORTUS_DEVICE__DEVICE_TYPE="cuda", ORTUS_DEVICE__ALLOW_FALLBACK="false")
    try:
        inspect(binary, environment)
        serve(binary, environment)
    except CheckError as error:
        sys.exit(f"gpu_check: FAILED: {error}")
    print(f"gpu_check: ok, digits runs on {DEVICE}")


def inspect(binary, environment):
    outcome = subprocess.run(
        [binary, "inspect", str(ROOT / "models" / "digits" / "1" / "model.onnx")],
        env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=START_SECONDS,
    )
    if outcome.returncode != 0:
        raise CheckError(f"ortus inspect exited with {outcome.returncode}: {last_line(outcome.stdout)}")


def serve(binary, environment):
    address = f"127.0.0.1:{free_port()}"
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        server = subprocess.Popen(
            [binary, "serve", "--models", str(ROOT / "models"), "--listen", address],
            env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT,
        )
        try:
            wait_until_ready(server, address)
            check_prediction(address)
            check_device(address)
        except CheckError:
            log.seek(0)
            sys.stderr.write(log.read()[-8000:])
            raise
        finally:
            server.terminate()
            try:
                server.wait(30)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def wait_until_ready(server, address):
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise CheckError(f"ortus serve exited with {server.returncode} before it was ready")
        try:
            call(address, "/readyz")
            return
        except CheckError:
            time.sleep(0.2)
    raise CheckError(f"ortus serve was not ready within {START_SECONDS} s")


def check_prediction(address):
    body = (ROOT / "models" / "digits" / "samples" / "seven.png").read_bytes()
    answer = json.loads(call(address, "/v1/models/digits/predict", body, "image/png"))
    best = answer["predictions"][0]
    # One item may be answered by its list of classes or by the best class alone.
    best = best[0] if isinstance(best, list) else best
    if best["label"] != "7" or best["score"] < 0.9:
        raise CheckError(f"seven.png should be 7 with a score above 0.9, got {best}")


def check_device(address):
    model = json.loads(call(address, "/v1/models/digits"))
    if model.get("device") != DEVICE:
        raise CheckError(f"/v1/models/digits should say device {DEVICE}, it says {model.get('device')!r} (providers: {model.get('providers')})")


def call(address, path, body=None, content_type=None):
    request = urllib.request.Request(f"http://{address}{path}", data=body)
    if content_type:
        request.add_header("Content-Type", content_type)
    # Proxy settings of the machine are not for its own loopback.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=60) as response:
            return response.read()
    except urllib.error.HTTPError as error:
        raise CheckError(f"{path} answered {error.code}: {error.read(500).decode(errors='replace')}") from error
    except OSError as error:
        raise CheckError(f"{path}: {error}") from error


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def last_line(text):
    return (text.strip().splitlines() or ["no output"])[-1]


if __name__ == "__main__":
    main()
