"""What the client scripts share: starting the server, talking to it, and tensors as the Open Inference Protocol has them.

Written from the protocol's text and from NumPy and ONNX alone, so that a mistake in the server is not made twice.
"""

import http.client
import json
import os
import pathlib
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import urllib.parse
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto as T
from onnx import helper, numpy_helper

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent

# ONNX element type -> datatype name of the protocol, or after its pattern where it has none.
NAMES = {
    T.BOOL: "BOOL", T.UINT8: "UINT8", T.UINT16: "UINT16", T.UINT32: "UINT32", T.UINT64: "UINT64",
    T.INT8: "INT8", T.INT16: "INT16", T.INT32: "INT32", T.INT64: "INT64",
    T.FLOAT16: "FP16", T.BFLOAT16: "BF16", T.FLOAT: "FP32", T.DOUBLE: "FP64", T.STRING: "BYTES",
    T.INT4: "INT4", T.UINT4: "UINT4", T.INT2: "INT2", T.UINT2: "UINT2", T.FLOAT4E2M1: "FP4E2M1",
    T.FLOAT8E4M3FN: "FP8E4M3FN", T.FLOAT8E4M3FNUZ: "FP8E4M3FNUZ", T.FLOAT8E5M2: "FP8E5M2",
    T.FLOAT8E5M2FNUZ: "FP8E5M2FNUZ", T.FLOAT8E8M0: "FP8E8M0",
}
TYPES = {name: element_type for element_type, name in NAMES.items()}


@dataclass
class Tensor:
    """A tensor on the wire: `data` is little-endian bytes, packed below 8 bits, or a list of strings."""

    datatype: str
    shape: list
    data: object

    @staticmethod
    def of(value):
        """From a NumPy array (also of `ml_dtypes`) or a TensorProto."""
        if isinstance(value, onnx.TensorProto):
            value = numpy_helper.to_array(value)
        array = np.asarray(value)
        if array.dtype == object or array.dtype.kind in "USO":
            strings = [text.decode() if isinstance(text, bytes) else str(text) for text in array.reshape(-1)]
            return Tensor("BYTES", list(array.shape), strings)
        proto = numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape))
        return Tensor(NAMES[proto.data_type], list(array.shape), proto.raw_data)

    def array(self):
        if self.datatype == "BYTES":
            array = np.empty(len(self.data), dtype=object)
            array[:] = self.data
            return array.reshape(self.shape)
        return numpy_helper.to_array(T(data_type=TYPES[self.datatype], dims=self.shape, raw_data=self.data))

    def wire(self):
        """The bytes of the binary tensor data extension."""
        if self.datatype == "BYTES":
            encoded = [text.encode() for text in self.data]
            return b"".join(struct.pack("<I", len(text)) + text for text in encoded)
        return self.data

    @staticmethod
    def from_wire(datatype, shape, data):
        if datatype != "BYTES":
            return Tensor(datatype, shape, data)
        strings, at = [], 0
        while at < len(data):
            (length,) = struct.unpack_from("<I", data, at)
            at += 4 + length
            if at > len(data):
                raise ValueError("a BYTES element is longer than the data")
            strings.append(data[at - length : at].decode())
        return Tensor(datatype, shape, strings)

    def flat(self):
        """The elements as JSON values, row-major."""
        if self.datatype == "BYTES":
            return list(self.data)
        return [json_number(element) for element in self.array().reshape(-1)]

    def nested(self):
        """The elements as nested JSON arrays; a scalar as itself."""
        return nest(self.flat(), list(self.shape))

    @staticmethod
    def from_flat(datatype, shape, data):
        if datatype == "BYTES":
            return Tensor(datatype, shape, list(data))
        dtype = helper.tensor_dtype_to_np_dtype(TYPES[datatype])
        if datatype in ("BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64"):
            kind = bool if datatype == "BOOL" else int
            if not all(type(element) is kind for element in data):
                raise ValueError(f"JSON data of {datatype} are not all of type {kind.__name__}")
            array = np.array(data, dtype=dtype)
        else:
            array = np.array([float(element) for element in data], dtype=np.float64).astype(dtype)
        return Tensor.of(array.reshape(shape))


def json_number(element):
    """The shortest JSON that reads back as the same element; non-finite floats as strings."""
    if isinstance(element, (np.bool_, np.integer)):
        return element.item()
    kind = type(element)
    value = float(element)
    if np.isnan(value):
        return "NaN"
    if np.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    if kind.__module__ == "ml_dtypes" and "int" in kind.__name__:
        return int(element)
    return float(str(element)) if kind in (np.float32, np.float16) else value


def nest(flat, shape):
    if not shape:
        return flat[0]
    step = int(np.prod(shape[1:], dtype=np.int64))
    return [nest(flat[index * step : (index + 1) * step], shape[1:]) for index in range(shape[0])]


class Refused(Exception):
    """An answer other than 200."""

    def __init__(self, status, text):
        super().__init__(f"{status}: {text}")
        self.status = status
        self.text = text


class Connection:
    """One kept-alive connection to the server."""

    def __init__(self, url, timeout=120):
        parts = urllib.parse.urlsplit(url)
        self.http = http.client.HTTPConnection(parts.hostname, parts.port, timeout=timeout)

    def request(self, method, path, body=None, headers=None):
        """Status, headers and body of the answer."""
        try:
            self.http.request(method, path, body=body, headers=headers or {})
            response = self.http.getresponse()
            return response.status, response.headers, response.read()
        except (http.client.HTTPException, OSError):
            # The next request opens a new connection.
            self.http.close()
            raise

    def ok(self, method, path, body=None, headers=None):
        status, answer_headers, answer = self.request(method, path, body, headers)
        if status != 200:
            raise Refused(status, answer.decode(errors="replace")[:500])
        return answer_headers, answer

    def get(self, path):
        _, body = self.ok("GET", path)
        return json.loads(body) if body else None

    def post(self, path, value):
        _, body = self.ok("POST", path, json.dumps(value, ensure_ascii=False).encode(), {"Content-Type": "application/json"})
        return json.loads(body) if body else None

    def infer_binary(self, model, inputs, version=None):
        """Tensors by output name, all binary both ways."""
        head, tail = {"inputs": [], "parameters": {"binary_data_output": True}}, []
        for name, tensor in inputs.items():
            data = tensor.wire()
            tail.append(data)
            head["inputs"].append({
                "name": name, "shape": tensor.shape, "datatype": tensor.datatype, "parameters": {"binary_data_size": len(data)},
            })
        text = json.dumps(head, ensure_ascii=False).encode()
        headers, body = self.ok("POST", infer_path(model, version), text + b"".join(tail), {
            "Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(text)),
        })
        at = int(headers["Inference-Header-Content-Length"])
        answer, outputs = json.loads(body[:at]), {}
        for output in answer["outputs"]:
            size = output["parameters"]["binary_data_size"]
            if at + size > len(body):
                raise ValueError("the answer is shorter than its binary_data_size")
            outputs[output["name"]] = Tensor.from_wire(output["datatype"], output["shape"], body[at : at + size])
            at += size
        if at != len(body):
            raise ValueError("the answer is longer than its binary_data_size")
        return outputs

    def infer_json(self, model, inputs, version=None):
        """Tensors by output name, all JSON both ways."""
        described = [
            {"name": name, "shape": tensor.shape, "datatype": tensor.datatype, "data": tensor.flat()}
            for name, tensor in inputs.items()
        ]
        answer = self.post(infer_path(model, version), {"inputs": described})
        return {
            output["name"]: Tensor.from_flat(output["datatype"], output["shape"], output["data"]) for output in answer["outputs"]
        }


def infer_path(model, version=None):
    return f"/v2/models/{model}/infer" if version is None else f"/v2/models/{model}/versions/{version}/infer"


class Server:
    """A server process over a store, on ports of its own; its log is shown where it does not end well."""

    def __init__(self, binary, store, **environment):
        self.binary, self.store, self.environment = str(binary), str(store), environment

    def __enter__(self):
        with socket.socket() as probe, socket.socket() as other:
            for each in (probe, other):
                each.bind(("127.0.0.1", 0))
            port, grpc_port = (each.getsockname()[1] for each in (probe, other))
        self.url, self.grpc = f"http://127.0.0.1:{port}", f"127.0.0.1:{grpc_port}"
        self.log = tempfile.TemporaryFile()
        self.process = subprocess.Popen(
            [self.binary, "serve", "--models", self.store, "--listen", f"127.0.0.1:{port}", "--grpc", self.grpc],
            env={**os.environ, **self.environment}, stdout=self.log, stderr=subprocess.STDOUT,
        )
        deadline = time.monotonic() + 120
        while True:
            if self.process.poll() is not None:
                self.show_log()
                raise SystemExit(f"the server ended at once with code {self.process.returncode}")
            try:
                if Connection(self.url, timeout=5).request("GET", "/v2/health/ready")[0] == 200:
                    return self
            except OSError:
                pass
            if time.monotonic() > deadline:
                self.process.kill()
                self.show_log()
                raise SystemExit("the server was not ready within 120 seconds")
            time.sleep(0.05)

    def __exit__(self, *_):
        ended_before = self.process.poll()
        if ended_before is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        if ended_before is not None or code != 0:
            self.show_log()
            raise SystemExit(f"the server ended with code {code}" + (" before it was asked to" if ended_before is not None else ""))

    def has_ended(self):
        """Whether the process is gone, with a moment for one that is on its way."""
        try:
            self.process.wait(timeout=0.01)
        except subprocess.TimeoutExpired:
            return False
        return True

    def show_log(self):
        self.log.seek(0)
        sys.stderr.write(self.log.read()[-20_000:].decode(errors="replace"))

    def resident_bytes(self):
        pages = pathlib.Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")


def default_binary():
    return os.environ.get("ORTUS") or str(pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "debug" / "ortus")
