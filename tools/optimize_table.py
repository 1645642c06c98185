#!/usr/bin/env python3
"""Measures what optimising brings to three models, and what a saved state brings to loads, as two Markdown tables.

    tools/optimize_table.py target/release/ortus target/bench-models [--seconds 6] [--models mlp,encoder,resnet18]
                            [--loads encoder,resnet18,big] [--starts 5] [--only variants|loads]

Each variant takes turns with the original for `--seconds`, so its ratio is of one run; `tuned` is the tuner's choice beside the
best batch of what serves without tuning, of one search. A cold load has no saved state, a warm one has; medians of `--starts`
starts of a server. Run it on an idle machine; with the defaults it takes under 8 minutes. Works on copies of the models.
"""

import argparse
import json
import os
import pathlib
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent
VARIANTS = ["--fp16", "--int8", "--int8-static", "--int4"]
# A server that is not ready by then will not be.
READY_S = 60


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ortus", type=pathlib.Path)
    parser.add_argument("models", type=pathlib.Path)
    parser.add_argument("--seconds", type=float, default=6)
    parser.add_argument("--models", dest="names", default="mlp,encoder,resnet18")
    parser.add_argument("--loads", default="encoder,resnet18,big")
    parser.add_argument("--starts", type=int, default=5)
    parser.add_argument("--only", choices=["variants", "loads"])
    arguments = parser.parse_args()
    begun = time.monotonic()
    if arguments.only != "loads":
        variants(arguments)
    if arguments.only != "variants":
        loads(arguments)
    print(f"\n{time.monotonic() - begun:.0f} s in all")


def folder_of(arguments, name):
    places = [arguments.models / name, ROOT / "tests/fixtures/store" / name]
    found = next((place for place in places if place.is_dir()), None)
    if found is None:
        sys.exit(f"there is no model {name} in {arguments.models}; run make bench-models")
    return found


def variants(arguments):
    print("| model | form | ms, 1 row | ms, most rows | times as fast | MB | lowest cosine | verdict |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: | --- |")
    for name in arguments.names.split(","):
        with tempfile.TemporaryDirectory() as store:
            shutil.copytree(folder_of(arguments, name), pathlib.Path(store) / name)
            command = [arguments.ortus, "optimize", name, "--models", store, *VARIANTS, "--tune", "--json"]
            command += ["--seconds", str(arguments.seconds)]
            done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            print(f"| {name} | | | | | | | failed: {done.stderr.strip().splitlines()[-1]} |", flush=True)
            continue
        report = json.loads(done.stdout)
        first = True
        for variant in report["variants"]:
            figures = variant if "bytes" in variant else None
            if first and figures is not None:
                print(f"| {name} | original | | | 1.00 | {figures['bytes']['original'] / 1e6:.3g} | 1.0000 | |")
                first = False
            print(row("" if not first else name, variant, figures))
        tuned = (report.get("tuned") or {}).get("found")
        if tuned is None:
            print(f"| | tuned | | | | | | {(report.get('tuned') or {}).get('problem', 'not tuned')} |", flush=True)
            continue
        chosen = tuned["chosen"]
        settings = f"{chosen['instances']} × {chosen['intra_threads']} threads, batch {chosen['batch_size']}, "
        settings += f"{chosen['optimization_level']}, arena {chosen['memory_arena']}, pattern {chosen['memory_pattern']}"
        print(
            f"| | tuned | | {chosen['run_ms']:.3f} | {tuned['times_as_good']:.2f} (rows/s) | | 1.0000 | "
            f"{chosen['rows_per_second']:.1f} rows/s in {tuned['seconds']:.0f} s: {settings} |",
            flush=True,
        )


def row(name, variant, figures):
    if figures is None:
        return f"| {name} | {variant['precision']} | | | | | | {variant['reason']} |"
    times = figures["times"]
    pair = lambda at: f"{at['original_ms']:.3f} → {at['variant_ms']:.3f}"
    most = f"{pair(times[-1])} ({times[-1]['rows']})" if len(times) > 1 else ""
    cosine = (figures.get("drift") or {}).get("cosine")
    return (
        f"| {name} | {variant['precision']} | {pair(times[0])} | {most} | {figures['speed']:.2f} | "
        f"{figures['bytes']['variant'] / 1e6:.3g} | {'' if cosine is None else f'{cosine:.4f}'} | {variant['verdict']} |"
    )


def loads(arguments):
    print("\n| model | session cold ms | session warm ms | ratio | load cold ms | load warm ms | ratio | saved MB |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name in arguments.loads.split(","):
        with tempfile.TemporaryDirectory() as store:
            store = pathlib.Path(store)
            shutil.copytree(folder_of(arguments, name), store / name)
            cold, warm = [], []
            for _ in range(arguments.starts):
                shutil.rmtree(store / ".ortus/optimized", ignore_errors=True)
                cold.append(start(arguments.ortus, store, name))
                warm.append(start(arguments.ortus, store, name))
        if any(one["state"] != "reused" or not one["saved_bytes"] for one, _ in warm):
            print(f"| {name} | | | | | | | nothing saved: {warm[-1][0].get('reason')} |", flush=True)
            continue
        median = statistics.median
        session_cold = median(one["cold_load_ms"] for one, _ in cold)
        session_warm = median(one["warm_load_ms"] for one, _ in warm)
        all_cold, all_warm = median(load for _, load in cold), median(load for _, load in warm)
        print(
            f"| {name} | {session_cold:.1f} | {session_warm:.1f} | {session_cold / session_warm:.2f} | {all_cold:.0f} | "
            f"{all_warm:.0f} | {all_cold / all_warm:.2f} | {warm[-1][0]['saved_bytes'] / 1e6:.1f} |",
            flush=True,
        )


def start(ortus, store, name):
    """Starts a server, and gives what the model's load says of its optimised graph, and the milliseconds of the whole load."""
    command = [ortus, "serve", "--models", store, "--listen", "127.0.0.1:0", "--grpc", "off"]
    environment = {**os.environ, "ORTUS_TELEMETRY__LOG_FORMAT": "json", "ORTUS_TELEMETRY__LOG_LEVEL": "info"}
    log = tempfile.TemporaryFile("w+", errors="replace")
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment)
    try:
        address = re.search(r"http://127\.0\.0\.1:\d+", server.stdout.readline())
        until = time.monotonic() + READY_S
        while address and time.monotonic() < until and server.poll() is None:
            is_it = lambda line: line.get("message") == "a model is ready" and line.get("model") == name
            ready = next(filter(is_it, records(log)), None)
            if ready:
                with urllib.request.urlopen(f"{address[0]}/v1/models/{name}") as answer:
                    return json.load(answer)["optimization"], float(ready["seconds"]) * 1e3
            time.sleep(0.05)
        log.seek(0)
        sys.exit(f"{name} was not loaded:\n{log.read()[-2000:]}")
    finally:
        server.terminate()
        server.wait()


def records(log):
    log.seek(0)
    lines = []
    for line in log.read().splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        lines.append({**record, **record.get("fields", {})})
    return lines


if __name__ == "__main__":
    main()
