#!/usr/bin/env python3
"""Writes the test models and their golden answers.

`tests/fixtures/store/` is a model repository whose models each show one feature of ONNX or of a
repository layout; `tests/golden/<model>.json` holds what ONNX Runtime's Python package answers.
`tests/fixtures/hostile/` holds files that a server must refuse without harm. All small, all made
here with fixed seeds, so a second run writes the same bytes.

A golden file: `{made_by, model, tolerance: {rtol, atol}, cases: [{id, version?, inputs, outputs}]}`; a tensor is
`{dtype, shape, data}` with `data` flat in row-major order, a sequence `{sequence: [...]}`, a map
`{map: {...}}`; floats JSON cannot write are the strings "NaN", "Infinity", "-Infinity". A case with
`"fails": true` in place of outputs is one whose run ONNX Runtime refuses.
Needs what tests/clients/requirements.txt lists.

`tests/golden/text.json` is of another form: texts, their token ids, and the numbers of the task.
"""

import json
import pathlib
import shutil

import numpy as np
import onnx
import onnxruntime
import safetensors.numpy
import tokenizers
from onnx import TensorProto as T
from onnx import helper, numpy_helper

ROOT = pathlib.Path(__file__).resolve().parent.parent
STORE = ROOT / "tests" / "fixtures" / "store"
HOSTILE = ROOT / "tests" / "fixtures" / "hostile"
GOLDEN = ROOT / "tests" / "golden"
MADE_BY = f"tools/make_fixtures.py: onnxruntime {onnxruntime.__version__} CPU, numpy {np.__version__}"

# ONNX element type -> name in the Open Inference Protocol.
DTYPES = {
    T.BOOL: "BOOL", T.UINT8: "UINT8", T.UINT16: "UINT16", T.UINT32: "UINT32", T.UINT64: "UINT64",
    T.INT8: "INT8", T.INT16: "INT16", T.INT32: "INT32", T.INT64: "INT64",
    T.FLOAT16: "FP16", T.BFLOAT16: "BF16", T.FLOAT: "FP32", T.DOUBLE: "FP64",
}

# Made by make_zero_shot_image.py, which needs PyTorch.
ELSEWHERE = ["clip", "clip-towers", "siglip", "siglip-towers"]


def main():
    # Only what this script writes: golden answers of other models stand in the same folder.
    for folder in [*STORE.glob("*"), HOSTILE]:
        if folder.name not in ELSEWHERE:
            shutil.rmtree(folder, ignore_errors=True)
    GOLDEN.mkdir(parents=True, exist_ok=True)
    for make in (
        mlp, echo, alltypes, strings, scalar, multi, sequence, zipmap, int4, float8, empty, fixed_batch,
        external_data, ort_format, no_shape, slow, fails, nonfinite, versions, triton_layout, triton_reshape, hf_snapshot, texts, hostile,
    ):
        make()
    files = [path for folder in (STORE, HOSTILE, GOLDEN) for path in folder.rglob("*") if path.is_file()]
    print(f"{len(files)} files, {sum(path.stat().st_size for path in files)} bytes")


# --- writing ------------------------------------------------------------------------------------


def value(name, dtype, shape):
    return helper.make_tensor_value_info(name, dtype, shape)


def constant(name, array):
    return numpy_helper.from_array(np.asarray(array), name)


def model_of(nodes, inputs, outputs, initializers=(), domains=()):
    graph = helper.make_graph(list(nodes), "graph", list(inputs), list(outputs), list(initializers))
    opsets = [helper.make_opsetid("", 21), *(helper.make_opsetid(domain, version) for domain, version in domains)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10, producer_name="ortus-fixtures")


def save(model, name, place="1/model.onnx", check=True):
    if check:
        onnx.checker.check_model(model)
    path = STORE / name / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.SerializeToString(deterministic=True))
    return path


def session_of(path):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def case(path, case_id, inputs, **more):
    """Runs one case and returns it as the golden file has it."""
    session = session_of(path)
    names = [output.name for output in session.get_outputs()]
    outputs = dict(zip(names, session.run(names, inputs)))
    return {
        "id": case_id, **more,
        "inputs": {name: encoded(array) for name, array in inputs.items()},
        "outputs": {name: encoded(result) for name, result in outputs.items()},
    }


def golden(name, cases, rtol=0.0, atol=0.0):
    text = {"made_by": MADE_BY, "model": name, "tolerance": {"rtol": rtol, "atol": atol}, "cases": cases}
    # One case a line: small, and a changed case is one changed line.
    lines = ",\n".join("  " + json.dumps(one, ensure_ascii=False, allow_nan=False) for one in text.pop("cases"))
    head = json.dumps(text, ensure_ascii=False)[:-1]
    (GOLDEN / f"{name}.json").write_text(f'{head}, "cases": [\n{lines}\n]}}\n', encoding="utf-8")


def encoded(result):
    if isinstance(result, list):
        return {"sequence": [encoded(element) for element in result]}
    if isinstance(result, dict):
        return {"map": {str(key): number(np.float32(element)) for key, element in result.items()}}
    array = np.asarray(result)
    if array.dtype == object or array.dtype.kind in "US":
        return tensor("BYTES", array.shape, [str(text) for text in array.reshape(-1)])
    name = DTYPES[helper.np_dtype_to_tensor_dtype(array.dtype)]
    return tensor(name, array.shape, [number(element) for element in array.reshape(-1)])


def tensor(dtype, shape, data):
    return {"dtype": dtype, "shape": list(shape), "data": data}


def number(element):
    """The shortest JSON that reads back as the same element."""
    if isinstance(element, (np.bool_, np.integer)):
        return element.item()
    if np.isnan(element):
        return "NaN"
    if np.isinf(element):
        return "Infinity" if element > 0 else "-Infinity"
    return float(str(element))


def random(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


# --- models -------------------------------------------------------------------------------------


def mlp():
    """32-64-64-8 with Relu: the plain case."""
    sizes, nodes, weights, last = [32, 64, 64, 8], [], [], "x"
    for layer, (inner, outer) in enumerate(zip(sizes, sizes[1:])):
        final = layer == len(sizes) - 2
        weights += [constant(f"w{layer}", random(layer, inner, outer) / np.sqrt(np.float32(inner))), constant(f"b{layer}", random(layer + 10, outer) * np.float32(0.1))]
        nodes.append(helper.make_node("Gemm", [last, f"w{layer}", f"b{layer}"], ["y" if final else f"h{layer}"]))
        last = f"h{layer}"
        if not final:
            nodes.append(helper.make_node("Relu", [last], [f"r{layer}"]))
            last = f"r{layer}"
    model = model_of(nodes, [value("x", T.FLOAT, ["N", 32])], [value("y", T.FLOAT, ["N", 8])], weights)
    path = save(model, "mlp")
    golden("mlp", [case(path, "one", {"x": random(1, 1, 32)}), case(path, "four", {"x": random(2, 4, 32)})], rtol=1e-4, atol=1e-6)


def echo():
    """Gives back what came, of any width (a picture's 150528 floats, say): the cost of transport alone."""
    model = model_of([helper.make_node("Identity", ["x"], ["y"])], [value("x", T.FLOAT, ["N", "D"])], [value("y", T.FLOAT, ["N", "D"])])
    path = save(model, "echo")
    golden("echo", [case(path, "two-rows", {"x": random(3, 2, 5)})])


def alltypes():
    """One input and output of each dtype but strings and the packed ones."""
    nodes, inputs, outputs = [], [], []
    for dtype, name in DTYPES.items():
        low = name.lower()
        nodes.append(helper.make_node("Identity", [f"in_{low}"], [f"out_{low}"]))
        inputs.append(value(f"in_{low}", dtype, ["N"]))
        outputs.append(value(f"out_{low}", dtype, ["N"]))
    save(model_of(nodes, inputs, outputs), "alltypes")
    # ONNX Runtime's Python package takes no bf16 arrays. The model copies, so its answer is its input.
    values = {}
    for dtype, name in DTYPES.items():
        kind = helper.tensor_dtype_to_np_dtype(dtype)
        if dtype == T.BOOL:
            array = np.array([True, False, True])
        elif name.startswith(("INT", "UINT")):
            limits = np.iinfo(kind)
            array = np.array([limits.min, 1, limits.max], dtype=kind)
        else:
            array = np.array([-1.5, 0.0, 3.140625], dtype=kind)
        values[name.lower()] = encoded(array)
    golden("alltypes", [{
        "id": "extremes",
        "inputs": {f"in_{name}": array for name, array in values.items()},
        "outputs": {f"out_{name}": array for name, array in values.items()},
    }])


def strings():
    nodes = [helper.make_node("Identity", ["x"], ["same"]), helper.make_node("StringConcat", ["x", "mark"], ["marked"])]
    model = model_of(nodes, [value("x", T.STRING, ["N"])], [value("same", T.STRING, ["N"]), value("marked", T.STRING, ["N"])],
                     [helper.make_tensor("mark", T.STRING, [1], [b"!"])])
    path = save(model, "strings")
    golden("strings", [
        case(path, "words", {"x": np.array(["a", "", "Grüße", "数字", "two words", "tab\tand \"quote\""], dtype=object)}),
        case(path, "one", {"x": np.array(["x" * 300], dtype=object)}),
    ])


def scalar():
    """Rank 0 in and out: a shape of no dimensions is not a missing shape."""
    nodes = [helper.make_node("Mul", ["x", "two"], ["t"]), helper.make_node("Add", ["t", "one"], ["y"])]
    model = model_of(nodes, [value("x", T.FLOAT, [])], [value("y", T.FLOAT, [])], [constant("two", np.float32(2)), constant("one", np.float32(1))])
    path = save(model, "scalar")
    golden("scalar", [case(path, "half", {"x": np.array(0.5, dtype=np.float32)})])


def multi():
    """Two inputs of different dtype and rank, two outputs, and a third input that may be left out."""
    nodes = [
        helper.make_node("Cast", ["b"], ["b_float"], to=T.FLOAT),
        helper.make_node("Unsqueeze", ["b_float", "axis"], ["b_column"]),
        helper.make_node("Add", ["a", "b_column"], ["plain"]),
        helper.make_node("Mul", ["plain", "scale"], ["sum"]),
        helper.make_node("ReduceSum", ["a", "axis"], ["a_rows"], keepdims=0),
        helper.make_node("Mul", ["a_rows", "b_float"], ["p_float"]),
        helper.make_node("Cast", ["p_float"], ["product"], to=T.INT64),
    ]
    model = model_of(
        nodes,
        [value("a", T.FLOAT, ["N", 2]), value("b", T.INT64, ["N"]), value("scale", T.FLOAT, [])],
        [value("sum", T.FLOAT, ["N", 2]), value("product", T.INT64, ["N"])],
        [constant("scale", np.float32(2)), constant("axis", np.array([1], dtype=np.int64))],
    )
    path = save(model, "multi")
    both = {"a": np.array([[1, 2], [3, 4.5]], dtype=np.float32), "b": np.array([10, -2], dtype=np.int64)}
    golden("multi", [case(path, "default-scale", both), case(path, "given-scale", {**both, "scale": np.array(0.5, dtype=np.float32)})])


def sequence():
    result = helper.make_tensor_sequence_value_info("seq", T.FLOAT, None)
    model = model_of([helper.make_node("SequenceConstruct", ["a", "b"], ["seq"])],
                     [value("a", T.FLOAT, ["N"]), value("b", T.FLOAT, ["M", 2])], [result])
    path = save(model, "sequence")
    golden("sequence", [case(path, "two-shapes", {"a": np.array([1, 2, 3], dtype=np.float32), "b": np.array([[4, 5]], dtype=np.float32)})])


def zipmap():
    """What scikit-learn's exporter gives: class scores as a sequence of maps."""
    node = helper.make_node("ZipMap", ["scores"], ["probabilities"], domain="ai.onnx.ml", classlabels_strings=["setosa", "versicolor", "virginica"])
    kind = helper.make_sequence_type_proto(helper.make_map_type_proto(T.STRING, helper.make_tensor_type_proto(T.FLOAT, None)))
    model = model_of([node], [value("scores", T.FLOAT, ["N", 3])], [helper.make_value_info("probabilities", kind)], domains=[("ai.onnx.ml", 3)])
    path = save(model, "zipmap", check=False)
    golden("zipmap", [case(path, "two-rows", {"scores": np.array([[0.1, 0.7, 0.2], [1, 0, 0]], dtype=np.float32)})])


def int4():
    packed_float("int4", T.INT4, "INT4", np.array([-8, -3, 0, 2, 7], dtype=np.float32), int)


def float8():
    packed_float("float8", T.FLOAT8E4M3FN, "FP8E4M3FN", np.array([0, 0.3, -1.75, 100, 448], dtype=np.float32), float)


def packed_float(name, dtype, dtype_name, x, kind):
    """`x` cast to a dtype that Python's ONNX Runtime cannot hand out, and `p` of that dtype cast back."""
    cast = helper.make_node("Cast", ["x"], ["q"], to=dtype)
    save(model_of([cast, helper.make_node("Cast", ["p"], ["y"], to=T.FLOAT)],
                  [value("x", T.FLOAT, ["N"]), value("p", dtype, ["M"])], [value("q", dtype, ["N"]), value("y", T.FLOAT, ["M"])]), name)
    # The same cast there and back in one graph tells the values of `q`. Without optimisation, which
    # would fold the pair away.
    pair = model_of([cast, helper.make_node("Cast", ["q"], ["y"], to=T.FLOAT)], [value("x", T.FLOAT, ["N"])], [value("y", T.FLOAT, ["N"])])
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    (back,) = onnxruntime.InferenceSession(pair.SerializeToString(), options, providers=["CPUExecutionProvider"]).run(["y"], {"x": x})
    packed = tensor(dtype_name, x.shape, [kind(number(element)) for element in back])
    golden(name, [{"id": "there-and-back", "inputs": {"x": encoded(x), "p": packed}, "outputs": {"q": packed, "y": encoded(back)}}])


def empty():
    """Dimensions may be 0: an empty tensor has a shape and no bytes."""
    nodes = [helper.make_node("Neg", ["x"], ["y"]), helper.make_node("Shape", ["x"], ["shape"])]
    model = model_of(nodes, [value("x", T.FLOAT, ["N", "D"])], [value("y", T.FLOAT, ["N", "D"]), value("shape", T.INT64, [2])])
    path = save(model, "empty")
    golden("empty", [case(path, f"{rows}x{columns}", {"x": np.ones((rows, columns), dtype=np.float32)}) for rows, columns in [(0, 4), (2, 0), (2, 3)]])


def fixed_batch():
    """One row and no more: requests of several rows cannot be stacked."""
    model = model_of([helper.make_node("Add", ["x", "x"], ["y"])], [value("x", T.FLOAT, [1, 4])], [value("y", T.FLOAT, [1, 4])])
    path = save(model, "fixed-batch")
    golden("fixed-batch", [case(path, "row", {"x": np.array([[1, 2, 3, 4.5]], dtype=np.float32)})])


def external_data():
    """Weights in `weights.bin` beside the graph, two tensors in one file."""
    weights, bias = random(4, 4, 3), random(5, 3)
    (STORE / "external-data" / "1").mkdir(parents=True, exist_ok=True)
    (STORE / "external-data" / "1" / "weights.bin").write_bytes(weights.tobytes() + bias.tobytes())
    model = model_of([helper.make_node("Gemm", ["x", "w", "b"], ["y"])], [value("x", T.FLOAT, ["N", 4])], [value("y", T.FLOAT, ["N", 3])],
                     [external("w", [4, 3], "weights.bin", 0, weights.nbytes), external("b", [3], "weights.bin", weights.nbytes, bias.nbytes)])
    path = save(model, "external-data", check=False)
    golden("external-data", [case(path, "two-rows", {"x": random(6, 2, 4)})], rtol=1e-5, atol=1e-6)


def external(name, shape, location, offset=None, length=None):
    """An f32 initializer whose data are said to be in another file."""
    weight = T(name=name, data_type=T.FLOAT, dims=shape, data_location=T.EXTERNAL)
    for key, text in [("location", location), ("offset", offset), ("length", length)]:
        if text is not None:
            weight.external_data.add(key=key, value=str(text))
    return weight


def ort_format():
    """The MLP in ONNX Runtime's own file form."""
    folder = STORE / "ort-format" / "1"
    folder.mkdir(parents=True, exist_ok=True)
    options = onnxruntime.SessionOptions()
    # Basic optimisation only: what later levels write depends on the machine.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(folder / "model.ort")
    options.add_session_config_entry("session.save_model_format", "ORT")
    onnxruntime.InferenceSession(str(STORE / "mlp" / "1" / "model.onnx"), options, providers=["CPUExecutionProvider"])
    path = folder / "model.ort"
    golden("ort-format", [case(path, "two-rows", {"x": random(5, 2, 32)})], rtol=1e-5, atol=1e-6)


def no_shape():
    """The graph says the dtype alone, so every rank is right."""
    model = model_of([helper.make_node("Neg", ["x"], ["y"])], [value("x", T.FLOAT, None)], [value("y", T.FLOAT, None)])
    path = save(model, "no-shape", check=False)
    golden("no-shape", [
        case(path, "rank-0", {"x": np.array(1.5, dtype=np.float32)}),
        case(path, "rank-3", {"x": np.arange(4, dtype=np.float32).reshape(2, 1, 2)}),
    ])


def slow():
    """Turns a matrix `n` times; 10^12 turns never end, so cancelling and deadlines can be seen."""
    angle = np.float32(0.1)
    turn = np.eye(8, dtype=np.float32)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["go_on"]), helper.make_node("MatMul", ["state", "turn"], ["next"])],
        "body",
        [value("i", T.INT64, []), value("go", T.BOOL, []), value("state", T.FLOAT, [8, 8])],
        [value("go_on", T.BOOL, []), value("next", T.FLOAT, [8, 8])],
    )
    model = model_of([helper.make_node("Loop", ["n", "", "start"], ["y"], body=body)],
                     [value("n", T.INT64, [])], [value("y", T.FLOAT, [8, 8])],
                     [constant("start", np.eye(8, dtype=np.float32)), constant("turn", turn)])
    path = save(model, "slow")
    golden("slow", [case(path, f"n-{n}", {"n": np.array(n, dtype=np.int64)}) for n in (0, 10)], rtol=1e-4, atol=1e-5)


def fails():
    """Takes elements of a table of four; an index beyond it is found only while it runs."""
    model = model_of([helper.make_node("Gather", ["table", "index"], ["y"])], [value("index", T.INT64, ["N"])], [value("y", T.FLOAT, ["N"])],
                     [constant("table", np.array([10, 11, 12, 13], dtype=np.float32))])
    path = save(model, "fails")
    bad = np.array([0, 9], dtype=np.int64)
    try:
        session_of(path).run(None, {"index": bad})
    except Exception:
        refused = {"id": "out-of-range", "inputs": {"index": encoded(bad)}, "fails": True}
    else:
        raise SystemExit("make_fixtures: the out-of-range Gather did not fail")
    golden("fails", [case(path, "in-range", {"index": np.array([0, 3, -1], dtype=np.int64)}), refused])


def nonfinite():
    nodes = [helper.make_node("Log", ["x"], ["log"]), helper.make_node("Div", ["one", "x"], ["inverse"])]
    model = model_of(nodes, [value("x", T.FLOAT, ["N"])], [value("log", T.FLOAT, ["N"]), value("inverse", T.FLOAT, ["N"])], [constant("one", np.float32(1))])
    path = save(model, "nonfinite")
    x = np.array([-1, 0, -0.0, 1, np.inf, -np.inf, np.nan], dtype=np.float32)
    golden("nonfinite", [case(path, "all-kinds", {"x": x})], rtol=1e-5, atol=1e-6)


def versions():
    """Version k adds k, so an answer tells who gave it."""
    cases = []
    for version in (1, 2, 3):
        model = model_of([helper.make_node("Add", ["x", "k"], ["y"])], [value("x", T.FLOAT, ["N"])], [value("y", T.FLOAT, ["N"])], [constant("k", np.float32(version))])
        path = save(model, "versions", f"{version}/model.onnx")
        cases.append(case(path, f"version-{version}", {"x": np.array([0, 1], dtype=np.float32)}, version=str(version)))
    golden("versions", cases)


def triton_layout():
    """A model folder as a Triton repository has it, dims without the batch dimension."""
    model = model_of([helper.make_node("MatMul", ["x", "w"], ["t"]), helper.make_node("Softmax", ["t"], ["scores"], axis=-1)],
                     [value("x", T.FLOAT, ["N", 4])], [value("scores", T.FLOAT, ["N", 5])], [constant("w", random(7, 4, 5))])
    path = save(model, "triton-layout")
    folder = STORE / "triton-layout"
    (folder / "labels.txt").write_text("ant\nbee\ncat\ndog\nelk\n")
    (folder / "config.pbtxt").write_text('''# A Triton model configuration with one of each setting that has a counterpart here.
name: "triton-layout"
platform: "onnxruntime_onnx"
max_batch_size: 8
input [
  { name: "x" data_type: TYPE_FP32 dims: [ 4 ] }
]
output [
  { name: "scores" data_type: TYPE_FP32 dims: [ 5 ] label_filename: "labels.txt" }
]
instance_group [
  { count: 1 kind: KIND_CPU }
]
version_policy: { latest: { num_versions: 1 } }
dynamic_batching {
  preferred_batch_size: [ 4, 8 ]
  max_queue_delay_microseconds: 2000
}
model_warmup [
  {
    name: "zeros"
    batch_size: 1
    inputs {
      key: "x"
      value: { data_type: TYPE_FP32 dims: [ 4 ] zero_data: true }
    }
  }
]
''')
    golden("triton-layout", [case(path, "two-rows", {"x": random(8, 2, 4)})], rtol=1e-5, atol=1e-6)


def triton_reshape():
    """A Triton model whose clients see other shapes than its graph, with levels, a queue policy, a cache and a warm-up."""
    nodes = [
        helper.make_node("ReduceMax", ["x", "axes"], ["largest"], keepdims=0),
        helper.make_node("MatMul", ["largest", "w"], ["t"]),
        helper.make_node("Reshape", ["bias", "to_column"], ["column"]),
        helper.make_node("Add", ["t", "column"], ["y"]),
        helper.make_node("Mul", ["bias", "bias"], ["square"]),
    ]
    model = model_of(nodes, [value("x", T.FLOAT, ["N", 2, 3]), value("bias", T.FLOAT, ["N"])],
                     [value("y", T.FLOAT, ["N", 4]), value("square", T.FLOAT, ["N"])],
                     [constant("w", random(23, 3, 4)), constant("axes", np.array([1], dtype=np.int64)),
                      constant("to_column", np.array([-1, 1], dtype=np.int64))])
    # A graph may be a folder of its name, as graphs with external data are in Triton repositories.
    path = save(model, "triton-reshape", "1/model.onnx/model.onnx")
    (STORE / "triton-reshape" / "config.pbtxt").write_text('''name: "triton-reshape"
backend: "onnxruntime"
max_batch_size: 8
input [
  { name: "x" data_type: TYPE_FP32 dims: [ 6 ] reshape: { shape: [ 2, 3 ] } },
  { name: "bias" data_type: TYPE_FP32 dims: [ 1 ] reshape: { shape: [ ] } }
]
output [
  { name: "y" data_type: TYPE_FP32 dims: [ 2, 1, 2 ] reshape: { shape: [ 4 ] } },
  { name: "square" data_type: TYPE_FP32 dims: [ 1, 1 ] reshape: { shape: [ ] } }
]
instance_group [ { count: 1 kind: KIND_CPU } ]
dynamic_batching {
  preferred_batch_size: [ 8 ]
  max_queue_delay_microseconds: 150
  preserve_ordering: true
  priority_levels: 12
  default_priority_level: 6
  default_queue_policy {
    timeout_action: REJECT
    default_timeout_microseconds: 20000000
    allow_timeout_override: true
    max_queue_size: 64
  }
  priority_queue_policy [
    { key: 1 value: { timeout_action: DELAY default_timeout_microseconds: 1 } }
  ]
}
optimization { graph { level: -1 } }
parameters { key: "execution_mode" value: { string_value: "1" } }
response_cache { enable: true }
model_warmup [
  {
    name: "as clients send it"
    batch_size: 2
    inputs { key: "x" value: { data_type: TYPE_FP32 dims: [ 6 ] random_data: true } }
    inputs { key: "bias" value: { data_type: TYPE_FP32 dims: [ 1 ] zero_data: true } }
  }
]
''')
    # The clients' shapes: what the golden tests send and get.
    outside = {"x": [6], "bias": [1], "y": [2, 1, 2], "square": [1, 1]}
    cases = []
    for rows in (1, 3):
        made = case(path, f"rows-{rows}", {"x": random(24, rows, 2, 3), "bias": random(25, rows)})
        for tensors in (made["inputs"], made["outputs"]):
            for name, tensor in tensors.items():
                tensor["shape"] = [rows, *outside[name]]
        cases.append(made)
    golden("triton-reshape", cases, rtol=1e-5, atol=1e-6)


def hf_snapshot():
    """A HuggingFace image classifier as its repository has it: no version folder, the graph under onnx/."""
    nodes = [
        helper.make_node("Conv", ["pixel_values", "conv"], ["c"], kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["g"]),
        helper.make_node("Flatten", ["g"], ["f"]),
        helper.make_node("Gemm", ["f", "head"], ["logits"]),
    ]
    model = model_of(nodes, [value("pixel_values", T.FLOAT, ["batch_size", 3, 8, 8])], [value("logits", T.FLOAT, ["batch_size", 5])],
                     [constant("conv", random(9, 6, 3, 3, 3)), constant("head", random(10, 6, 5))])
    path = save(model, "hf-snapshot", "onnx/model.onnx")
    labels = ["ant", "bee", "cat", "dog", "elk"]
    for file, content in [
        ("config.json", {
            "architectures": ["ViTForImageClassification"], "model_type": "vit", "image_size": 8, "num_channels": 3,
            "id2label": {str(index): label for index, label in enumerate(labels)},
            "label2id": {label: index for index, label in enumerate(labels)},
            "problem_type": "single_label_classification",
        }),
        ("preprocessor_config.json", {
            "image_processor_type": "ViTImageProcessor", "do_resize": True, "size": {"height": 8, "width": 8}, "resample": 2,
            "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5],
        }),
    ]:
        (STORE / "hf-snapshot" / file).write_text(json.dumps(content, indent=2) + "\n")
    golden("hf-snapshot", [case(path, "two-pictures", {"pixel_values": random(11, 2, 3, 8, 8)})], rtol=1e-4, atol=1e-5)


# --- texts --------------------------------------------------------------------------------------

WORDS = "a an and are bank batch bird blue boat by cat caf city cold dark day dog door down far fast fish for from good green grey has he her his home house in is it lake light long man moon near new night not of old on one open query rain red river road run runs sea she ship shop sky slow snow so star stone street sun that the their they to train tree two under up was water we wind with wood word year you".split()
PIECES = "##s ##ed ##ing ##ly ##er ##e ##n ##t ##r ##a ##o ##i e t r n o i s l d c u m p h g b y f w k v x z j q 0 1 2 3 4 5 6 7 8 9 . , ! ? : ; - ' é 北 京".split()


def texts():
    """Encoders of texts: a sentence-transformers folder with all its steps, and a plain one with other tokens and types."""
    cases = embedder() + token_features()
    lines = ",\n".join("  " + json.dumps(one, ensure_ascii=False, allow_nan=False) for one in cases)
    head = json.dumps({"made_by": f"{MADE_BY}, tokenizers {tokenizers.__version__}"})[:-1]
    (GOLDEN / "text.json").write_text(f'{head}, "cases": [\n{lines}\n]}}\n', encoding="utf-8")


def put(name, file, content):
    path = STORE / name / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")


def embedder():
    """WordPiece tokens; cls and mean, a dense layer, normalized. tokenizer.json says 8 tokens, what counts is 16."""
    name, width, positions = "embedder", 8, 20
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocab = {token: index for index, token in enumerate(special + WORDS + PIECES)}
    path = encoder(name, len(vocab), width, positions, T.INT64, T.FLOAT, 20)
    put(name, "tokenizer.json", {
        "version": "1.0", "truncation": {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0},
        "padding": {"strategy": {"Fixed": 8}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]"},
        "added_tokens": added(special, 0),
        "normalizer": {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": False, "lowercase": True},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "[SEP]", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {token: {"id": token, "ids": [vocab[token]], "tokens": [token]} for token in ("[CLS]", "[SEP]")},
        },
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100, "vocab": vocab},
    })
    put(name, "tokenizer_config.json", {"tokenizer_class": "BertTokenizer", "model_max_length": 512, "pad_token": "[PAD]"})
    put(name, "config.json", {"architectures": ["BertModel"], "model_type": "bert", "hidden_size": width, "max_position_embeddings": positions, "pad_token_id": 0, "vocab_size": len(vocab)})
    put(name, "sentence_bert_config.json", {"max_seq_length": 16, "do_lower_case": False})
    prompts = {"query": "query: ", "document": ""}
    put(name, "config_sentence_transformers.json", {"prompts": prompts, "default_prompt_name": None, "similarity_fn_name": "cosine"})
    modules = ["", "1_Pooling", "2_Dense", "3_Normalize"]
    put(name, "modules.json", [
        {"idx": index, "name": str(index), "path": module, "type": f"sentence_transformers.models.{module[2:] or 'Transformer'}"}
        for index, module in enumerate(modules)
    ])
    put(name, "1_Pooling/config.json", {
        "word_embedding_dimension": width, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True,
        "pooling_mode_max_tokens": False, "pooling_mode_mean_sqrt_len_tokens": False, "include_prompt": True,
    })
    put(name, "2_Dense/config.json", {"in_features": 2 * width, "out_features": 6, "bias": True, "activation_function": "torch.nn.modules.activation.Tanh"})
    weight, bias = random(31, 6, 2 * width) * np.float32(0.2), random(32, 6) * np.float32(0.2)
    safetensors.numpy.save_file({"linear.weight": weight, "linear.bias": bias}, STORE / name / "2_Dense" / "model.safetensors")

    def embedding(hidden):
        pooled = np.concatenate([hidden[0], hidden.mean(axis=0)])
        vector = np.tanh(weight @ pooled + bias)
        return vector / np.linalg.norm(vector)

    run = text_runner(name, path, 16)
    sentences = [
        "the cat runs", "The CAT runs", "", "  the river is cold and the moon is light.  ", "北京 café!",
        "one two one two one two one two one two one two one two one two one two", "unknowable: x9?", "a", "[SEP] the dog",
    ]
    cases = [(text, {}, text.strip()) for text in sentences]
    cases += [("the lake", {"prompt_name": name}, (prompt + "the lake").strip()) for name, prompt in prompts.items()]
    made = []
    for text, parameters, whole in cases:
        ids, hidden = run(whole)
        made.append({"model": name, "text": text, "parameters": parameters, "ids": ids, "atol": 1e-5, "prediction": rounded(embedding(hidden))})
    return made


def token_features():
    """Byte-level tokens, INT32 inputs with positions, FP16 outputs, and no word on how tokens become one vector."""
    name, width, positions = "token-features", 8, 18
    letters = byte_letters()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    vocab = {token: index for index, token in enumerate(special + letters)}
    merges = []
    for word in ("the", "Ġthe", "ing", "and", "Ġand", "er", "on", "re"):
        for end in range(2, len(word) + 1):
            pair = (word[: end - 1], word[end - 1])
            if word[:end] not in vocab:
                vocab[word[:end]] = len(vocab)
                merges.append(list(pair))
    path = encoder(name, len(vocab), width, positions, T.INT32, T.FLOAT16, 40)
    put(name, "tokenizer.json", {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added(special, 0), "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "post_processor": {"type": "RobertaProcessing", "sep": ["</s>", 2], "cls": ["<s>", 0], "trim_offsets": True, "add_prefix_space": False},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "", "end_of_word_suffix": "", "fuse_unk": False, "vocab": vocab, "merges": merges},
    })
    put(name, "tokenizer_config.json", {"tokenizer_class": "RobertaTokenizer", "model_max_length": 1000000000000000019884624838656, "pad_token": "<pad>"})
    put(name, "config.json", {"architectures": ["RobertaModel"], "model_type": "roberta", "hidden_size": width, "max_position_embeddings": positions, "pad_token_id": 1, "vocab_size": len(vocab)})
    # RoBERTa's positions begin behind the padding token.
    run = text_runner(name, path, positions - 2)
    made = []
    for text in ("the", " the singing and\n\tmore", "", "née 北", "another thing on there, and then some more"):
        ids, hidden = run(text)
        made.append({"model": name, "text": text, "parameters": {}, "ids": ids, "atol": 5e-3, "prediction": [[rounded(token) for token in hidden]]})
        vector = hidden.mean(axis=0)
        made.append({"model": name, "text": text, "parameters": {"pooling": "mean", "normalize": True}, "ids": ids, "atol": 1e-3, "prediction": rounded(vector / np.linalg.norm(vector))})
    return made


def added(tokens, first):
    return [
        {"id": first + index, "content": token, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        for index, token in enumerate(tokens)
    ]


def byte_letters():
    """A letter for each byte, as byte-level tokenizers have it: printable ones stand for themselves."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(byte) for byte in printable] + [chr(256 + index) for index in range(256 - len(printable))]


def rounded(vector):
    return [float(f"{number:.8g}") for number in np.asarray(vector, np.float64)]


def text_runner(name, path, max_tokens):
    """Token ids and hidden states of one text, truncated as transformers does."""
    tokenizer = tokenizers.Tokenizer.from_file(str(STORE / name / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_tokens)
    session = session_of(path)

    def run(text):
        encoded_text = tokenizer.encode(text)
        count = len(encoded_text.ids)
        rows = {"input_ids": encoded_text.ids, "attention_mask": [1] * count, "token_type_ids": encoded_text.type_ids, "position_ids": list(range(count))}
        dtype = {"tensor(int64)": np.int64, "tensor(int32)": np.int32}
        inputs = {spec.name: np.array([rows[spec.name]], dtype[spec.type]) for spec in session.get_inputs()}
        return encoded_text.ids, session.run(["last_hidden_state"], inputs)[0][0].astype(np.float64)

    return run


def encoder(name, vocab, width, positions, ids, result, seed):
    """One layer of attention over masked tokens, with random weights."""
    batch = ["batch_size", "sequence_length"]
    with_positions = ids == T.INT32
    names = ["input_ids", "attention_mask", "position_ids" if with_positions else "token_type_ids"]
    nodes = [helper.make_node("Gather", ["words", "input_ids"], ["word"])]
    if with_positions:
        nodes.append(helper.make_node("Gather", ["places", "position_ids"], ["place"]))
        nodes.append(helper.make_node("Add", ["word", "place"], ["x"]))
    else:
        nodes += [
            helper.make_node("Shape", ["input_ids"], ["count"], start=1, end=2),
            helper.make_node("Squeeze", ["count"], ["length"]),
            helper.make_node("Range", ["zero", "length", "one"], ["range"]),
            helper.make_node("Gather", ["places", "range"], ["place"]),
            helper.make_node("Gather", ["types", "token_type_ids"], ["type"]),
            helper.make_node("Add", ["word", "place"], ["placed"]),
            helper.make_node("Add", ["placed", "type"], ["x"]),
        ]
    nodes += [
        helper.make_node("MatMul", ["x", "query"], ["q"]),
        helper.make_node("MatMul", ["x", "key"], ["k"]),
        helper.make_node("MatMul", ["x", "value"], ["v"]),
        helper.make_node("Transpose", ["k"], ["kt"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["q", "kt"], ["scores"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=T.FLOAT),
        helper.make_node("Sub", ["full", "mask"], ["padding"]),
        helper.make_node("Mul", ["padding", "least"], ["bias"]),
        helper.make_node("Unsqueeze", ["bias", "axis"], ["biases"]),
        helper.make_node("Add", ["scores", "biases"], ["masked"]),
        helper.make_node("Softmax", ["masked"], ["weights"], axis=-1),
        helper.make_node("MatMul", ["weights", "v"], ["attended"]),
        helper.make_node("Add", ["x", "attended"], ["sum"]),
        helper.make_node("LayerNormalization", ["sum", "gain", "shift"], ["hidden"], axis=-1),
        helper.make_node("Cast", ["hidden"], ["last_hidden_state"], to=result),
    ]
    tables = {"words": random(seed, vocab, width), "places": random(seed + 1, positions, width), "gain": 1 + random(seed + 5, width), "shift": random(seed + 6, width)}
    tables |= {matrix: random(seed + 2 + index, width, width) for index, matrix in enumerate(("query", "key", "value"))}
    tables |= {"full": np.float32(1), "least": np.float32(-1e9), "axis": np.array([1], np.int64)}
    if not with_positions:
        tables |= {"types": random(seed + 7, 2, width), "zero": np.int64(0), "one": np.int64(1)}
    model = model_of(
        nodes, [value(name, ids, batch) for name in names], [value("last_hidden_state", result, [*batch, width])],
        [constant(table, content) for table, content in tables.items()],
    )
    return save(model, name, "onnx/model.onnx" if with_positions else "model.onnx")


# --- files a server must refuse -----------------------------------------------------------------


def hostile():
    def put(name, content, file="1/model.onnx"):
        path = HOSTILE / name / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    whole = model_of([helper.make_node("Add", ["x", "w"], ["y"])], [value("x", T.FLOAT, [16])], [value("y", T.FLOAT, [16])],
                     [constant("w", random(12, 16))]).SerializeToString(deterministic=True)
    put("corrupt", np.random.default_rng(13).bytes(512))
    put("empty-file", b"")
    put("truncated", whole[: len(whole) // 2])
    put("html", b"<!DOCTYPE html>\n<html><head><title>404: Not Found</title></head><body>Not Found</body></html>\n")
    put("lfs-pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 46743898\n")
    put("unknown-op", bare([helper.make_node("Frobnicate", ["x"], ["y"])]))
    put("cyclic", bare([helper.make_node("Add", ["x", "b"], ["a"]), helper.make_node("Neg", ["a"], ["b"]), helper.make_node("Neg", ["a"], ["y"])]))
    put("nested-5000", nested(5000))

    # A loader that follows these paths would find this file, 16 floats long, and answer with it.
    HOSTILE.mkdir(parents=True, exist_ok=True)
    (HOSTILE / "secret").write_bytes(b"must never leave" * 4)
    put("ext-nested", b"", "1/a/keep")
    for name, location, offset, length in [
        ("ext-parent", "../../secret", None, None),
        ("ext-absolute", "/etc/passwd", 0, 64),
        ("ext-nested", "a/../../../secret", None, None),
        ("ext-backslash", "..\\..\\secret", None, None),
        # ONNX Runtime's own marker for "the data are at this address of the process".
        ("ext-mem-addr", "*/_ORT_MEM_ADDR_/*", 4096, 64),
        ("ext-offset", "weights.bin", 1 << 40, 64),
        ("ext-length", "weights.bin", 0, 1 << 40),
        ("ext-missing", "weights.bin", None, None),
    ]:
        put(name, bare([helper.make_node("Add", ["x", "w"], ["y"])], [external("w", [16], location, offset, length)]))
    for name in ("ext-offset", "ext-length"):
        put(name, random(14, 16).tobytes(), "1/weights.bin")


def bare(nodes, initializers=()):
    return model_of(nodes, [value("x", T.FLOAT, [16])], [value("y", T.FLOAT, [16])], initializers).SerializeToString(deterministic=True)


def nested(depth):
    """A graph in a node in a graph, `depth` deep, written by hand: no library writes it."""

    def field(number, content):
        length, size = b"", len(content)
        while size > 0x7F:
            length, size = length + bytes([size & 0x7F | 0x80]), size >> 7
        return bytes([number << 3 | 2]) + length + bytes([size]) + content

    graph = b""
    for _ in range(depth):
        # GraphProto.node = 1 of NodeProto.attribute = 5 of AttributeProto.g = 6.
        graph = field(1, field(5, field(6, graph)))
    # ModelProto: ir_version = 1, graph = 7, opset_import = 8 (version = 2).
    return bytes([1 << 3, 10]) + field(7, graph) + field(8, bytes([2 << 3, 21]))


if __name__ == "__main__":
    main()
