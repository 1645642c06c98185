#!/usr/bin/env python3
"""Runs KServe's unmodified inference clients (REST V1 and V2, gRPC) against the server, over models of tests/fixtures/store.

    kserve_client.py [--ortus BINARY]

Starts the server itself (needs ORT_DYLIB_PATH) on a copy of the store. The clients' own modules are imported as they are, without
the front door of their package: that brings KServe's server and Kubernetes's client, which none of this uses.
Ends with `N passed, M failed`; the exit code is 0 only where none failed.
"""

import argparse
import asyncio
import importlib.machinery
import importlib.util
import logging
import pathlib
import shutil
import sys
import tempfile
import traceback
import types

import grpc
import httpx
import numpy as np
from _ortus import Server, default_binary
from triton_http import STORE, same

package = types.ModuleType("kserve")
package.__spec__ = importlib.machinery.ModuleSpec("kserve", None, is_package=True)
package.__path__ = list(importlib.util.find_spec("kserve").submodule_search_locations)
sys.modules["kserve"] = package

from kserve.inference_client import InferenceGRPCClient, InferenceRESTClient, RESTConfig  # noqa: E402
from kserve.protocol.infer_type import InferInput, InferRequest, RequestedOutput  # noqa: E402

TESTS = []
ROW = [place / 32 for place in range(32)]


def test(function):
    TESTS.append(function)
    return function


class Clients:
    """A client of each kind; `url` is what the REST clients are given with each call."""

    def __init__(self, server):
        self.url = server.url
        self.v1 = InferenceRESTClient(RESTConfig(protocol="v1"))
        self.v2 = InferenceRESTClient(RESTConfig(protocol="v2"))
        self.grpc = InferenceGRPCClient(server.grpc)

    async def close(self):
        for client in (self.v1, self.v2, self.grpc):
            await client.close()

    async def both(self, request):
        """The answers over REST and over gRPC; the request is made for each, since sending it changes it."""
        rest, over_grpc = request(), request()
        return await self.v2.infer(self.url, rest, rest.model_name), await self.grpc.infer(over_grpc)


def put(name, array, datatype, binary):
    """An input whose data are raw, or typed: elements in JSON over REST, lists of their type over gRPC."""
    if binary:
        given = InferInput(name, list(array.shape), datatype)
        given.set_data_from_numpy(array, binary_data=True)
        return given
    return InferInput(name, list(array.shape), datatype, data=array.reshape(-1).tolist())


def ask(model, *inputs, **more):
    return InferRequest(model, list(inputs), **more)


async def refused_over_rest(call, status, *words):
    try:
        await call
    except httpx.HTTPStatusError as error:
        assert error.response.status_code == status, f"{error.response.status_code}, not {status}: {error}"
        assert all(word in error.response.text for word in words), error.response.text
        return
    raise AssertionError(f"was answered, not refused with {status}")


async def refused_over_grpc(call, code, *words):
    try:
        await call
    except grpc.RpcError as error:
        assert error.code() == code, f"{error.code()}, not {code}: {error.details()}"
        assert all(word in error.details() for word in words), error.details()
        return
    raise AssertionError(f"was answered, not refused with {code}")


@test
async def liveness_and_readiness(clients):
    assert await clients.v2.is_server_live(clients.url) is True
    assert await clients.v2.is_server_ready(clients.url) is True
    assert await clients.grpc.is_server_live() is True
    assert await clients.grpc.is_server_ready() is True
    for model, expected in (("mlp", True), ("no-such-model", False)):
        assert await clients.v2.is_model_ready(clients.url, model) is expected
        assert await clients.grpc.is_model_ready(model) is expected
    assert await clients.v1.is_model_ready(clients.url, "mlp") is True
    await refused_over_rest(clients.v1.is_model_ready(clients.url, "no-such-model"), 404, "no-such-model")


@test
async def predictions_over_v1(clients):
    one = await clients.v1.infer(clients.url, {"instances": [ROW]}, "mlp")
    two = await clients.v1.infer(clients.url, {"instances": [ROW, ROW]}, "mlp")
    assert list(one) == ["predictions"] and len(one["predictions"]) == 1, one
    same(np.array(two["predictions"], np.float32), np.array(one["predictions"] * 2, np.float32), rtol=1e-5, atol=1e-5)
    await refused_over_rest(clients.v1.infer(clients.url, {"instances": [ROW[1:]]}, "mlp"), 422, "31")


@test
async def floats_raw_and_typed(clients):
    x = np.array([ROW, ROW[::-1]], np.float32)
    answers = []
    for binary in (True, False):
        for answer in await clients.both(lambda: ask("mlp", put("x", x, "FP32", binary), request_id="mine")):
            assert (answer.id, answer.model_name, answer.outputs[0].name, answer.outputs[0].datatype) == ("mine", "mlp", "y", "FP32")
            answers.append(answer.outputs[0].as_numpy())
    assert len(answers) == 4 and answers[0].shape[0] == 2
    for answer in answers[1:]:
        same(answer, answers[0], rtol=1e-5, atol=1e-6)


@test
async def several_inputs_of_different_types(clients):
    a, b = np.arange(6, dtype=np.float32).reshape(3, 2), np.arange(3, dtype=np.int64)
    for binary in (True, False):
        answers = await clients.both(lambda: ask("multi", put("b", b, "INT64", binary), put("a", a, "FP32", binary)))
        rest, over_grpc = ({output.name: output.as_numpy() for output in answer.outputs} for answer in answers)
        assert rest.keys() == over_grpc.keys() == {"product", "sum"}
        for name in rest:
            same(over_grpc[name], rest[name], rtol=1e-6, atol=1e-6)


@test
async def outputs_that_are_asked_for(clients):
    a, b = np.ones([3, 2], np.float32), np.arange(3, dtype=np.int64)
    for name in ("product", "sum"):
        request = ask("multi", put("a", a, "FP32", True), put("b", b, "INT64", True), request_outputs=[RequestedOutput(name)])
        answer = await clients.v2.infer(clients.url, request, "multi")
        assert [output.name for output in answer.outputs] == [name]


@test
async def texts(clients):
    text = np.array(["héllo", "", "日本"], object)
    names = [given["name"] for given in httpx.get(f"{clients.url}/v2/models/strings").json()["inputs"]]
    of = lambda array, binary: ask("strings", *(put(name, array, "BYTES", binary) for name in names))
    # Its gRPC client takes typed texts as bytes, its REST client as str.
    encoded = np.array([element.encode() for element in text], object)
    answers = [
        *await clients.both(lambda: of(text, True)),
        await clients.v2.infer(clients.url, of(text, False), "strings"),
        await clients.grpc.infer(of(encoded, False)),
    ]
    found = []
    for answer in answers:
        arrays = [output.as_numpy() for output in answer.outputs if output.datatype == "BYTES"]
        found.append([[as_text(element) for element in array.reshape(-1)] for array in arrays])
    assert list(text) in found[0] and all(each == found[0] for each in found), found


def as_text(element):
    return element.decode() if isinstance(element, bytes) else str(element)


@test
async def parameters(clients):
    slow = lambda **more: ask("slow", put("n", np.array(10**12, np.int64), "INT64", True), **more)
    late = {"timeout": 200_000}
    await refused_over_rest(clients.v2.infer(clients.url, slow(parameters=late), "slow"), 504, "deadline")
    await refused_over_grpc(clients.grpc.infer(slow(parameters=late)), grpc.StatusCode.DEADLINE_EXCEEDED, "deadline")
    await refused_over_grpc(clients.grpc.infer(slow(), timeout=0.3), grpc.StatusCode.DEADLINE_EXCEEDED)


@test
async def errors(clients):
    good, short, wide = (np.ones([1, size], np.float32) for size in (32, 31, 32))
    rows = [
        (lambda: ask("no-such-model", put("x", good, "FP32", True)), 404, "NOT_FOUND", "no-such-model"),
        (lambda: ask("mlp", put("z", good, "FP32", True)), 400, "INVALID_ARGUMENT", "x"),
        (lambda: ask("mlp", put("x", short, "FP32", True)), 400, "INVALID_ARGUMENT", "31"),
        (lambda: ask("mlp", put("x", wide.astype(np.float64), "FP64", True)), 400, "INVALID_ARGUMENT", "FP64"),
        (lambda: ask("multi", put("a", np.ones([1, 2], np.float32), "FP32", False)), 400, "INVALID_ARGUMENT", "b"),
    ]
    for make, status, code, word in rows:
        request = make()
        await refused_over_rest(clients.v2.infer(clients.url, request, request.model_name), status, word)
        await refused_over_grpc(clients.grpc.infer(make()), grpc.StatusCode[code], word)
    await clients.both(lambda: ask("mlp", put("x", good, "FP32", True)))


@test
async def many_at_a_time(clients):
    async def one(number):
        row = np.full([1, 4], number, np.float32)
        for answer in await clients.both(lambda: ask("fixed-batch", put("x", row, "FP32", True))):
            same(answer.outputs[0].as_numpy(), row * 2)

    await asyncio.gather(*(one(number) for number in range(32)))


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--ortus", default=default_binary(), help="the server's binary (default: $ORTUS, or the debug build)")
    arguments = arguments.parse_args()
    # The client logs each refusal with its trace before it gives it on.
    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as folder:
        store = pathlib.Path(folder) / "store"
        shutil.copytree(STORE, store)
        with Server(arguments.ortus, store) as server:
            code = asyncio.run(run(server))
    sys.exit(code)


async def run(server):
    failed = 0
    clients = Clients(server)
    for function in TESTS:
        name = function.__name__.replace("_", " ")
        try:
            await function(clients)
            print(f"ok      {name}")
        except Exception:
            failed += 1
            print(f"FAILED  {name}\n{traceback.format_exc()}")
    await clients.close()
    print(f"{len(TESTS) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    main()
