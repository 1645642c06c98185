#!/usr/bin/env python3
"""Checks on a GPU machine that models run on the GPU, right, fast, and without keeping its memory.

    gpu_check.py ORTUS [--device cuda|cpu] [--part NAME …] [--models DIR] [--seconds S]

Parts, all by default: `serves` (the embedded model answers on the device), `answers` (every test model gives what the CPU gives,
within tolerance), `throughput` (HTTP beside a bare session in the same run, by batch and precision), `graphs` (what recorded runs gain),
`unload` (the GPU's memory comes back), `memory` (runs that do not fit are halved and answered), `half` (what use_fp16
gains on CUDA), `engines` (TensorRT: a cold build in the background, the swap, a warm start, with fp16 too), `metrics` (the GPUs in /metrics).
Each prints PASS, FAIL or SKIP with its figures; the exit code is 1 where one failed.

`--device cpu` runs the same on the CPU, so that this script can be tried where there is no GPU; its figures then say nothing of one.
Standard library only; ORT_DYLIB_PATH and LD_LIBRARY_PATH must point at the GPU build (`source lib-cuda/env.sh`). `--models` names a folder of
models for `throughput`, `memory` and `half`, such as that of `make gpu-models`; an fp16 graph has `fp16` in its name.
"""

import argparse
import contextlib
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent
START_SECONDS = 180
ENGINE_SECONDS = 900
BATCHES = [1, 8, 32, 128]
# Of the largest value of an output: TF32 keeps ten bits of a factor's fraction.
TOLERANCE = {"fp32": 1e-3, "tf32": 2e-2}


class CheckError(Exception):
    """What was not as it should be, in one line."""


class Skip(Exception):
    """Why a part says nothing here."""


def main():
    parser = argparse.ArgumentParser(description="Check on a GPU machine that models run on the GPU.")
    parser.add_argument("ortus", help="the server's binary")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--part", action="append", choices=list(PARTS), help="only this part; may be repeated")
    parser.add_argument("--models", type=pathlib.Path, default=ROOT / "target" / "gpu-models")
    parser.add_argument("--store", type=pathlib.Path, help="the models that `answers` compares [default: tests/fixtures/store]")
    parser.add_argument("--seconds", type=float, default=2.0, help="length of one measurement")
    parser.add_argument("--batch", type=int, action="append", help=f"rows of a request [default: {BATCHES}]")
    options = parser.parse_args()
    options.ortus = os.path.abspath(options.ortus)
    options.batch = options.batch or BATCHES
    failed = 0
    for name in options.part or list(PARTS):
        try:
            outcome, lines = "PASS", PARTS[name](options)
        except Skip as reason:
            outcome, lines = "SKIP", [str(reason)]
        except CheckError as error:
            outcome, lines = "FAIL", [str(error)]
        failed += outcome == "FAIL"
        print(f"{outcome} {name} ({options.device})", *(f"     {line}" for line in lines), sep="\n", flush=True)
    sys.exit(1 if failed else 0)


def environment(options, **settings):
    result = dict(os.environ, ORTUS_DEVICE__DEVICE_TYPE=options.device, ORTUS_DEVICE__ALLOW_FALLBACK="false")
    result.update({f"ORTUS_{key}": value for key, value in settings.items()})
    return result


def device(options):
    return "cuda:0" if options.device == "cuda" else "cpu"


def fixtures():
    """The models of the repository whose inputs can be made up from what the graph declares."""
    return sorted(path.parent.parent for path in (ROOT / "tests" / "fixtures" / "store").glob("*/1/model.onnx"))


# The parts.

def serves(options):
    with server(options, ROOT / "models") as address:
        body = (ROOT / "models" / "digits" / "samples" / "seven.png").read_bytes()
        best = json.loads(call(address, "/v1/models/digits/predict", body, "image/png"))["predictions"][0]
        # One item may be answered by its list of classes or by the best class alone.
        best = best[0] if isinstance(best, list) else best
        if best["label"] != "7" or best["score"] < 0.9:
            raise CheckError(f"seven.png should be 7 with a score above 0.9, got {best}")
        model = on_device(address, "digits", options)
        return [f"7 at {best['score']:.4f} on {model['device']}; nodes {model['execution']['nodes']}"]


def answers(options):
    """Every model's answers to the same inputs, on the CPU and on the device, in fp32 and in TF32."""
    lines, wrong, not_on_device = [], [], 0
    with tempfile.TemporaryDirectory() as folder:
        store = pathlib.Path(folder)
        models = fixtures() if options.store is None else sorted(path for path in options.store.iterdir() if path.is_dir())
        for model in [*models, ROOT / "models" / "digits"]:
            shutil.copytree(model, store / model.name, dirs_exist_ok=True)
        golden = argparse.Namespace(**{**vars(options), "device": "cpu"})
        with server(golden, store, OPTIMIZATION__OPTIMIZATION_LEVEL="balanced") as address:
            expected = {name: infer_somehow(address, name) for name in ready(address)}
        expected = {name: found for name, found in expected.items() if found is not None}
        for precision, level in (("fp32", "balanced"), ("tf32", "aggressive")):
            worst, compared = ("", 0.0), 0
            with server(options, store, OPTIMIZATION__OPTIMIZATION_LEVEL=level) as address:
                names = ready(address)
                for name, (free, outputs) in expected.items():
                    if name not in names:
                        wrong.append(f"{name} does not load on {device(options)}")
                        continue
                    difference = drift(outputs, infer(address, name, free))
                    compared += 1
                    worst = max(worst, (name, difference), key=lambda pair: pair[1])
                    if not difference <= TOLERANCE[precision]:
                        wrong.append(f"{name} in {precision} differs by {difference:.2e} of its largest value")
                    nodes = json.loads(call(address, f"/v1/models/{name}"))["execution"]["nodes"]
                    not_on_device += options.device == "cuda" and not nodes.get("CUDAExecutionProvider")
            lines.append(f"{precision}: {compared} models, largest difference {worst[1]:.2e} ({worst[0]})")
    if not compared:
        raise CheckError("no model was compared")
    if wrong:
        raise CheckError("; ".join(wrong[:10]))
    if not_on_device:
        lines.append(f"{not_on_device} have no node on the GPU, such as graphs of integers and strings alone")
    return lines


def throughput(options):
    """HTTP beside a bare session, by turns in one run of `ortus bench`."""
    models = [path for path in sorted(options.models.glob("*")) if (path / "1" / "model.onnx").is_file()]
    models = [path for path in models if "resnet" in path.name and "fixed" not in path.name] or models
    if not models:
        raise Skip(f"{options.models} has no models; make gpu-models")
    lines, least = [], None
    for model in models:
        precisions = [("fp16", "aggressive")] if "fp16" in model.name else [("fp32", "balanced"), ("tf32", "aggressive")]
        for precision, level in precisions if options.device == "cuda" else precisions[:1]:
            for batch in options.batch:
                # Enough of them to keep the GPU at work.
                clients = "8,32" if batch < 32 else "4,8"
                report = bench(options, model, batch, clients, OPTIMIZATION__OPTIMIZATION_LEVEL=level,
                               BATCH__MAX_BATCH_SIZE=str(max(batch, 32)), SERVER__MAX_BODY_BYTES=str(1 << 28))
                ratio, rate, bare = best_over_http(report)
                engine = max(entry["requests_per_second"] for entry in report["in_process"])
                lines.append(f"{model.name} {precision} batch {batch}: {rate * batch:.0f} rows/s over HTTP, {engine * batch:.0f} in process, "
                             f"{bare * batch:.0f} bare; ratio {ratio:.2f}, {report['bare_best']['requests_per_second'] * batch:.0f} by the best bare batch {report['bare_best']['batch']}")
                least = ratio if least is None else min(least, ratio)
    lines.append(f"least ratio {least:.2f}; the target is 0.9 at saturation")
    if options.device == "cuda" and least < 0.9:
        raise CheckError("; ".join(lines))
    return lines


def graphs(options):
    """Runs of a fixed shape, recorded and not."""
    fixed = options.models / "resnet50-fixed"
    if not (fixed / "1" / "model.onnx").is_file():
        raise Skip(f"{options.models} has no resnet50-fixed; make gpu-models")
    found = {}
    for mode in ("default", "reduce-overhead", "default", "reduce-overhead"):
        report = bench(options, fixed, 1, DEVICE__COMPILE_MODE=mode)
        found.setdefault(mode, []).append(best_over_http(report)[2])
    plain, recorded = max(found["default"]), max(found["reduce-overhead"])
    return [f"bare runs a second: {plain:.0f} plain, {recorded:.0f} recorded, {recorded / plain:.2f} times (best of two by turns)"]


def unload(options):
    """The device's memory before a load, with the model, and after it is gone."""
    if options.device == "cuda" and gpu_memory() is None:
        raise Skip("nvidia-smi does not tell the GPU's memory")
    read = gpu_memory if options.device == "cuda" else lambda: None
    with server(options, ROOT / "models", STORE__AUTOLOAD="false") as address:
        resident = lambda: json.loads(call(address, "/v1/system"))["memory"]["resident_mb"]
        figure = lambda: read() if options.device == "cuda" else resident()
        # The first load brings CUDA's own context, which stays with the process.
        call(address, "/v1/models/digits/load", b"")
        call(address, "/v1/models/digits/unload", b"")
        before = figure()
        for _ in range(5):
            call(address, "/v1/models/digits/load", b"")
            held = figure()
            call(address, "/v1/models/digits/unload", b"")
        after = figure()
    if after > before + 64:
        raise CheckError(f"{before:.0f} MiB before, {held:.0f} loaded, {after:.0f} after five loads and unloads")
    return [f"{before:.0f} MiB before, {held:.0f} loaded, {after:.0f} after five loads and unloads"]


def memory(options):
    """Requests that a small share of the GPU has no memory for are answered all the same."""
    if options.device == "cpu":
        raise Skip("a CPU has no limit of its own; the unit tests named F85 do this with a device that is made up")
    models = [path for path in sorted(options.models.glob("*resnet*")) if "fixed" not in path.name and (path / "1" / "model.onnx").is_file()]
    if not models:
        raise Skip(f"{options.models} has no resnet; make gpu-models")
    settings = dict(DEVICE__MEMORY_FRACTION="0.01", BATCH__MAX_BATCH_SIZE="384", PERFORMANCE__WARMUP_ITERATIONS="1")
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(models[0], pathlib.Path(folder) / "resnet")
        with server(options, pathlib.Path(folder), **settings) as address:
            warmed = json.loads(call(address, "/v1/models/resnet/warmup", b'{"iterations":1,"batch_sizes":[384]}', "application/json"))
            execution = json.loads(call(address, "/v1/models/resnet"))["execution"]
            small = json.loads(call(address, "/v1/models/resnet/warmup", b'{"iterations":1}', "application/json"))
    if not execution["max_rows"]:
        raise CheckError(f"384 rows fitted into a hundredth of the GPU, or nothing was learnt: {execution}")
    return [f"384 rows in {warmed['batches'][0]['mean_ms']:.0f} ms, in runs of {execution['max_rows']}; then one row in {small['batches'][0]['mean_ms']:.1f} ms"]


def half(options):
    """What becomes of use_fp16 on CUDA: tried at the load, served where it is faster, and near to fp32 then."""
    if options.device == "cpu":
        raise Skip("use_fp16 has no effect on a CPU; the unit tests of models/tests/half.rs do this with a GPU that is made up")
    models = [path for path in sorted(options.models.glob("*")) if (path / "1" / "model.onnx").is_file()]
    with tempfile.TemporaryDirectory() as folder:
        store = pathlib.Path(folder)
        shutil.copytree(ROOT / "models" / "digits", store / "digits")
        for model in models[:5]:
            shutil.copytree(model, store / model.name)
        with server(options, store) as address:
            expected = {name: infer(address, name) for name in ready(address)}
        lines = []
        with server(options, store, DEVICE__USE_FP16="true") as address:
            for name in sorted(ready(address)):
                tried = json.loads(call(address, f"/v1/models/{name}"))["optimization"].get("fp16")
                if not tried:
                    lines.append(f"{name}: not tried, its graph is not of fp32")
                    continue
                outputs = expected.get(name)
                difference = drift(outputs, infer(address, name)) if outputs is not None else 0.0
                lines.append(f"{name}: {'serves' if tried['adopted'] else 'does not serve'}, {tried['reason']}; differs by {difference:.2e}")
                if tried["adopted"] and not difference <= 5 * TOLERANCE["tf32"]:
                    raise CheckError(f"{name} in fp16 differs by {difference:.2e} of its largest value")
    if not any("serve" in line for line in lines):
        raise CheckError("nothing was tried: " + "; ".join(lines))
    return lines


def engines(options):
    """A model serves while TensorRT builds its engine, is swapped without a request lost, and starts with it the next time."""
    if options.device == "cpu":
        raise Skip("a CPU has no TensorRT; the unit tests of models/tests/engines.rs do this with a machine that is made up")
    with server(options, ROOT / "models") as address:
        providers = json.loads(call(address, "/v1/system"))["execution_providers"]
    reason = next((it.get("reason") for it in providers if it["name"] == "TensorrtExecutionProvider"), "it is not in this build")
    if reason:
        raise Skip(f"TensorRT does not work here: {reason}")
    lines = []
    for precision, fp16 in (("fp32", "false"), ("fp16", "true")):
        settings = dict(DEVICE__DEVICE_TYPE="tensorrt", DEVICE__USE_FP16=fp16)
        with tempfile.TemporaryDirectory() as folder:
            store = pathlib.Path(folder)
            shutil.copytree(ROOT / "models" / "digits", store / "digits")
            with server(options, store, **settings) as address:
                state = lambda: json.loads(call(address, "/v1/models/digits"))["execution"]
                first, answered = state(), 0
                if first["engine"]["state"] not in ("building", "ready"):
                    raise CheckError(f"the engine should be built in the background, is {first['engine']}")
                expected, deadline = infer(address, "digits"), time.monotonic() + ENGINE_SECONDS
                # Each raises where it is not answered.
                while (now := state())["engine"]["state"] == "building":
                    infer(address, "digits")
                    answered += 1
                    if time.monotonic() > deadline:
                        raise CheckError(f"no engine within {ENGINE_SECONDS} s: {now['engine']}")
                if now["engine"]["state"] != "ready" or not now["nodes"].get("TensorrtExecutionProvider"):
                    raise CheckError(f"TensorRT should serve by now: {now}")
                difference = drift(expected, infer(address, "digits"))
                if not difference <= TOLERANCE["tf32"]:
                    raise CheckError(f"with an engine in {precision} answers differ by {difference:.2e} of the largest value")
                built = now["engine"]["seconds"]
            started = time.monotonic()
            with server(options, store, **settings) as address:
                warm, took = json.loads(call(address, "/v1/models/digits"))["execution"], time.monotonic() - started
            if warm["engine"]["state"] != "ready" or warm["engine"]["since"] != now["engine"]["since"]:
                raise CheckError(f"the next start should use the engine that was built at {now['engine']['since']}: {warm['engine']}")
            lines.append(f"{precision}: built in {built:.1f} s while {answered} requests were answered, difference {difference:.2e}; "
                         f"the next start took {took:.1f} s with it")
    return lines


def metrics(options):
    with server(options, ROOT / "models") as address:
        text = call(address, "/metrics").decode()
        system = json.loads(call(address, "/v1/system"))
    nodes = [line for line in text.splitlines() if line.startswith("ortus_model_nodes{")]
    if not nodes:
        raise CheckError("/metrics has no ortus_model_nodes")
    wanted = ["ortus_gpu_memory_used_bytes{", "ortus_gpu_memory_total_bytes{"]
    found = [line for line in text.splitlines() if any(line.startswith(start) for start in wanted)]
    if options.device == "cuda" and len(found) != 2 * len(system["devices"]) or options.device == "cuda" and not found:
        raise CheckError(f"/metrics should have two series for each of the GPUs {system['devices']}, has {found}")
    return [*nodes, *found, *(f"{provider['name']}: {provider.get('reason', 'available')}" for provider in system["execution_providers"])]


PARTS = {part.__name__: part for part in (serves, answers, throughput, graphs, unload, memory, half, engines, metrics)}


# What they need.

@contextlib.contextmanager
def server(options, models, **settings):
    """The address of a server over a folder of models; broken ones are its own business."""
    address = f"127.0.0.1:{free_port()}"
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        process = subprocess.Popen(
            [options.ortus, "serve", "--models", str(models), "--listen", address, "--grpc", "off"],
            env=environment(options, **settings), stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT,
        )
        try:
            wait_until_ready(process, address)
            yield address
        except CheckError:
            log.seek(0)
            sys.stderr.write(log.read()[-8000:])
            raise
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def wait_until_ready(process, address):
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise CheckError(f"ortus serve exited with {process.returncode} before it was ready")
        try:
            call(address, "/readyz")
            return
        except CheckError:
            time.sleep(0.2)
    raise CheckError(f"ortus serve was not ready within {START_SECONDS} s")


def on_device(address, name, options):
    model = json.loads(call(address, f"/v1/models/{name}"))
    if model.get("device") != device(options):
        raise CheckError(f"{name} should run on {device(options)}, runs on {model.get('device')!r}: {model.get('execution')}")
    return model


def ready(address):
    models = json.loads(call(address, "/v1/models"))["models"]
    return {model["name"] for model in models if model["state"] == "ready"}


def infer_somehow(address, name):
    """What it is given for free sizes, and its outputs; `None` where nothing that is tried here suits it."""
    for free in (3, 64, 16, 4000):
        if outputs := infer(address, name, free):
            return free, outputs
    return None


def infer(address, name, free=3):
    """Outputs for inputs of two rows made of the declared shapes, with `free` for other sizes that are free; `None` where the model
    takes something else.

    Integers are 0 and 1, which any vocabulary, mask and table has."""
    model = json.loads(call(address, f"/v2/models/{name}"))
    inputs = []
    for number, spec in enumerate(model["inputs"]):
        shape = [(2 if place == 0 else free) if size < 0 else size for place, size in enumerate(spec["shape"])]
        count = 1
        for size in shape:
            count *= size
        if count > 1_000_000:
            return None
        # The same on each side, of both signs, without a pattern that an operator could cancel.
        reals = [((index * 7919 + number * 31) % 2003) / 1001.5 - 1 for index in range(count)]
        if spec["datatype"] in ("FP16", "FP32", "FP64"):
            data = reals
        elif spec["datatype"] in ("BOOL", "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64"):
            data = [value > 0 if spec["datatype"] == "BOOL" else int(value > 0) for value in reals]
        else:
            return None
        inputs.append({"name": spec["name"], "datatype": spec["datatype"], "shape": shape, "data": data})
    try:
        body = json.dumps({"inputs": inputs}).encode()
        answer = json.loads(call(address, f"/v2/models/{name}/infer", body, "application/json"))
    except CheckError:
        return None
    return {output["name"]: output["data"] for output in answer["outputs"] if output["datatype"].startswith("FP")}


def drift(expected, found):
    """The largest difference, over the largest value of the same output."""
    if found is None or set(expected) != set(found):
        return float("inf")
    worst = 0.0
    for name, values in expected.items():
        numbers = [(float(a), float(b)) for a, b in zip(values, found[name], strict=True)]
        largest = max((abs(a) for a, _ in numbers if abs(a) < float("inf")), default=0.0) or 1.0
        worst = max([worst, *(abs(a - b) / largest for a, b in numbers if a != b and not (a != a and b != b))])
    return worst


def bench(options, model, batch, concurrency="1,8", **settings):
    outcome = subprocess.run(
        [options.ortus, "bench", str(model), "--batch", str(batch), "--concurrency", concurrency, "--seconds", str(options.seconds), "--rounds", "2", "--json"],
        env=environment(options, **settings), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=1800,
    )
    if outcome.returncode != 0:
        raise CheckError(f"ortus bench {model.name} --batch {batch}: {(outcome.stderr.strip().splitlines() or ['no message'])[-1]}")
    report = json.loads(outcome.stdout)
    if report["device"] != device(options):
        raise CheckError(f"{model.name} was measured on {report['device']}, not on {device(options)}")
    return report


def best_over_http(report):
    """The best rate over HTTP beside the bare loop of as many rows: the ratio, the rate, and the bare one's."""
    rows = report["rows_per_request"]
    bare = next(entry["requests_per_second"] for entry in report["bare"] if entry["batch"] == rows)
    rate = max(entry["requests_per_second"] for entry in report["http"])
    return rate / bare, rate, bare


def gpu_memory():
    """MiB in use on the first GPU, by the driver's own tool; `None` where it is not there."""
    try:
        outcome = subprocess.run(
            ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "--id=0"],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, timeout=30,
        )
        return float(outcome.stdout.strip())
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return None


def call(address, path, body=None, content_type=None):
    request = urllib.request.Request(f"http://{address}{path}", data=body)
    if content_type:
        request.add_header("Content-Type", content_type)
    # Proxy settings of the machine are not for its own loopback.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=120) as response:
            return response.read()
    except urllib.error.HTTPError as error:
        raise CheckError(f"{path} answered {error.code}: {error.read(500).decode(errors='replace')}") from error
    except OSError as error:
        raise CheckError(f"{path}: {error}") from error


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


if __name__ == "__main__":
    main()
