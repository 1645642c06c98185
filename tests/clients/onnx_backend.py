#!/usr/bin/env python3
"""Runs the backend test suite of the installed `onnx` package against Ortus.

A case counts where Python's ONNX Runtime (CPU) passes it by the suite's own rules; Ortus must then give the same outputs
over V2, binary and JSON: the same types and shapes, numbers within 1e-6 relative (NaN equals NaN). Outputs of random
operators are compared by type and shape alone. Sequences and optional values travel as JSON text in one BYTES element.

    onnx_backend.py [--ortus BINARY] [--reference-only] [--only WORD] [--json REPORT]

Needs ORT_DYLIB_PATH. Prints `N of M` for each way; the exit code is 0 only where all are right.
"""

import argparse
import collections
import ctypes
import http.client
import json
import pathlib
import re
import shutil
import sys
import tempfile
import time
import warnings

import numpy as np
import onnx
import onnxruntime
from _ortus import Connection, Refused, Server, Tensor, default_binary
from onnx import numpy_helper
from onnx.backend.test.loader import load_model_tests
from onnx.backend.test.runner import Runner

RANDOM_OPERATORS = {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial"}
KINDS = ("node", "simple", "pytorch-converted", "pytorch-operator", "real")
RTOL = 1e-6


class Skip(Exception):
    """Why Python's ONNX Runtime does not pass a case."""


class Case:
    """One model with its data: `data_sets` are (inputs by name, expected outputs in order)."""

    def __init__(self, test, kind):
        self.kind, self.rtol, self.atol = kind, test.rtol, test.atol
        self.id = f"{kind}/{test.name}"
        self.data_sets = []
        if test.model is not None:
            self.bytes, model = test.model.SerializeToString(), test.model
            sets = test.data_sets
        elif test.url is not None:
            self.bytes, model, sets = light_model(test)
        else:
            path = pathlib.Path(test.model_dir)
            self.bytes = (path / "model.onnx").read_bytes()
            model = onnx.load_model_from_string(self.bytes)
            sets = [read_data(folder, model) for folder in sorted(path.glob("test_data_set_*"))]
        weights = {tensor.name for tensor in model.graph.initializer} if test.url is not None else set()
        names = [value.name for value in model.graph.input if value.name not in weights]
        kinds = [value.type.WhichOneof("value") for value in [*model.graph.input, *model.graph.output]]
        self.tensors_only = all(kind == "tensor_type" for kind in kinds)
        # Python's ONNX Runtime takes strings, sequences and optional values only as Python values.
        self.has_strings = any(
            value.type.tensor_type.elem_type == onnx.TensorProto.STRING for value in [*model.graph.input, *model.graph.output]
        )
        self.is_random = any(is_random(node) for node in every_node(model.graph, model.functions))
        for inputs, outputs in sets:
            self.data_sets.append((dict(zip(names, map(plain, inputs))), list(map(plain, outputs))))


def plain(value):
    return numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value


def every_node(graph, functions=()):
    nodes = list(graph.node) + [node for function in functions for node in function.node]
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for inner in [attribute.g, *attribute.graphs]:
                yield from every_node(inner)


def is_random(node):
    if node.op_type == "Dropout":
        # Dropout does something only in training mode, which is its third input (since opset 12).
        return len(node.input) > 2 and node.input[2] != ""
    return node.op_type in RANDOM_OPERATORS


def read_data(folder, model):
    def read(prefix, values):
        found = []
        for index, value in enumerate(values):
            path = folder / f"{prefix}_{index}.pb"
            if not path.exists():
                break
            content = path.read_bytes()
            kind = value.type.WhichOneof("value")
            if kind == "sequence_type":
                found.append(numpy_helper.to_list(onnx.SequenceProto.FromString(content)))
            elif kind == "optional_type":
                found.append(numpy_helper.to_optional(onnx.OptionalProto.FromString(content)))
            else:
                found.append(numpy_helper.to_array(onnx.TensorProto.FromString(content)))
        return found

    return read("input", model.graph.input), read("output", model.graph.output)


def light_model(test):
    """Well-known architectures with made-up weights, and the input that the suite makes up for them."""
    path = pathlib.Path(onnx.__file__).parent.parent / test.url
    model = onnx.load(path)
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    expected = [path.with_name(f"{path.stem}_output_{index}.pb") for index in range(len(model.graph.output))]
    made_up = [Runner.generate_dummy_data(value, seed=0, name=test.model_name) for value in inputs]
    outputs = [numpy_helper.to_array(onnx.TensorProto.FromString(file.read_bytes())) for file in expected]
    return path.read_bytes(), model, [(made_up, outputs)]


# --- the reference ------------------------------------------------------------------------------


class Reference:
    """A session of Python's ONNX Runtime, with as many threads as an instance of the server."""

    def __init__(self, case):
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = 1
        try:
            self.session = onnxruntime.InferenceSession(case.bytes, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise Skip("load: " + first_line(error)) from None
        self.case = case
        self.names = [output.name for output in self.session.get_outputs()]

    def run(self, inputs):
        known = {value.name for value in self.session.get_inputs()}
        feed = {name: value for name, value in inputs.items() if name in known}
        try:
            if self.case.tensors_only and not self.case.has_strings:
                outputs = self.session.run_with_ort_values(self.names, {name: ort_value(value) for name, value in feed.items()})
                return [array_of(output) for output in outputs]
            return self.session.run(self.names, feed)
        except Exception as error:
            raise Skip("run: " + first_line(error)) from None


def ort_value(array):
    proto = numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape))
    value = onnxruntime.OrtValue.ortvalue_from_shape_and_type(list(array.shape), proto.data_type)
    if array.size:
        ctypes.memmove(value.data_ptr(), proto.raw_data, len(proto.raw_data))
    return value


def array_of(value):
    """Also of types that NumPy does not know, by reading the memory."""
    size, shape = value.tensor_size_in_bytes(), list(value.shape())
    content = ctypes.string_at(value.data_ptr(), size) if size else b""
    return numpy_helper.to_array(onnx.TensorProto(data_type=value.element_type(), dims=shape, raw_data=content))


def first_line(error):
    text = str(error).strip().split("\n")[0]
    return re.sub(r"^\[ONNXRuntimeError\] : \d+ : ", "", text)[:160]


def check_by_the_suite(case, got, expected):
    """The suite's own comparison."""
    try:
        if case.is_random:
            same_shape(got, expected)
            return
        similar(case, list(map(comparable, got)), list(map(comparable, expected)))
        for one, other in zip(got, expected):
            if isinstance(one, np.ndarray) and one.dtype != np.asarray(other).dtype and one.dtype.kind not in "OUS":
                raise AssertionError(f"dtype {one.dtype}, not {np.asarray(other).dtype}")
    except Exception as error:
        raise Skip("differs: " + " ".join(str(error).split())[:160]) from None


def similar(case, got, expected):
    """As the suite compares, but with elements of sequences one by one: the suite's own way fails on scalars there."""
    if len(got) != len(expected):
        raise AssertionError(f"{len(got)} values, not {len(expected)}")
    for one, other in zip(got, expected):
        if isinstance(one, list) and isinstance(other, list):
            similar(case, one, other)
        else:
            Runner.assert_similar_outputs([other], [one], case.rtol, case.atol)


def comparable(value):
    """Types that NumPy cannot compare within a tolerance, as f32: those of `ml_dtypes`."""
    if isinstance(value, (list, tuple)):
        return [comparable(element) for element in value]
    if value is None:
        # An optional value that is not there, on both sides or on one.
        return np.array("absent", dtype=object)
    array = np.asarray(value)
    if array.dtype.kind in "US":
        return array.astype(object)
    return array.astype(np.float32) if array.dtype.type.__module__ == "ml_dtypes" and array.dtype.name != "bfloat16" else array


def same_shape(got, expected):
    for one, other in zip(got, expected, strict=True):
        one, other = Tensor.of(one), Tensor.of(other)
        if (one.datatype, one.shape) != (other.datatype, other.shape):
            raise AssertionError(f"{one.datatype}{one.shape}, not {other.datatype}{other.shape}")


# --- Ortus --------------------------------------------------------------------------------------


def request_of(inputs):
    """Inputs as V2 has them: absent optional values are left out, sequences are JSON text."""
    return {name: wire_value(value) for name, value in inputs.items() if value is not None}


def wire_value(value):
    if isinstance(value, (list, tuple)):
        return Tensor("BYTES", [1], [json.dumps(tree(value), ensure_ascii=False)])
    return Tensor.of(value)


def tree(value):
    """A value as JSON: tensors as nested arrays, sequences as arrays, maps as objects, nothing as null."""
    if value is None:
        return None
    if isinstance(value, dict):
        return {str(key): tree(element) for key, element in value.items()}
    if isinstance(value, (list, tuple)):
        return [tree(element) for element in value]
    return Tensor.of(value).nested()


def compare(case, names, expected, got):
    """What differs, or nothing."""
    if list(got) != names:
        return f"outputs {list(got)}, not {names}"
    for name, value in zip(names, expected):
        problem = compare_output(case, value, got[name])
        if problem:
            return f"{name}: {problem}"
    return None


def compare_output(case, expected, got):
    if expected is None or isinstance(expected, (list, tuple, dict)):
        if got.datatype != "BYTES" or got.shape != [1]:
            return f"a value that is no tensor came as {got.datatype}{got.shape}"
        return compare_trees(tree(expected), json.loads(got.data[0]))
    want = Tensor.of(expected)
    # An optional tensor that is there travels as JSON text like one that is not.
    if got.datatype == "BYTES" and want.datatype != "BYTES" and not case.tensors_only:
        return compare_trees(want.nested(), json.loads(got.data[0]))
    if (want.datatype, want.shape) != (got.datatype, got.shape):
        return f"{got.datatype}{got.shape}, not {want.datatype}{want.shape}"
    if case.is_random or want.data == got.data:
        return None
    if want.datatype == "BYTES":
        return f"strings {got.data[:3]}, not {want.data[:3]}"
    one, other = want.array().reshape(-1), got.array().reshape(-1)
    if one.dtype.kind in "biu":
        return f"{int(np.sum(one != other))} of {one.size} elements differ"
    one, other = one.astype(np.float64), other.astype(np.float64)
    close = np.isclose(one, other, rtol=RTOL, atol=0, equal_nan=True)
    if close.all():
        return None
    at = int(np.argmin(close))
    return f"{int(np.sum(~close))} of {one.size} elements differ, the first {other[at]!r}, not {one[at]!r}"


def compare_trees(want, got):
    if isinstance(want, list):
        if not isinstance(got, list) or len(want) != len(got):
            return f"{str(got)[:60]}, not {str(want)[:60]}"
        return next(filter(None, map(compare_trees, want, got)), None)
    if isinstance(want, dict):
        if not isinstance(got, dict) or want.keys() != got.keys():
            return f"{str(got)[:60]}, not {str(want)[:60]}"
        return next(filter(None, (compare_trees(want[key], got[key]) for key in want)), None)
    numbers = type(want) in (int, float) and type(got) in (int, float)
    if numbers and np.isclose(want, got, rtol=RTOL, atol=0) or want == got:
        return None
    return f"{got!r}, not {want!r}"


class Ortus:
    def __init__(self, server, store):
        self.server, self.store, self.connection = server, store, Connection(server.url)

    def check(self, number, case, answers):
        """What is wrong over each way; `answers` are (inputs, the reference's outputs by name)."""
        model = f"case-{number}"
        folder = self.store / model / "1"
        folder.mkdir(parents=True)
        (folder / "model.onnx").write_bytes(case.bytes)
        problems = {"binary": None, "json": None}
        try:
            self.connection.ok("POST", f"/v2/repository/models/{model}/load", b"")
            for way, infer in (("binary", self.connection.infer_binary), ("json", self.connection.infer_json)):
                for inputs, names, expected in answers:
                    problems[way] = problems[way] or attempt(lambda: compare(case, names, expected, infer(model, request_of(inputs))))
            self.connection.ok("POST", f"/v2/repository/models/{model}/unload", b"")
        except (Refused, OSError, http.client.HTTPException) as error:
            problems = {way: problem or f"load or unload: {error}" for way, problem in problems.items()}
        finally:
            shutil.rmtree(self.store / model)
        if any(problems.values()) and self.server.has_ended():
            # A dead server fails its case, not all that follow.
            problems = dict.fromkeys(problems, f"the server died with code {self.server.process.returncode}")
            self.server.__enter__()
            self.connection = Connection(self.server.url)
        return problems


def attempt(call):
    try:
        return call()
    except (Refused, OSError, ValueError, KeyError, http.client.HTTPException) as error:
        return f"{type(error).__name__}: {error}"


# --- running ------------------------------------------------------------------------------------


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--ortus", default=default_binary(), help="the server's binary (default: $ORTUS, or the debug build)")
    arguments.add_argument("--reference-only", action="store_true", help="only count what Python's ONNX Runtime passes")
    arguments.add_argument("--only", help="only cases whose name contains this")
    arguments.add_argument("--json", type=pathlib.Path, help="write a report to this file")
    arguments = arguments.parse_args()
    warnings.simplefilter("ignore")
    started = time.monotonic()
    if arguments.reference_only:
        report = run(arguments, None)
    else:
        with tempfile.TemporaryDirectory() as store:
            environment = {
                "ORTUS_STORE__AUTOLOAD": "false", "ORTUS_BATCH__INSTANCES": "1", "ORTUS_BATCH__INTRA_THREADS": "1",
                "ORTUS_DEVICE__DEVICE_TYPE": "cpu", "ORTUS_TELEMETRY__LOG_LEVEL": "error",
            }
            with Server(arguments.ortus, store, **environment) as server:
                report = run(arguments, Ortus(server, pathlib.Path(store)))
    report["seconds"] = round(time.monotonic() - started, 1)
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")
    sys.exit(show(report, arguments.reference_only))


def run(arguments, ortus):
    cases, skipped, failures, random = [], [], [], []
    kinds, datatypes = collections.Counter(), collections.Counter()
    passed = {"binary": 0, "json": 0}
    total = 0
    for kind in KINDS:
        for test in load_model_tests(kind=kind):
            if arguments.only and arguments.only not in test.name:
                continue
            total += 1
            name = f"{kind}/{test.name}"
            try:
                case = Case(test, kind)
                reference = Reference(case)
                answers = []
                for inputs, expected in case.data_sets:
                    got = reference.run(inputs)
                    check_by_the_suite(case, got, expected)
                    answers.append((inputs, reference.names, got))
            except Skip as reason:
                skipped.append({"case": name, "reason": str(reason)})
                continue
            kinds[kind] += 1
            cases.append(name)
            datatypes.update({datatype for inputs, _, outputs in answers for datatype in types_of([*inputs.values(), *outputs])})
            if case.is_random:
                random.append(name)
            if ortus is None:
                continue
            for way, problem in ortus.check(total, case, answers).items():
                passed[way] += problem is None
                if problem:
                    failures.append({"case": name, "way": way, "problem": problem})
    return {
        "onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__, "total": total, "reference_passes": len(cases),
        "by_kind": dict(kinds), "by_datatype": dict(datatypes.most_common()), "skipped": skipped, "random": random,
        "passed": passed, "failures": failures, "cases": cases,
    }


def types_of(values):
    for value in values:
        if value is None:
            yield "absent"
        elif isinstance(value, (list, tuple)):
            yield "sequence"
            yield from types_of(value)
        elif isinstance(value, dict):
            yield "map"
        else:
            yield Tensor.of(value).datatype


def show(report, reference_only):
    print(f"onnx {report['onnx']}, onnxruntime {report['onnxruntime']}: {report['total']} cases, "
          f"{report['reference_passes']} pass with Python's ONNX Runtime: {report['by_kind']}")
    print(f"datatypes: {report['by_datatype']}")
    print(f"compared by type and shape alone, being random: {len(report['random'])} {report['random']}")
    reasons = collections.Counter(category(skip["reason"]) for skip in report["skipped"])
    for reason, count in reasons.most_common():
        print(f"  skipped {count:4}: {reason}")
    if reference_only:
        return 0
    for failure in report["failures"]:
        print(f"FAILED {failure['way']:6} {failure['case']}: {failure['problem']}")
    wanted = report["reference_passes"]
    for way, count in report["passed"].items():
        print(f"V2 {way}: {count} of {wanted}")
    print(f"{report['seconds']} s")
    return 0 if wanted and all(count == wanted for count in report["passed"].values()) else 1


def category(reason):
    for pattern, name in (
        (r"NOT_IMPLEMENTED|Could not find an implementation", "load: ONNX Runtime's CPU provider has no kernel"),
        (r"opset|Opset", "load: opset newer than ONNX Runtime knows"),
        (r"is not a registered function/op", "load: operator unknown to ONNX Runtime"),
    ):
        if re.search(pattern, reason):
            return name
    return re.sub(r"[\d.'\"]+", "#", reason)[:90]


if __name__ == "__main__":
    main()
