#!/usr/bin/env python3
"""Compares what Ortus makes of graphs with what Python's tools make of them.

    compare_rewriters.py [--ortus COMMAND] [--modes fp16,int8,int8-static,int4] [--only REGEX] [--minutes 12]
                         [--state FILE] [--no-times] [--counts FILE] FOLDER|FILE…

For each graph and form: operators of that form by their kind, size, drift from the original in Python's ONNX Runtime on the CPU
(one minus the cosine: mean and worst over the samples; largest difference; rows whose largest number stands in the same place),
how far the two forms are apart, and milliseconds of a run of both and the original by turns on one thread. Prints one
Markdown table, then what failed.

Samples are what lies beside the graph: arrays of expected.json, its texts by tokenizer.json, the pictures of
../inputs/images beside the store; else made-up ones. Static quantisation is calibrated by both on the first half of them.
Python's tools are given the graph after `quant_pre_process`, as their manual asks, and as it is where that fails.

With --state, rows that the file has are not made again. Fails (exit 1) where an output of ours does not load, is refused by the
ONNX checker while the original is not, lost an input, an output, a type or metadata, or covers less or drifts more than Python's
without being in REASONS or FARTHER. Needs onnx, onnxruntime, onnxconverter-common, onnx-ir, numpy; pillow and tokenizers for real inputs.
"""
import argparse
import json
import logging
import multiprocessing
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

import numpy
import onnx
import onnxruntime
from onnx import TensorProto

onnxruntime.set_default_logger_severity(4)
warnings.simplefilter("ignore")
logging.disable(logging.CRITICAL)
SAMPLES = 16
MODEL_SECONDS = 150
# Sizes for names of free dimensions, and ids that every vocabulary has.
SIZES = {"batch": 1, "seq": 32, "height": 224, "width": 224, "len": 32, "num": 1, "sample": 8000}
IDS = 900
# (factor, offset) of pictures of 0 to 255, by a part of the model's path; others take ImageNet's mean and deviation.
PICTURES = {"yolox": (1, 0), "ultraface": (1 / 128, -127 / 128), "mnist": (1, 0)}
PLAIN = {"tensor(bool)": "bool", **{f"tensor({kind})": kind for kind in ["int8", "int16", "uint8", "uint16", "uint32", "uint64"]}}
DRIFT_FLOOR = {"fp16": 1e-5, "int8": 5e-4, "int8-static": 2e-3, "int4": 2e-2}
# Why less of a kind is covered than Python's tools do; the document has them in full.
REASONS = {
    ("int8", "Gather"): "small tables are left",
    ("int8", "Conv"): "convolutions by dynamic bytes are slower",
    ("int4", "MatMul"): "small constants are left",
    ("int8-static", "*"): "what lies between and gains nothing stays in 32 bits",
}
# Drifts that are farther than Python's, and why.
FARTHER = {}


def session(path):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def folder_of(graph):
    """The model's folder in the store."""
    return next((folder for folder in [graph.parent, *graph.parents] if (folder / "expected.json").exists()), graph.parent)


def sizes_of(graph):
    """Of free dimensions: what the model's configuration says, else what graphs of that kind are given."""
    file = folder_of(graph) / "config.json"
    side = json.loads(file.read_text()).get("image_size") if file.exists() else None
    height, width = side if isinstance(side, list) else (side or 224, side or 224)
    return {**SIZES, "height": height, "width": width}


def shape_of(spec, sizes):
    images, shape = len(spec.shape) == 4, []
    sound = len(spec.shape) == 2 and "input_values" in spec.name
    for index, dim in enumerate(spec.shape):
        by_name = next((size for name, size in sizes.items() if isinstance(dim, str) and name in dim), None)
        by_place = 1 if index == 0 else 3 if images and index == 1 else sizes["height"] if images else 32
        by_name = 3 if images and index == 1 else 8000 if sound and index == 1 else by_name
        shape.append(dim if isinstance(dim, int) and dim > 0 else by_name or by_place)
    return shape


def real_samples(graph, specs):
    folder = folder_of(graph)
    file = folder / "expected.json"
    cases = json.loads(file.read_text()).get("cases", []) if file.exists() else []
    names = {spec.name for spec in specs}
    kinds = {"FP32": "float32", "FP64": "float64", "FP16": "float16", "BOOL": "bool"}
    found = []
    for case in cases:
        arrays = case.get("inputs")
        if isinstance(case.get("npz"), str):
            with numpy.load(folder / case["npz"]) as held:
                found.append({name: held[name] for name in held.files if name in names})
        elif isinstance(arrays, dict) and names <= set(arrays) and all(isinstance(a, dict) for a in arrays.values()):
            if all(array["dtype"] != "BYTES" and isinstance(array.get("data"), list) for array in arrays.values()):
                found.append({name: numpy.array(array["data"], kinds.get(array["dtype"], array["dtype"].lower()))
                              .reshape(array["shape"]) for name, array in arrays.items() if name in names})
    found = [one for one in found if set(one) == names]
    if found:
        return found
    if (folder / "tokenizer.json").exists() and "input_ids" in names:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.no_padding()
        tokenizer.enable_truncation(64)
        texts = []

        def gather(value):
            for one in value.values() if isinstance(value, dict) else value if isinstance(value, list) else []:
                if isinstance(one, str) and len(one.split()) > 2:
                    texts.append(one)
                gather(one)

        gather([case.get("input") for case in cases])
        texts = list(dict.fromkeys(texts))[:SAMPLES]
        # Few texts tell little: what two say together is a text too.
        texts += [f"{one} {other}" for one in texts for other in texts if one != other][: max(0, SAMPLES - len(texts))]
        for text in texts:
            coded = tokenizer.encode(text)
            columns = {"input_ids": coded.ids, "attention_mask": coded.attention_mask, "token_type_ids": coded.type_ids}
            if names <= set(columns):
                found.append({spec.name: numpy.array([columns[spec.name]], numpy.int64) for spec in specs})
        # A few texts are not enough to tell two drifts apart: ids of any tokens, of several lengths, go with them.
        random = numpy.random.default_rng(3)
        while found and len(found) < SAMPLES:
            length = int(random.integers(5, 60))
            columns = {"input_ids": random.integers(5, IDS, length), "attention_mask": numpy.ones(length), "token_type_ids": numpy.zeros(length)}
            found.append({spec.name: columns[spec.name].astype(numpy.int64)[None] for spec in specs})
        return found
    pictures = folder.parent.parent / "inputs" / "images"
    if len(specs) == 1 and len(specs[0].shape) == 4 and specs[0].type in ("tensor(float)", "tensor(float16)") and pictures.is_dir():
        from PIL import Image

        batch, channels, height, width = shape_of(specs[0], sizes_of(graph))
        if channels not in (1, 3):
            return []
        for path in sorted(pictures.glob("*.png")):
            try:
                image = Image.open(path).convert("RGB" if channels == 3 else "L").resize((width, height))
            except Exception:  # noqa: BLE001: some are broken on purpose
                continue
            pixels = numpy.asarray(image, numpy.float32).reshape(height, width, channels).transpose(2, 0, 1)
            scale = next((scale for name, scale in PICTURES.items() if name in str(graph)), None)
            if scale:
                pixels = pixels * scale[0] + scale[1]
            else:
                mean, deviation = numpy.float32([0.485, 0.456, 0.406]), numpy.float32([0.229, 0.224, 0.225])
                pixels = (pixels / 255 - mean[:channels, None, None]) / deviation[:channels, None, None]
            kind = numpy.float16 if "16" in specs[0].type else numpy.float32
            found.append({specs[0].name: numpy.repeat(pixels[None], batch, 0).astype(kind)})
    return found


def made_up_samples(specs, sizes):
    """Inputs that fit, the same every time."""
    random = numpy.random.default_rng(7)
    found = []
    for _ in range(SAMPLES):
        values = {}
        for spec in specs:
            shape = shape_of(spec, sizes)
            if spec.type in ("tensor(float)", "tensor(float16)", "tensor(double)"):
                kind = {"tensor(float16)": numpy.float16, "tensor(double)": numpy.float64}.get(spec.type, numpy.float32)
                values[spec.name] = random.normal(size=shape).astype(kind)
            elif spec.type in ("tensor(int64)", "tensor(int32)"):
                ids = random.integers(5, 250 if "bytes" in spec.name else IDS, size=shape)
                fixed = 1 if "mask" in spec.name else 0 if "type" in spec.name else 16000 if spec.name == "sr" else None
                values[spec.name] = (ids if fixed is None else numpy.full(shape, fixed)).astype(
                    numpy.int64 if "64" in spec.type else numpy.int32)
            elif spec.type == "tensor(string)":
                values[spec.name] = random.choice(["a", "good wine", "b"], size=shape).astype(object)
            elif spec.type in PLAIN:
                values[spec.name] = random.integers(0, 2, size=shape).astype(PLAIN[spec.type])
            else:
                raise ValueError(f"no inputs of {spec.type}")
        found.append(values)
    return found


def samples(graph, model):
    specs = model.get_inputs()
    found, real = [], True
    for values in real_samples(graph, specs)[:SAMPLES]:
        try:
            model.run(None, values)
            found.append(values)
        except Exception:  # noqa: BLE001: some are errors on purpose
            continue
    if not found:
        found, real = made_up_samples(specs, sizes_of(graph)), False
        model.run(None, found[0])
    return found, real


def python_variant(mode, source, target, inputs):
    if mode == "fp16":
        from onnxconverter_common import float16

        onnx.save(float16.convert_float_to_float16(onnx.load(source), keep_io_types=True, min_positive_val=5.96e-8, max_finite_val=65504.0), target)
    elif mode == "int8":
        from onnxruntime.quantization import QuantType, quantize_dynamic

        # All that it takes by itself but for convolutions.
        kinds = ["MatMul", "Gemm", "Gather", "LSTM", "Attention", "EmbedLayerNormalization"]
        quantize_dynamic(source, target, op_types_to_quantize=kinds, per_channel=True, weight_type=QuantType.QInt8)
    elif mode == "int8-static":
        from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

        class Reader(CalibrationDataReader):
            def __init__(self):
                self.left = iter(inputs)

            def get_next(self):
                return next(self.left, None)

        quantize_static(source, target, Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
                        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8)
    elif mode == "int4":
        from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

        quantizer = MatMulNBitsQuantizer(onnx.load(source), block_size=32, is_symmetric=True, accuracy_level=4)
        quantizer.process()
        quantizer.model.save_model_to_file(str(target))


def prepared_variant(mode, source, target, inputs):
    """After the preparation that Python's manual asks for, else without."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared, given = target.parent / "prepared.onnx", source
    first = None
    try:
        model = onnx.load(source)
        if mode.startswith("int8") and max((s.version for s in model.opset_import if s.domain in ("", "ai.onnx")), default=13) < 13:
            raised = target.parent / "prepared.onnx.raised"
            onnx.save(onnx.version_converter.convert_version(model, 13), raised)
            source = raised
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        python_variant(mode, prepared, target, inputs)
        session(target)
        return
    except Exception as error:  # noqa: BLE001: told below, where the other way fails too
        first = error
    finally:
        for file in target.parent.glob("prepared.onnx*"):
            file.unlink()
    for file in target.parent.iterdir():
        file.unlink()
    try:
        python_variant(mode, given, target, inputs)
        session(target)
    except Exception:  # noqa: BLE001
        raise first from None


def our_variant(ortus, mode, source, target, inputs):
    found = target.parent / "found"
    numpy.savez(target.parent / "sample.npz", **{name: a.astype("U") if a.dtype == object else a for name, a in inputs[0].items()})
    command = [*ortus, "optimize", source, f"--{mode}", "--output", found, "--json", "--max-drift", "2", "--seconds", "0.01",
               "--rounds", "1", "--input", target.parent / "sample.npz"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=MODEL_SECONDS / 2)
    (target.parent / "sample.npz").unlink()
    graph = next(found.rglob("*.onnx"), None)
    if done.returncode != 0 or graph is None:
        raise ValueError((done.stderr or done.stdout).strip().splitlines()[-1])
    for file in graph.parent.iterdir():
        if file == graph:
            file.rename(target)
        elif file.name == graph.name + ".data":
            file.rename(target.parent / file.name)
    shutil.rmtree(found)


def stacked(inputs, specs):
    """All samples as one where rows can be put together, for calibration; texts are filled up with what the mask hides."""
    if not all(spec.shape and isinstance(spec.shape[0], str) for spec in specs):
        return inputs[0]
    masked = any("mask" in name for name in inputs[0])
    longest = {name: max(values[name].shape[1] for values in inputs) for name in inputs[0] if inputs[0][name].ndim == 2}
    rows = {}
    for name in inputs[0]:
        each = [values[name] for values in inputs]
        if masked and name in longest:
            each = [numpy.pad(one, [(0, 0), (0, longest[name] - one.shape[1])]) for one in each]
        if len({one.shape[1:] for one in each}) > 1:
            return inputs[0]
        rows[name] = numpy.concatenate(each)
    return rows


def counts(path, mode, original):
    """Operators of the form, by the kind that they were; those that the original had in bytes already are not the tool's."""
    if mode == "fp16":
        return halves(path)
    found = in_bytes(path)
    found.subtract(in_bytes(original))
    return {kind: count for kind, count in sorted(found.items()) if count > 0}


def in_bytes(path):
    graph = onnx.load(path).graph
    kinds = {tensor.name: tensor.data_type for tensor in graph.initializer}
    makers = {name: node.op_type for node in graph.node for name in node.output}
    takers = {}
    for node in graph.node:
        for name in node.input:
            takers.setdefault(name, set()).add(node.op_type)
    renamed = {"MatMulNBits": "MatMul", "MatMulInteger": "MatMul", "ConvInteger": "Conv", "DynamicQuantizeLSTM": "LSTM"}
    found = Counter()
    for node in graph.node:
        if node.op_type in renamed:
            found[renamed[node.op_type]] += 1
        elif node.op_type == "Gather" and kinds.get(node.input[0]) in (TensorProto.INT8, TensorProto.UINT8):
            found["Gather"] += 1
        elif node.op_type not in ("QuantizeLinear", "DequantizeLinear") and node.input and makers.get(node.input[0]) == "DequantizeLinear":
            # Products give numbers where nothing takes bytes; others are in bytes only where they give such.
            gives = any("QuantizeLinear" in takers.get(name, ()) for name in node.output)
            if gives or node.op_type in ("MatMul", "Gemm", "Conv", "Gather"):
                found["MatMul" if node.op_type == "Gemm" else node.op_type] += 1
    return found


def halves(path):
    graph = onnx.shape_inference.infer_shapes(onnx.load(path)).graph
    kinds = {value.name: value.type.tensor_type.elem_type for value in [*graph.value_info, *graph.output, *graph.input]}
    kinds.update({tensor.name: tensor.data_type for tensor in graph.initializer})
    found = Counter()
    for node in graph.node:
        if node.op_type in ("Cast", "Constant"):
            continue
        if any(kinds.get(name) == TensorProto.FLOAT16 for name in [*node.input, *node.output]):
            found[node.op_type] += 1
    return dict(sorted(found.items()))


def checks(path):
    try:
        onnx.checker.check_model(str(path), full_check=True)
        return ""
    except Exception as error:  # noqa: BLE001: the message is what is wanted
        return str(error).strip().splitlines()[0][:120] or "refused"


def face(path):
    """What a user of the graph sees of it."""
    model = onnx.load(path, load_external_data=False)
    constants = {tensor.name for tensor in model.graph.initializer}
    values = lambda many: [(v.name, v.type.SerializeToString(deterministic=True).hex()) for v in many if v.name not in constants]  # noqa: E731
    metadata = sorted((entry.key, entry.value) for entry in model.metadata_props)
    return values(model.graph.input), values(model.graph.output), metadata, model.producer_name, model.doc_string


def numbers(values):
    return [value.astype(numpy.float64) if isinstance(value, numpy.ndarray) and value.dtype.kind in "fiu" else None for value in values]


def drift(first, second):
    """Of outputs, a list for each sample."""
    apart, largest, rows, same = [], 0.0, 0, 0
    for one, other in zip(first, second):
        worst = 0.0
        for a, b in zip(one, other):
            if a is None or b is None or a.shape != b.shape:
                continue
            finite = numpy.isfinite(a) & numpy.isfinite(b)
            x, y = a[finite], b[finite]
            norm = numpy.linalg.norm(x) * numpy.linalg.norm(y)
            worst = max(worst, 1 - float(x @ y / norm) if norm else float(not (x == y).all()))
            largest = max(largest, float(numpy.abs(x - y).max(initial=0)))
            if a.ndim and a.shape[-1] > 1:
                rows += a[..., 0].size
                same += int((a.argmax(-1) == b.argmax(-1)).sum())
        apart.append(max(worst, 0.0))
    return {"mean": float(numpy.mean(apart)), "worst": max(apart), "max_abs": largest, "top1": same / rows if rows else 1.0}


def times(sessions, inputs, rounds=5):
    best = [[] for _ in sessions]
    for _ in range(rounds):
        for at, one in enumerate(sessions):
            if one is None:
                continue
            start, runs = time.perf_counter(), 0
            while runs < 2 or time.perf_counter() - start < 0.04:
                one.run(None, inputs[runs % len(inputs)])
                runs += 1
            best[at].append((time.perf_counter() - start) * 1e3 / runs)
    return [float(numpy.median(each)) if each else None for each in best]


def compare(file, modes, args, send):
    original = session(file)
    inputs, real = samples(file, original)
    outputs = [numbers(original.run(None, values)) for values in inputs]
    whole, before = checks(file), face(file)
    # Half of them, so that what both were calibrated on is not all that they are judged by.
    calibration = [stacked(inputs[: max(1, len(inputs) // 2)], original.get_inputs())]
    try:
        original.run(None, calibration[0])
    except Exception:  # noqa: BLE001: one that takes no rows together after all
        calibration = inputs[:1]
    for mode in modes:
        row = {"mode": mode, "samples": len(inputs), "real": real, "checker": whole, "bytes": size_of(file)}
        with tempfile.TemporaryDirectory() as folder:
            sessions, answers = [original, None, None], [outputs, None, None]
            for at, (label, make) in enumerate([
                ("ours", lambda target: our_variant(args.ortus, mode, file, target, calibration)),
                ("python", lambda target: prepared_variant(mode, file, target, calibration)),
            ], 1):
                target = Path(folder) / label / "model.onnx"
                target.parent.mkdir()
                row[label] = side = {}
                try:
                    make(target)
                    side["made"] = True
                    side["bytes"] = sum(f.stat().st_size for f in target.parent.iterdir() if f.is_file())
                    side["counts"] = counts(target, mode, file)
                    side["checker"] = checks(target)
                    side["kept"] = face(target) == before
                    one = session(target)
                    answers[at] = [numbers(one.run(None, values)) for values in inputs]
                    side["drift"] = drift(outputs, answers[at])
                    sessions[at] = one
                except Exception as error:  # noqa: BLE001: an outcome like others
                    side["error"] = f"{type(error).__name__ if label == 'python' else ''} {str(error).splitlines()[0]}".strip()[:200]
            if all(answers):
                row["apart"] = drift(answers[1], answers[2])["mean"]
            if not args.no_times and any(sessions[1:]):
                row["ms"] = times(sessions, inputs)
        send(row)


def size_of(graph):
    """With what lies outside."""
    names = {entry.value for tensor in onnx.load(graph, load_external_data=False).graph.initializer
             for entry in tensor.external_data if entry.key == "location"}
    return graph.stat().st_size + sum((graph.parent / name).stat().st_size for name in names)


def work(pipe, file, modes, args):
    try:
        compare(file, modes, args, pipe.send)
    except Exception as error:  # noqa: BLE001: a graph that cannot be run is told and passed over
        pipe.send({"skipped": str(error).splitlines()[0][:150]})
    pipe.close()


def problems(name, row):
    """What of ours is worse than it may be."""
    ours, python, mode = row["ours"], row["python"], row["mode"]
    found = []
    if ours.get("made"):
        if "drift" not in ours:
            found.append(f"does not run: {ours['error']}")
        if ours.get("checker") and not row["checker"]:
            found.append(f"the checker refuses it: {ours['checker']}")
        if ours.get("kept") is False:
            found.append("inputs, outputs or metadata differ")
    elif "no variant can be made" not in ours.get("error", ""):
        found.append(ours.get("error", "not made"))
    if "drift" in python:
        for kind, count in python.get("counts", {}).items():
            less = ours.get("counts", {}).get(kind, 0) < count
            if less and mode != "fp16" and not {(mode, kind), (mode, "*")} & set(REASONS):
                found.append(f"{kind}: {ours.get('counts', {}).get(kind, 0)} of Python's {count}")
        if "drift" in ours:
            mine, its = ours["drift"]["mean"], python["drift"]["mean"]
            covered = sum(python["counts"].values()) >= sum(ours["counts"].values())
            if mine > 1.5 * its + DRIFT_FLOOR[mode] * 0.1 and covered and (name, mode) not in FARTHER:
                found.append(f"drifts {mine:.1e} beside {its:.1e}")
    return [f"{name} {mode}: {what}" for what in found]


def print_row(name, row):
    def kinds(side):
        if "drift" not in side:
            error = side.get("error", "")
            nothing = re.search(r"\(it has none\)|can be quantised statically$", error)
            return "nothing to do" if nothing else "✗ " + error.replace("error: no variant can be made: ", "")[:90].replace("|", "/")
        return ", ".join(f"{count} {kind}" for kind, count in side["counts"].items()) or "nothing"

    def figures(key, form):
        return [form(side["drift"][key]) if "drift" in side else "" for side in (row["ours"], row["python"])]

    if row["mode"] == "fp16":
        counted = [f"{sum(side['counts'].values())}" if "drift" in side else kinds(side) for side in (row["ours"], row["python"])]
    else:
        counted = [kinds(side) for side in (row["ours"], row["python"])]
    mb = [f"{side['bytes'] / 1e6:.2f}" if "drift" in side else "" for side in (row["ours"], row["python"])]
    ms = ["" if value is None else f"{value:.2f}" for value in row.get("ms", [None] * 3)]
    checked = "✓" if row["ours"].get("checker") == "" and row["ours"].get("kept") else "as the original" if row["ours"].get("checker") and row["checker"] else "" if "drift" not in row["ours"] else "✗"
    cells = [name + ("" if row["real"] else " °"), row["mode"], *counted, f"{row['bytes'] / 1e6:.2f}", *mb]
    for key, form in [("mean", "{:.1e}".format), ("worst", "{:.1e}".format), ("max_abs", "{:.1e}".format), ("top1", "{:.2f}".format)]:
        cells.append(" / ".join(figures(key, form)))
    cells += [f"{row['apart']:.1e}" if "apart" in row else "", checked, " / ".join(ms) if any(ms) else ""]
    print("| " + " | ".join(cells) + " |", flush=True)


def named(file):
    name = next((part for part in reversed(file.resolve().parent.parts) if not part.isdigit() and part != "onnx"), file.stem)
    return name if file.stem == "model" else f"{name}/{file.stem}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+", type=Path)
    parser.add_argument("--ortus", default="target/debug/ortus", type=shlex.split)
    parser.add_argument("--modes", default="fp16,int8,int8-static,int4")
    parser.add_argument("--only", default="", help="models whose name this expression finds")
    parser.add_argument("--minutes", default=12.0, type=float, help="what is not begun by then is left")
    parser.add_argument("--state", type=Path, help="rows are kept here, and not made again")
    parser.add_argument("--no-times", action="store_true")
    parser.add_argument("--counts", type=Path, help="writes what Python's tools covered, for the Rust tests")
    args = parser.parse_args()
    args.ortus = [str(Path(args.ortus[0]).resolve()), *args.ortus[1:]] if Path(args.ortus[0]).exists() else args.ortus
    began = time.monotonic()
    files = [file for path in args.paths for file in ([path] if path.is_file() else sorted(path.rglob("*.onnx")))]
    files = [file for file in files if re.search(args.only, named(file)) and ".ortus" not in file.parts]
    kept = {}
    if args.state and args.state.exists():
        kept = {(row["name"], row["mode"]): row for row in map(json.loads, args.state.read_text().splitlines())}
    columns = ["model (° made-up inputs)", "form", "operators: ours", "Python's", "MB", "ours", "Python's",
               "1 − cosine, mean: ours / Python's", "worst", "largest difference", "same winner", "ours to Python's", "checker",
               "ms: original / ours / Python's"]
    print("| " + " | ".join(columns) + " |\n" + "| --- " * len(columns) + "|")
    failures, left, all_rows = [], [], []
    for file in files:
        name = named(file) if not file.resolve().parent.name == "3" else named(file) + "/3"
        rows, modes = [], []
        for mode in args.modes.split(","):
            if (name, mode) in kept:
                rows.append(kept[name, mode])
            else:
                modes.append(mode)
        if modes and time.monotonic() - began > args.minutes * 60:
            left.append(name)
            modes = []
        if modes:
            ours, theirs = multiprocessing.Pipe(duplex=False)
            child = multiprocessing.Process(target=work, args=(theirs, file, modes, args))
            child.start()
            theirs.close()
            until = time.monotonic() + MODEL_SECONDS
            try:
                while ours.poll(max(0, until - time.monotonic())):
                    row = {"name": name, **ours.recv()}
                    if "skipped" in row:
                        print(f"{name}: {row['skipped']}", file=sys.stderr)
                        break
                    rows.append(row)
                    if args.state:
                        with args.state.open("a") as state:
                            state.write(json.dumps(row) + "\n")
                else:
                    failures.append(f"{name}: took more than {MODEL_SECONDS} s")
            except EOFError:
                pass
            child.kill()
            child.join()
        for row in rows:
            all_rows.append(row)
            failures += problems(name, row)
            if "drift" in row["ours"] or sum(row["python"].get("counts", {}).values()):
                print_row(name, row)
    if args.counts:
        write_counts(args.counts, all_rows)
    if left:
        print(f"\nNo time was left for {', '.join(left)}.")
    for failure in failures:
        print(f"- {failure}")
    sys.exit(bool(failures or left))


def write_counts(path, rows):
    models = {}
    for row in rows:
        if "drift" in row["python"] and sum(row["python"]["counts"].values()):
            models.setdefault(row["name"], {})[row["mode"]] = {
                "operators": row["python"]["counts"], "bytes": row["python"]["bytes"], "drift": float(f"{row['python']['drift']['mean']:.2e}")}
    versions = {"onnxruntime": onnxruntime.__version__, "onnx": onnx.__version__}
    made = {"made_by": "tools/compare_rewriters.py --no-times --counts tests/golden/rewriters.json ../shared/models/store",
            "what": "operators that Python's tools cover by kind, bytes of their graphs and mean drift (1 - cosine)", **versions, "models": models}
    path.write_text(json.dumps(made, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
