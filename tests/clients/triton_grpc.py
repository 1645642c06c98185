#!/usr/bin/env python3
"""Runs NVIDIA's unmodified `tritonclient.grpc` against the server, over the models of tests/fixtures/store.

    triton_grpc.py [--ortus BINARY]

Starts the server itself (needs ORT_DYLIB_PATH) on a copy of the store. Ends with `N passed, M failed`; the exit code is 0 only
where none failed.
"""

import argparse
import asyncio
import json
import pathlib
import queue
import shutil
import sys
import tempfile
import traceback

import grpc
import numpy as np
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from _ortus import Server, Tensor, default_binary
from google.protobuf import descriptor_pb2
from triton_http import GOLDEN_MODELS, STORE, golden_cases, ones, same
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

TESTS = []


def test(function):
    TESTS.append(function)
    return function


def put(name, array, datatype=None):
    datatype = datatype or Tensor.of(array).datatype
    array = array.astype(object) if datatype == "BYTES" else array
    return triton.InferInput(name, list(array.shape), datatype).set_data_from_numpy(array)


def want(*names, **options):
    return [triton.InferRequestedOutput(name, **options) for name in names]


def refused(call, code, *words):
    """Checks that the server refuses with this code and a text that has these words."""
    try:
        call()
    except InferenceServerException as error:
        text = error.message() or ""
        assert error.status() == f"StatusCode.{code}", f"{error.status()}, not {code}: {text}"
        for word in words:
            assert word in text, f"{word!r} is not in {text!r}"
        return
    raise AssertionError(f"was answered, not refused with {code}")


@test
def health_and_metadata(client):
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready("mlp") and client.is_model_ready("versions", "3")
    assert not client.is_model_ready("versions", "77") and not client.is_model_ready("no-such-model")
    metadata = client.get_server_metadata(as_json=True)
    assert metadata["name"] == "ortus" and "statistics" in metadata["extensions"], metadata
    model = client.get_model_metadata("mlp")
    assert (model.name, model.platform, list(model.versions)) == ("mlp", "onnxruntime_onnx", ["1"])
    assert (model.inputs[0].name, model.inputs[0].datatype, list(model.inputs[0].shape)) == ("x", "FP32", [-1, 32])
    refused(lambda: client.get_model_metadata("no-such-model"), "NOT_FOUND", "no-such-model")


def length_delimited(message):
    """The fields of a protobuf message that have a length: (number, bytes)."""
    at = 0

    def varint():
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at, value, shift = at + 1, value | (byte & 0x7F) << shift, shift + 7
            if byte < 0x80:
                return value

    while at < len(message):
        key = varint()
        size = varint()
        if key & 7 == 2:
            yield key >> 3, message[at : at + size]
            at += size


def described(message):
    """A message's fields, and those of the messages in it: what is on the wire, without the order of the file."""
    fields = {(field.number, field.name, field.type, field.label, field.type_name) for field in message.field}
    return {message.name: fields} | {f"{message.name}.{name}": value for each in message.nested_type for name, value in described(each).items()}


@test
def reflection_gives_the_schema_that_the_client_was_made_of(client):
    symbol = b"inference.GRPCInferenceService"
    request = b"\x22" + bytes([len(symbol)]) + symbol
    with grpc.insecure_channel(client.ortus_grpc) as channel:
        ask = channel.stream_stream("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo")
        (answer,) = ask(iter([request]), timeout=30)
    (files,) = (value for number, value in length_delimited(answer) if number == 4)
    (file,) = (descriptor_pb2.FileDescriptorProto.FromString(value) for number, value in length_delimited(files) if number == 1)
    theirs = descriptor_pb2.FileDescriptorProto()
    service_pb2.DESCRIPTOR.CopyToProto(theirs)
    assert (file.package, file.syntax) == (theirs.package, theirs.syntax)
    calls = lambda of: {(call.name, call.input_type, call.output_type, call.client_streaming, call.server_streaming) for call in of.service[0].method}
    assert calls(file) == calls(theirs), calls(file) ^ calls(theirs)
    messages = lambda of: {name: fields for message in of.message_type for name, fields in described(message).items()}
    ours, expected = messages(file), messages(theirs)
    assert ours == expected, {name: (ours.get(name), expected.get(name)) for name in ours | expected if ours.get(name) != expected.get(name)}


@test
def model_config(client):
    config = client.get_model_config("triton-layout").config
    assert (config.name, config.max_batch_size, config.input[0].name, list(config.input[0].dims)) == ("triton-layout", 8, "x", [4])
    assert client.get_model_config("mlp", as_json=True)["config"]["input"][0]["data_type"] == "TYPE_FP32"
    refused(lambda: client.get_model_config("no-such-model"), "NOT_FOUND")


def serve_version(client, model, version):
    """Versions below the highest are served only where the configuration says so."""
    if version and not client.is_model_ready(model, version):
        client.load_model(model, config=json.dumps({"name": model, "version_policy": {"all": {}}}))


@test
def golden_answers(client):
    count = 0
    for model in GOLDEN_MODELS:
        for version, inputs, outputs, tolerance in golden_cases(model):
            serve_version(client, model, version)
            given = [put(name, array) for name, array in inputs.items()]
            result = client.infer(model, given, model_version=version, request_id=f"{model}-{count}")
            assert result.get_response().id == f"{model}-{count}"
            for name, expected in outputs.items():
                same(result.as_numpy(name), expected, **tolerance)
            count += 1
    assert count > 20, count


@test
def outputs_that_are_asked_for(client):
    a, b = ones([3, 2]), np.arange(3, dtype=np.int64)
    for names in (("product", "sum"), ("sum",), ("product",)):
        result = client.infer("multi", [put("b", b), put("a", a)], outputs=want(*names))
        assert [output.name for output in result.get_response().outputs] == list(names)


@test
def texts(client):
    text = np.array(["héllo", "", "日本"], object)
    names = [given.name for given in client.get_model_metadata("strings").inputs]
    result = client.infer("strings", [put(name, text) for name in names])
    found = [result.as_numpy(output.name) for output in result.get_response().outputs]
    assert any([value.decode() for value in array.reshape(-1)] == list(text) for array in found if array.dtype == object), found


@test
def classification(client):
    x = np.random.default_rng(0).standard_normal((2, 4)).astype(np.float32)
    scores = client.infer("triton-layout", [put("x", x)]).as_numpy("scores")
    labels = (STORE / "triton-layout" / "labels.txt").read_text().split()
    best = client.infer("triton-layout", [put("x", x)], outputs=want("scores", class_count=3)).as_numpy("scores")
    assert best.shape == (2, 3)
    for row, classes in zip(scores, best):
        for index, text in zip(np.argsort(-row)[:3], classes):
            value, got_index, label = text.decode().split(":")
            assert int(got_index) == index and label == labels[index] and abs(float(value) - row[index]) < 1e-5, text


@test
def compressed_requests(client):
    x = ones([64, 32])
    expected = client.infer("mlp", [put("x", x)]).as_numpy("y")
    same(client.infer("mlp", [put("x", x)], compression_algorithm="gzip").as_numpy("y"), expected, rtol=1e-6, atol=1e-6)
    refused(lambda: client.infer("mlp", [put("x", x)], compression_algorithm="deflate"), "UNIMPLEMENTED", "deflate")


@test
def large_tensors(client):
    x = np.random.default_rng(2).standard_normal((16, 150_528)).astype(np.float32)
    same(client.infer("echo", [put("x", x)]).as_numpy("y"), x)


@test
def many_at_a_time(client):
    answers = queue.Queue()
    for index in range(64):
        row = np.full((1, 4), index, np.float32)
        client.async_infer("fixed-batch", [put("x", row)], lambda result, error: answers.put((result, error)), request_id=str(index))
    for _ in range(64):
        result, error = answers.get(timeout=30)
        assert error is None, error
        same(result.as_numpy("y"), np.full((1, 4), int(result.get_response().id) * 2, np.float32))


@test
def the_asyncio_client(client):
    async def run():
        async with triton_aio.InferenceServerClient(client.ortus_grpc) as other:
            assert await other.is_server_ready()
            results = await asyncio.gather(*(other.infer("echo", [put("x", ones([1, index + 1]))]) for index in range(8)))
            for index, result in enumerate(results):
                same(result.as_numpy("y"), ones([1, index + 1]))

    asyncio.run(run())


@test
def a_stream(client):
    answers = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    for index in range(32):
        model = "no-such-model" if index == 5 else "echo"
        client.async_stream_infer(model, [put("x", np.full((1, 3), index, np.float32))], request_id=str(index))
    for index in range(32):
        result, error = answers.get(timeout=30)
        if index == 5:
            assert "no-such-model" in str(error), error
        else:
            assert error is None and result.get_response().id == str(index), (error, index)
            same(result.as_numpy("y"), np.full((1, 3), index, np.float32))
    client.stop_stream()


@test
def parameters_and_deadlines(client):
    x = put("x", ones([1, 3]))
    client.infer("echo", [x], priority=1, timeout=20_000_000, parameters={"mine": "yes", "number": 3, "share": 0.5})
    forever = put("n", np.array(10**12, np.int64))
    refused(lambda: client.infer("slow", [forever], timeout=100_000), "DEADLINE_EXCEEDED", "deadline")
    refused(lambda: client.infer("slow", [forever], client_timeout=0.3), "DEADLINE_EXCEEDED")
    refused(lambda: client.infer("echo", [x], sequence_id=7, sequence_start=True), "INVALID_ARGUMENT", "sequence")
    client.infer("slow", [put("n", np.array(1, np.int64))])


@test
def statistics(client):
    def stats(model="", version=""):
        found = client.get_inference_statistics(model, version).model_stats
        return {(entry.name, entry.version): entry for entry in found}

    before = stats("mlp", "1")["mlp", "1"].inference_stats
    client.infer("mlp", [put("x", ones([2, 32]))])
    refused(lambda: client.infer("mlp", [put("x", ones([1, 31]))]), "INVALID_ARGUMENT")
    entry = stats()["mlp", "1"]
    after = entry.inference_stats
    assert (after.success.count - before.success.count, after.fail.count - before.fail.count) == (1, 1)
    assert after.success.ns > before.success.ns and entry.last_inference > 1_600_000_000_000
    refused(lambda: client.get_inference_statistics("no-such-model"), "NOT_FOUND", "no-such-model")


@test
def other_values_travel_as_json_text(client):
    scores = np.array([[0.25, 0.5, 0.25]], np.float32)
    (text,) = client.infer("zipmap", [put("scores", scores)]).as_numpy("probabilities")
    assert json.loads(text) == [{"setosa": 0.25, "versicolor": 0.5, "virginica": 0.25}], text


@test
def errors(client):
    def infer(model, *inputs, **options):
        return lambda: client.infer(model, list(inputs), **options)

    x = put("x", ones([1, 32]))
    refused(infer("no-such-model", x), "NOT_FOUND", "no-such-model")
    refused(infer("mlp", x, model_version="9"), "NOT_FOUND", "9")
    refused(infer("mlp", put("z", ones([1, 32]))), "INVALID_ARGUMENT", "z", "x")
    refused(infer("mlp", put("x", ones([1, 32], np.float64))), "INVALID_ARGUMENT", "x", "FP32", "FP64")
    refused(infer("mlp", put("x", ones([1, 31]))), "INVALID_ARGUMENT", "x", "32", "31")
    refused(infer("multi", put("a", ones([1, 2]))), "INVALID_ARGUMENT", "b", "INT64")
    refused(infer("mlp", x, x), "INVALID_ARGUMENT", "x")
    refused(infer("mlp", x, outputs=want("nope")), "INVALID_ARGUMENT", "nope")
    refused(infer("mlp", x, outputs=want("y", "y")), "INVALID_ARGUMENT", "y")
    refused(infer("fails", put("index", np.array([9], np.int64))), "INVALID_ARGUMENT")
    refused(lambda: client.register_system_shared_memory("r", "/r", 8), "UNIMPLEMENTED", "shared memory")
    refused(lambda: client.get_log_settings(), "UNIMPLEMENTED", "log_level")
    client.infer("mlp", [x])


@test
def load_and_unload(client):
    state = lambda: {entry.version: entry.state for entry in client.get_model_repository_index().models if entry.name == "scalar"}
    client.unload_model("scalar")
    assert not client.is_model_ready("scalar") and set(state().values()) == {"UNAVAILABLE"}, state()
    client.load_model("scalar")
    assert client.is_model_ready("scalar") and state() == {"1": "READY"}, state()
    refused(lambda: client.load_model("no-such-model"), "NOT_FOUND", "no-such-model")
    config = json.dumps({"name": "versions", "backend": "onnxruntime"})
    content = (STORE / "versions" / "1" / "model.onnx").read_bytes()
    client.load_model("versions", config=config, files={"file:8/model.onnx": content})
    assert client.is_model_ready("versions", "8") and not client.is_model_ready("versions", "3")
    same(client.infer("versions", [put("x", ones([1]))]).as_numpy("y"), np.array([2], np.float32))
    for path in ("file:../model.onnx", "file:1/../../model.onnx", "file:/model.onnx"):
        refused(lambda: client.load_model("versions", config=config, files={path: content}), "INVALID_ARGUMENT")
    client.load_model("versions")
    same(client.infer("versions", [put("x", ones([1]))]).as_numpy("y"), np.array([4], np.float32))


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--ortus", default=default_binary(), help="the server's binary (default: $ORTUS, or the debug build)")
    arguments = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = pathlib.Path(folder) / "store"
        shutil.copytree(STORE, store)
        with Server(arguments.ortus, store) as server:
            code = run(server.grpc)
    sys.exit(code)


def run(address):
    failed = 0
    with triton.InferenceServerClient(address) as client:
        client.ortus_grpc = address
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
