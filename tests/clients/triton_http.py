#!/usr/bin/env python3
"""Runs NVIDIA's unmodified `tritonclient.http` against the server, over the models of tests/fixtures/store.

    triton_http.py [URL] [--ortus BINARY]

Without a URL it starts the server itself (needs ORT_DYLIB_PATH) on a copy of the store; a server at URL must serve such
a copy. Ends with `N passed, M failed`; the exit code is 0 only where none failed.
"""

import argparse
import asyncio
import json
import pathlib
import shutil
import sys
import tempfile
import traceback

import numpy as np
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from _ortus import ROOT, Connection, Server, Tensor, default_binary
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from tritonclient.utils import InferenceServerException

STORE = ROOT / "tests" / "fixtures" / "store"
GOLDEN = ROOT / "tests" / "golden"
# Models whose inputs and outputs are all tensors of types that the client knows.
GOLDEN_MODELS = (
    "mlp", "echo", "alltypes", "strings", "scalar", "multi", "empty", "fixed-batch", "external-data", "no-shape", "slow",
    "nonfinite", "versions", "triton-layout", "hf-snapshot",
)
# The client refuses to send these in JSON, as Triton does to read them.
BINARY_ONLY = ("FP16", "BF16")
TESTS = []


def test(function):
    TESTS.append(function)
    return function


# --- helpers ------------------------------------------------------------------------------------


def put(name, array, datatype=None, binary=True):
    """An input of the client."""
    datatype = datatype or Tensor.of(array).datatype
    given = triton.InferInput(name, list(array.shape), datatype)
    if datatype == "BYTES":
        array = array.astype(object)
    return given.set_data_from_numpy(array, binary_data=binary)


def want(*names, **options):
    return [triton.InferRequestedOutput(name, **options) for name in names]


def golden_cases(model):
    golden = json.loads((GOLDEN / f"{model}.json").read_text())
    for case in golden["cases"]:
        if case.get("fails"):
            continue
        inputs, outputs = ({name: tensor_of(value).array() for name, value in case[key].items()} for key in ("inputs", "outputs"))
        yield case.get("version", ""), inputs, outputs, golden["tolerance"]


def tensor_of(value):
    return Tensor.from_flat(value["datatype"] if "datatype" in value else value["dtype"], value["shape"], value["data"])


def same(got, expected, rtol=0.0, atol=0.0):
    assert got is not None, "the output is missing"
    assert got.shape == expected.shape, f"shape {got.shape}, not {expected.shape}"
    if expected.dtype == object:
        texts = [text.decode() if isinstance(text, bytes) else text for text in got.reshape(-1)]
        assert texts == list(expected.reshape(-1)), f"{texts[:5]}"
        return
    assert got.dtype == expected.dtype, f"dtype {got.dtype}, not {expected.dtype}"
    if expected.dtype.kind in "biu":
        np.testing.assert_array_equal(got, expected)
    else:
        np.testing.assert_allclose(got.astype(np.float64), expected.astype(np.float64), rtol=rtol, atol=atol)


def refused(call, status, *words):
    """Checks that the server refuses with this status and a text that has these words."""
    try:
        call()
    except InferenceServerException as error:
        text = error.message() or ""
        assert error.status() == str(status), f"status {error.status()}, not {status}: {text}"
        for word in words:
            assert word in text, f"{word!r} is not in {text!r}"
        assert "/src/" not in text and str(ROOT) not in text, text
        return
    raise AssertionError(f"was answered, not refused with {status}")


def ones(shape, dtype=np.float32):
    return np.ones(shape, dtype=dtype)


# --- health, metadata, configuration ------------------------------------------------------------


@test
def health(client):
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready("mlp")
    assert client.is_model_ready("versions", "3")
    assert not client.is_model_ready("versions", "77")
    assert not client.is_model_ready("no-such-model")


@test
def server_metadata(client):
    metadata = client.get_server_metadata()
    assert metadata["name"] == "ortus" and metadata["version"]
    for extension in ("binary_tensor_data", "classification", "model_configuration", "model_repository"):
        assert extension in metadata["extensions"], metadata


@test
def model_metadata(client):
    metadata = client.get_model_metadata("mlp")
    assert (metadata["name"], metadata["platform"], metadata["versions"]) == ("mlp", "onnxruntime_onnx", ["1"]), metadata
    assert metadata["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 32]}], metadata
    assert metadata["outputs"] == [{"name": "y", "datatype": "FP32", "shape": [-1, 8]}], metadata
    types = {described["name"]: described["datatype"] for described in client.get_model_metadata("alltypes")["inputs"]}
    assert types["in_bf16"] == "BF16" and types["in_bool"] == "BOOL" and types["in_uint64"] == "UINT64", types
    assert client.get_model_metadata("scalar")["inputs"][0]["shape"] == []
    assert client.get_model_metadata("strings")["inputs"][0]["datatype"] == "BYTES"
    assert client.get_model_metadata("zipmap")["outputs"] == [{"name": "probabilities", "datatype": "BYTES", "shape": [1]}]
    # The configuration leaves the batch out of `dims`, the metadata does not.
    assert client.get_model_metadata("triton-layout")["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]
    assert client.get_model_metadata("versions", "3")["name"] == "versions"
    refused(lambda: client.get_model_metadata("no-such-model"), 404, "no-such-model")
    refused(lambda: client.get_model_metadata("versions", "77"), 404, "77")


@test
def model_config(client):
    config = client.get_model_config("triton-layout")
    assert (config["name"], config["max_batch_size"]) == ("triton-layout", 8), config
    assert config["input"][0]["name"] == "x" and config["input"][0]["data_type"] == "TYPE_FP32", config
    assert [int(dim) for dim in config["input"][0]["dims"]] == [4], config
    assert client.get_model_config("mlp", "1")["name"] == "mlp"
    refused(lambda: client.get_model_config("no-such-model"), 404)


# --- infer --------------------------------------------------------------------------------------


def serve_version(client, model, version):
    """Versions below the highest are served only where the configuration says so."""
    if version and not client.is_model_ready(model, version):
        client.load_model(model, config=json.dumps({"name": model, "version_policy": {"all": {}}}))


def golden_binary(model):
    def run(client):
        for version, inputs, outputs, tolerance in golden_cases(model):
            serve_version(client, model, version)
            given = [put(name, array) for name, array in inputs.items()]
            result = client.infer(model, given, model_version=version)
            for name, expected in outputs.items():
                same(result.as_numpy(name), expected, **tolerance)

    run.__name__ = f"binary tensors: {model}"
    return run


def golden_json(model):
    def run(client):
        for version, inputs, outputs, tolerance in golden_cases(model):
            serve_version(client, model, version)
            if model == "nonfinite":
                # The client writes bare Infinity and NaN, which are no JSON; the server's own answer is read here.
                given = [put(name, array) for name, array in inputs.items()]
            else:
                given = [put(name, array, binary=Tensor.of(array).datatype in BINARY_ONLY) for name, array in inputs.items()]
            names = [name for name, array in outputs.items() if Tensor.of(array).datatype not in BINARY_ONLY]
            result = client.infer(model, given, model_version=version, outputs=want(*names, binary_data=False))
            for name in names:
                assert "data" in result.get_output(name), f"{name} is not JSON"
                if np.asarray(outputs[name]).size == 0:
                    assert tuple(result.get_output(name)["shape"]) == outputs[name].shape
                    continue
                same(result.as_numpy(name), outputs[name], **tolerance)

    run.__name__ = f"JSON tensors: {model}"
    return run


for golden_model in GOLDEN_MODELS:
    TESTS += [golden_binary(golden_model), golden_json(golden_model)]


@test
def mixed_inputs_and_outputs(client):
    a, b = np.array([[1, 2], [3, 4]], np.float32), np.array([5, 6], np.int64)
    given = [put("a", a, binary=True), put("b", b, binary=False)]
    outputs = want("product", binary_data=False) + want("sum", binary_data=True)
    result = client.infer("multi", given, outputs=outputs, request_id="mixed-7")
    response = result.get_response()
    assert [output["name"] for output in response["outputs"]] == ["product", "sum"], response
    assert response["id"] == "mixed-7" and response["model_name"] == "multi" and response["model_version"] == "1", response
    same(result.as_numpy("sum"), (a + b[:, None].astype(np.float32)) * 2)
    same(result.as_numpy("product"), (a.sum(axis=1) * b).astype(np.int64))


@test
def inputs_in_any_order_and_outputs_one_by_one(client):
    a, b = ones([3, 2]), np.arange(3, dtype=np.int64)
    for name in ("sum", "product"):
        result = client.infer("multi", [put("b", b), put("a", a)], outputs=want(name))
        assert [output["name"] for output in result.get_response()["outputs"]] == [name]


@test
def request_bodies_made_by_hand(client):
    body, length = triton.InferenceServerClient.generate_request_body([put("x", ones([2]))])
    status, headers, answer = Connection(client.ortus_url).request(
        "POST", "/v2/models/versions/infer", body, {"Inference-Header-Content-Length": str(length)}
    )
    assert status == 200, answer
    result = triton.InferenceServerClient.parse_response_body(answer, header_length=int(headers["Inference-Header-Content-Length"]))
    same(result.as_numpy("y"), np.array([4, 4], np.float32))


@test
def a_raw_request_is_the_one_input(client):
    raw = {"Inference-Header-Content-Length": "0", "Content-Type": "application/octet-stream"}
    x = np.array([1, 2, 3], np.float32)
    status, headers, answer = Connection(client.ortus_url).request("POST", "/v2/models/versions/infer", x.tobytes(), raw)
    assert status == 200, answer
    at = int(headers["Inference-Header-Content-Length"])
    same(np.frombuffer(answer[at:], np.float32), x + 3)


@test
def classification(client):
    x = np.random.default_rng(0).standard_normal((2, 4)).astype(np.float32)
    scores = client.infer("triton-layout", [put("x", x)]).as_numpy("scores")
    labels = (STORE / "triton-layout" / "labels.txt").read_text().split()
    for binary in (True, False):
        result = client.infer("triton-layout", [put("x", x)], outputs=want("scores", class_count=3, binary_data=binary))
        described = result.get_output("scores")
        assert (described["datatype"], described["shape"]) == ("BYTES", [2, 3]), described
        for row, best in zip(scores, result.as_numpy("scores")):
            order = np.argsort(-row)[:3]
            for index, text in zip(order, best):
                value, got_index, label = (text.decode() if isinstance(text, bytes) else text).split(":")
                assert int(got_index) == index and label == labels[index], text
                assert abs(float(value) - row[index]) < 1e-5, text
    # More classes than there are: all of them.
    result = client.infer("triton-layout", [put("x", x)], outputs=want("scores", class_count=99))
    assert result.get_output("scores")["shape"] == [2, 5]


@test
def compressed_requests(client):
    x = np.random.default_rng(1).standard_normal((64, 32)).astype(np.float32)
    expected = client.infer("mlp", [put("x", x)]).as_numpy("y")
    for algorithm in ("gzip", "deflate"):
        for binary in (True, False):
            result = client.infer("mlp", [put("x", x, binary=binary)], request_compression_algorithm=algorithm)
            same(result.as_numpy("y"), expected, rtol=1e-6, atol=1e-6)
        # The server may ignore this, but must not fail on it.
        same(client.infer("mlp", [put("x", x)], response_compression_algorithm=algorithm).as_numpy("y"), expected, rtol=1e-6, atol=1e-6)


@test
def many_at_a_time(client):
    rows = [np.full((1, 4), index, np.float32) for index in range(64)]
    pending = [client.async_infer("fixed-batch", [put("x", row)], request_id=str(index)) for index, row in enumerate(rows)]
    for index, (row, request) in enumerate(zip(rows, pending)):
        result = request.get_result()
        assert result.get_response()["id"] == str(index)
        same(result.as_numpy("y"), row * 2)


@test
def the_asyncio_client(client):
    async def run():
        async with triton_aio.InferenceServerClient(client.ortus_url.removeprefix("http://")) as other:
            assert await other.is_server_ready()
            results = await asyncio.gather(*(other.infer("versions", [put("x", np.array([index], np.float32))]) for index in range(8)))
            for index, result in enumerate(results):
                same(result.as_numpy("y"), np.array([index + 3], np.float32))

    asyncio.run(run())


@test
def large_tensors(client):
    x = np.random.default_rng(2).standard_normal((16, 150_528)).astype(np.float32)
    same(client.infer("echo", [put("x", x)]).as_numpy("y"), x)
    small = x[:1, :20_000]
    same(client.infer("echo", [put("x", small, binary=False)], outputs=want("y", binary_data=False)).as_numpy("y"), small)


@test
def versions(client):
    client.load_model("versions")
    for version in ("3", ""):
        result = client.infer("versions", [put("x", ones([1]))], model_version=version)
        assert result.get_response()["model_version"] == "3"
        same(result.as_numpy("y"), np.array([4], np.float32))


@test
def parameters(client):
    x = put("x", ones([1]))
    client.infer("versions", [x], priority=1, timeout=20_000_000, parameters={"mine": "yes", "number": 3})
    forever = put("n", np.array(10**12, np.int64))
    refused(lambda: client.infer("slow", [forever], timeout=100_000), 504, "deadline")
    refused(lambda: client.infer("versions", [x], sequence_id=7, sequence_start=True), 400, "sequence")


@test
def statistics(client):
    def stats(model="", version=""):
        return {(entry["name"], entry["version"]): entry for entry in client.get_inference_statistics(model, version)["model_stats"]}

    assert "statistics" in client.get_server_metadata()["extensions"]
    before = stats("mlp", "1")["mlp", "1"]["inference_stats"]
    client.infer("mlp", [put("x", ones([2, 32]))])
    refused(lambda: client.infer("mlp", [put("x", ones([1, 31]))]), 400)
    entry = stats()["mlp", "1"]
    after = entry["inference_stats"]
    assert {name: after[name]["count"] - before[name]["count"] for name in ("success", "fail", "queue")} == {"success": 1, "fail": 1, "queue": 1}, after
    assert after["success"]["ns"] > before["success"]["ns"], after
    assert {"compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss"} <= set(after), after
    assert entry["last_inference"] > 1_600_000_000_000
    assert {"inference_count", "execution_count", "batch_stats", "response_stats", "memory_usage"} <= set(entry), entry
    refused(lambda: client.get_inference_statistics("no-such-model"), 404, "no-such-model")


@test
def metrics_are_what_prometheus_reads(client):
    connection = Connection(client.ortus_url)
    for accept, parse in (("text/plain", parse_text), ("application/openmetrics-text; version=1.0.0", parse_openmetrics)):
        status, headers, body = connection.request("GET", "/metrics", None, {"Accept": accept})
        assert status == 200 and headers["Content-Type"].startswith(accept.split(";")[0]), headers
        families = {family.name: family for family in parse(body.decode())}
        samples = [sample for sample in families["ortus_requests"].samples if sample.name == "ortus_requests_total"]
        assert any(sample.labels == {"model": "mlp", "version": "1", "protocol": "v2", "code": "200"} for sample in samples), samples
        assert families["ortus_request_duration_seconds"].type == "histogram"
        assert all(name.startswith("ortus_") and family.type != "unknown" for name, family in families.items()), families


@test
def other_values_travel_as_json_text(client):
    a, b = np.array([1, 2, 3], np.float32), np.array([[4, 5]], np.float32)
    for binary in (True, False):
        result = client.infer("sequence", [put("a", a), put("b", b)], outputs=want("seq", binary_data=binary))
        (text,) = result.as_numpy("seq")
        assert json.loads(text) == [[1, 2, 3], [[4, 5]]], text
    scores = np.array([[0.25, 0.5, 0.25]], np.float32)
    (text,) = client.infer("zipmap", [put("scores", scores)]).as_numpy("probabilities")
    assert json.loads(text) == [{"setosa": 0.25, "versicolor": 0.5, "virginica": 0.25}], text


# --- errors -------------------------------------------------------------------------------------


@test
def errors(client):
    def infer(model, *inputs, **options):
        return lambda: client.infer(model, list(inputs), **options)

    x = put("x", ones([1, 32]))
    refused(infer("no-such-model", x), 404, "no-such-model")
    refused(infer("mlp", x, model_version="9"), 404, "9")
    refused(infer("mlp", put("z", ones([1, 32]))), 400, "z", "x")
    refused(infer("mlp", put("x", ones([1, 32], np.float64))), 400, "x", "FP32", "FP64")
    refused(infer("mlp", put("x", ones([1, 31]))), 400, "x", "32", "31")
    refused(infer("mlp", put("x", ones([32]))), 400, "x", "rank")
    refused(infer("mlp", put("x", ones([1, 31]), binary=False)), 400, "x")
    refused(infer("multi", put("a", ones([1, 2]))), 400, "b", "INT64")
    refused(infer("mlp", x, x), 400, "x")
    refused(infer("mlp", x, outputs=want("nope")), 400, "nope")
    refused(infer("mlp", x, outputs=want("y", "y")), 400, "y")
    refused(infer("strings", put("x", np.array(["a"], object)), outputs=want("same", class_count=1)), 400, "same")
    refused(infer("fails", put("index", np.array([9], np.int64))), 400)
    # A refusal leaves nothing behind.
    client.infer("mlp", [x])


@test
def lies_about_lengths(client):
    connection = Connection(client.ortus_url)
    head = json.dumps({"inputs": [{"name": "x", "shape": [2], "datatype": "FP32", "parameters": {"binary_data_size": 8}}]}).encode()
    for header, body in (
        (str(len(head)), head + bytes(7)), (str(len(head)), head + bytes(9)), ("99999999999", head + bytes(8)), ("-1", head + bytes(8)),
        ("x", head + bytes(8)), ("", head + bytes(8)), (str(len(head) - 1), head + bytes(8)), (str(len(head) + 20), head + bytes(8)),
    ):
        status, _, answer = connection.request("POST", "/v2/models/versions/infer", body, {"Inference-Header-Content-Length": header})
        assert status == 400 and list(json.loads(answer)) == ["error"], (header, status, answer)


# --- repository ---------------------------------------------------------------------------------


def state_of(client, model):
    """The states of a model's versions."""
    return {entry.get("version"): entry["state"] for entry in client.get_model_repository_index() if entry["name"] == model}


@test
def repository_index(client):
    index = client.get_model_repository_index()
    names = {entry["name"] for entry in index}
    assert {path.name for path in STORE.iterdir() if path.is_dir() and not path.name.startswith('.')} <= names, names
    assert state_of(client, "mlp") == {"1": "READY"}, index
    ready = Connection(client.ortus_url).post("/v2/repository/index", {"ready": True})
    assert ready and all(entry["state"] == "READY" for entry in ready)


@test
def load_and_unload(client):
    client.unload_model("scalar")
    assert not client.is_model_ready("scalar")
    assert set(state_of(client, "scalar").values()) == {"UNAVAILABLE"}, state_of(client, "scalar")
    client.load_model("scalar")
    assert client.is_model_ready("scalar")
    same(client.infer("scalar", [put("x", np.array(1, np.float32))]).as_numpy("y"), np.array(3, np.float32))
    client.unload_model("scalar", unload_dependents=True)
    client.load_model("scalar")
    refused(lambda: client.load_model("no-such-model"), 404, "no-such-model")
    refused(lambda: client.unload_model("no-such-model"), 404, "no-such-model")


@test
def load_with_a_configuration(client):
    config = {"name": "versions", "backend": "onnxruntime", "version_policy": {"all": {}}}
    client.load_model("versions", config=json.dumps(config))
    for version in (1, 2, 3):
        result = client.infer("versions", [put("x", ones([1]))], model_version=str(version))
        same(result.as_numpy("y"), np.array([1 + version], np.float32))
    client.load_model("versions")
    refused(lambda: client.load_model("versions", config="{"), 400)
    refused(lambda: client.load_model("versions", config=json.dumps({"no_such_key": 1})), 400, "no_such_key")
    assert client.is_model_ready("versions", "3")


@test
def load_with_files(client):
    config = json.dumps({"name": "versions", "backend": "onnxruntime"})
    content = (STORE / "versions" / "1" / "model.onnx").read_bytes()
    client.load_model("versions", config=config, files={"file:8/model.onnx": content})
    assert client.is_model_ready("versions", "8") and not client.is_model_ready("versions", "3")
    same(client.infer("versions", [put("x", ones([1]))]).as_numpy("y"), np.array([2], np.float32))
    refused(lambda: client.load_model("versions", files={"file:1/model.onnx": content}), 400, "config")
    for path in ("file:../model.onnx", "file:1/../../model.onnx", "file:/model.onnx"):
        refused(lambda: client.load_model("versions", config=config, files={path: content}), 400)
    refused(lambda: client.load_model("versions", config=config, files={"file:9/model.onnx": b"no graph"}), 400)
    # What was loaded before goes on serving.
    same(client.infer("versions", [put("x", ones([1]))]).as_numpy("y"), np.array([2], np.float32))
    client.load_model("versions")
    same(client.infer("versions", [put("x", ones([1]))]).as_numpy("y"), np.array([4], np.float32))


# --- running ------------------------------------------------------------------------------------


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("url", nargs="?", help="a running server, such as http://127.0.0.1:8080")
    arguments.add_argument("--ortus", default=default_binary(), help="the server's binary (default: $ORTUS, or the debug build)")
    arguments = arguments.parse_args()
    if arguments.url:
        sys.exit(run(arguments.url))
    with tempfile.TemporaryDirectory() as folder:
        store = pathlib.Path(folder) / "store"
        shutil.copytree(STORE, store)
        with Server(arguments.ortus, store) as server:
            code = run(server.url)
    sys.exit(code)


def run(url):
    failed = 0
    with triton.InferenceServerClient(url.removeprefix("http://").rstrip("/"), concurrency=8) as client:
        client.ortus_url = url
        for function in TESTS:
            name = function.__name__.replace("_", " ")
            try:
                function(client)
                print(f"ok      {name}")
            except Exception:
                failed += 1
                print(f"FAILED  {name}\n{traceback.format_exc()}")
    print(f"{len(TESTS) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    main()
