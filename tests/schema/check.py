#!/usr/bin/env python3
"""Sends a server what its own /openapi.json says it takes, and what it says it does not: schemathesis makes both up.

`check.py ORTUS [--seconds 60] [--seed 1]`

Starts a server without keys on a copy of some fixtures and lets schemathesis call every operation, those that change
the store too. No answer may be a fault of the server, and each must be one that the document describes: its status,
its media type and the shape of its body. Needs what requirements.txt lists; everything is on loopback. The output is
schemathesis' own; exits with 1 where it found something. `make schema-check` runs it.
"""

import argparse
import contextlib
import http.client
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
FIXTURES = ROOT / "tests" / "fixtures" / "store"
MODELS = ("mlp", "echo", "versions", "multi", "strings", "embedder")
# The name that the document's examples have.
EXAMPLE = ("resnet50", "mlp")
CONFIG = pathlib.Path(__file__).resolve().parent / "schemathesis.toml"
START_SECONDS = 60
CHECKS = ("not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance")
# Operations that are not called, and why.
LEFT_OUT = {
    "watchJob": "server-sent events: the stream goes on while its job does",
    "watchDownload": "server-sent events: the stream goes on while its download does",
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("ortus", help="the server's binary")
    parser.add_argument("--seconds", type=int, default=60, help="of made-up requests (60)")
    parser.add_argument("--seed", type=int, default=1, help="of what is made up (1)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, server(arguments.ortus, pathlib.Path(folder)) as port:
        for operation, reason in LEFT_OUT.items():
            print(f"left out: {operation} ({reason})")
        status = subprocess.run(command(port, arguments), cwd=folder, check=False, timeout=arguments.seconds * 2 + 60).returncode
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)) as connection:
            connection.request("GET", "/livez")
            if connection.getresponse().status != 200:
                sys.exit("FAILED the server does not live any more")
    sys.exit(status)


def command(port, arguments):
    left_out = [f"--exclude-operation-id={operation}" for operation in LEFT_OUT]
    return [
        pathlib.Path(sys.executable).parent / "st", "--config-file", CONFIG, "run", f"http://127.0.0.1:{port}/openapi.json",
        f"--checks={','.join(CHECKS)}", "--phases=examples,coverage,fuzzing", f"--max-time={arguments.seconds}",
        "--mode=all", f"--seed={arguments.seed}", "--continue-on-failure", "--request-timeout=30", "--no-color",
        "--suppress-health-check=all", "--generation-database=none", "--workers=2", *left_out,
    ]


@contextlib.contextmanager
def server(ortus, folder):
    """The port of a server on a store of its own."""
    store = folder / "models"
    for name in MODELS:
        shutil.copytree(FIXTURES / name, store / name)
    shutil.copytree(FIXTURES / EXAMPLE[1], store / EXAMPLE[0])
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ORTUS_", "HF_"))}
    environment = kept | {
        "ORTUS_TELEMETRY__LOG_LEVEL": "error",
        # Whatever is made up as a source, nothing is fetched from other machines.
        "ORTUS_HUB__OFFLINE": "true",
        "ORTUS_HUB__RESERVE_MB": "0",
        "HF_HOME": str(folder / "hf"),
    }
    with (folder / "log").open("w+") as log:
        process = subprocess.Popen(
            [os.path.abspath(ortus), "serve", "--models", str(store), "--listen", "127.0.0.1:0"],
            cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True,
        )
        try:
            port = int(re.search(r"http://127\.0\.0\.1:(\d+)", process.stdout.readline()).group(1))
            wait_ready(port)
            yield port
        finally:
            process.send_signal(signal.SIGTERM)
            status = process.wait(60)
            log.seek(0)
            sys.stderr.write(log.read()[-4000:])
        if status != 0:
            sys.exit(f"FAILED the server ended with {status}")


def wait_ready(port):
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)) as connection:
            connection.request("GET", "/readyz")
            if connection.getresponse().status == 200:
                return
        time.sleep(0.05)
    sys.exit("FAILED the server did not become ready")


if __name__ == "__main__":
    main()
