#!/usr/bin/env python3
"""Compares what Ortus makes of graphs with what Python's tools make of them.

    compare_rewriters.py [--ortus COMMAND] [--modes fp16,int8,int8-static,int4] FOLDER|FILE…

For each graph and form: operators replaced, size, drift from the original (cosine, largest difference, both in Python's
ONNX Runtime on the CPU) and milliseconds of a run, of both variants and the original by turns on one thread. Needs onnx,
onnxruntime, onnxconverter-common, onnx-ir and numpy. Static quantisation is calibrated with the same input by both.
"""
import argparse
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy
import onnx
import onnxruntime
from onnx import TensorProto

onnxruntime.set_default_logger_severity(4)
SAMPLES = 4
# Sizes for names of free dimensions, and ids that every vocabulary has.
SIZES = {"batch": 1, "seq": 32, "height": 224, "width": 224, "len": 32, "num": 1, "sample": 8000}
IDS = 900


def session(path):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def samples(model):
    """Inputs that fit, the same every time."""
    random = numpy.random.default_rng(7)
    found = []
    for _ in range(SAMPLES):
        values = {}
        for spec in model.get_inputs():
            images = len(spec.shape) == 4
            shape = []
            for index, dim in enumerate(spec.shape):
                by_name = next((size for name, size in SIZES.items() if isinstance(dim, str) and name in dim), None)
                shape.append(dim if isinstance(dim, int) and dim > 0 else by_name or (1 if index == 0 else 224 if images else 32))
            if spec.type == "tensor(float)":
                if images:
                    # Pictures are smooth: noise alone would calibrate something else.
                    coarse = random.normal(size=[*shape[:2], *[max(1, size // 8) for size in shape[2:]]])
                    whole = coarse.repeat(8, 2).repeat(8, 3)
                    fill = [(0, 0), (0, 0), *[(0, max(0, size - whole.shape[axis + 2])) for axis, size in enumerate(shape[2:])]]
                    whole = numpy.pad(whole, fill, mode="edge")[:, :, : shape[2], : shape[3]]
                    values[spec.name] = (whole + 0.1 * random.normal(size=shape)).astype(numpy.float32)
                else:
                    values[spec.name] = random.normal(size=shape).astype(numpy.float32)
            elif spec.type in ("tensor(int64)", "tensor(int32)"):
                kind = numpy.int64 if "64" in spec.type else numpy.int32
                ids = random.integers(5, IDS, size=shape)
                fixed = 1 if "mask" in spec.name else 0 if "type" in spec.name else 16000 if spec.name == "sr" else None
                values[spec.name] = (ids if fixed is None else numpy.full(shape, fixed)).astype(kind)
            else:
                raise ValueError(f"no inputs of {spec.type}")
        model.run(None, values)
        found.append(values)
    return found


def python_variant(mode, source, target, inputs):
    if mode == "fp16":
        from onnxconverter_common import float16

        onnx.save(float16.convert_float_to_float16(onnx.load(source), keep_io_types=True, min_positive_val=5.96e-8, max_finite_val=65504.0), target)
    elif mode == "int8":
        from onnxruntime.quantization import QuantType, quantize_dynamic

        kinds = ["MatMul", "Gemm", "Gather"]
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


def our_variant(ortus, mode, source, target, inputs):
    found = target.parent / "found"
    command = [*ortus, "optimize", source, f"--{mode}", "--output", found, "--json", "--max-drift", "2", "--seconds", "0.01", "--rounds", "1"]
    if mode == "int8-static":
        numpy.savez(target.parent / "sample.npz", **inputs[0])
        command += ["--input", target.parent / "sample.npz"]
    done = subprocess.run(command, capture_output=True, text=True)
    graph = next(found.rglob("*.onnx"), None)
    if done.returncode != 0 or graph is None:
        raise ValueError((done.stderr or done.stdout).strip().splitlines()[-1])
    for file in graph.parent.iterdir():
        if file == graph:
            file.rename(target)
        elif file.name == graph.name + ".data":
            file.rename(target.parent / file.name)
    shutil.rmtree(found)
    (target.parent / "sample.npz").unlink(missing_ok=True)


def replaced(path, mode):
    """What of the graph is computed otherwise, as far as its nodes tell."""
    graph = onnx.load(path).graph
    kinds = {tensor.name: tensor.data_type for tensor in graph.initializer}
    makers = {name: node.op_type for node in graph.node for name in node.output}
    count = Counter(node.op_type for node in graph.node)
    if mode == "int4":
        return f"{count['MatMulNBits']}"
    if mode == "fp16":
        floats = [t for t in graph.initializer if t.data_type in (TensorProto.FLOAT, TensorProto.FLOAT16)]
        halves = sum(t.data_type == TensorProto.FLOAT16 for t in floats)
        return f"{halves}/{len(floats)} weights, {count['Cast']} casts"
    if mode == "int8-static":
        of_bytes = [n.op_type for n in graph.node if n.op_type not in ("QuantizeLinear", "DequantizeLinear") and n.input
                    and makers.get(n.input[0]) == "DequantizeLinear"]
        return f"{len(of_bytes)}"
    tables = sum(n.op_type == "Gather" and kinds.get(n.input[0]) in (TensorProto.INT8, TensorProto.UINT8) for n in graph.node)
    return f"{count['MatMulInteger']}" + (f"+{count['ConvInteger']} conv" if count["ConvInteger"] else "") + (f"+{tables} gather" if tables else "")


def drift(first, second, inputs):
    cosine, largest = 1.0, 0.0
    for values in inputs:
        for a, b in zip(first.run(None, values), second.run(None, values)):
            if not isinstance(a, numpy.ndarray) or a.dtype.kind != "f":
                continue
            a, b = a.astype(numpy.float64).ravel(), b.astype(numpy.float64).ravel()
            norm = numpy.linalg.norm(a) * numpy.linalg.norm(b)
            cosine = min(cosine, float(a @ b / norm) if norm else float((a == b).all()))
            largest = max(largest, float(numpy.abs(a - b).max(initial=0)))
    return cosine, largest


def times(sessions, inputs, rounds=7):
    best = [[] for _ in sessions]
    for _ in range(rounds):
        for at, one in enumerate(sessions):
            if one is None:
                continue
            start, runs = time.perf_counter(), 0
            while runs < 2 or time.perf_counter() - start < 0.05:
                one.run(None, inputs[runs % len(inputs)])
                runs += 1
            best[at].append((time.perf_counter() - start) * 1e3 / runs)
    return [float(numpy.median(each)) if each else None for each in best]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+", type=Path)
    parser.add_argument("--ortus", default="target/debug/ortus", type=shlex.split)
    parser.add_argument("--modes", default="fp16,int8,int8-static,int4")
    args = parser.parse_args()
    files = [file for path in args.paths for file in ([path] if path.is_file() else sorted(path.rglob("*.onnx")))]
    print("| graph | form | replaced, ours | Python's | MB, original | ours | Python's | 1−cosine, ours | Python's "
          "| largest difference, ours | Python's | ms, original | ours | Python's |")
    print("| --- " * 14 + "|")
    for file in files:
        try:
            original = session(file)
            inputs = samples(original)
        except Exception as error:  # noqa: BLE001: a graph that cannot be run is told and passed over
            print(f"{file}: {str(error).splitlines()[0][:150]}", file=sys.stderr)
            continue
        name = next((part for part in reversed(file.parent.parts) if not part.isdigit() and part != "onnx"), file.stem)
        name = name if file.stem == "model" else f"{name}/{file.stem}"
        try:
            onnx.checker.check_model(str(file), full_check=True)
            whole = True
        except Exception:  # noqa: BLE001: what the original does not keep, its variants cannot
            whole = False
        for mode in args.modes.split(","):
            with tempfile.TemporaryDirectory() as folder:
                folder = Path(folder)
                sessions, cells = [original, None, None], []
                for at, (label, make) in enumerate([
                    ("ours", lambda target: our_variant(args.ortus, mode, file, target, inputs)),
                    ("python", lambda target: python_variant(mode, file, target, inputs[:1])),
                ]):
                    target = folder / label / "model.onnx"
                    target.parent.mkdir()
                    try:
                        make(target)
                        if label == "ours" and mode != "int4" and whole:
                            onnx.checker.check_model(str(target), full_check=True)
                        one = session(target)
                        cosine, largest = drift(original, one, inputs)
                        cells.append((replaced(target, mode), f"{sum(f.stat().st_size for f in target.parent.iterdir() if f.is_file()) / 1e6:.2f}",
                                      f"{1 - cosine:.1e}", f"{largest:.1e}"))
                        sessions[at + 1] = one
                    except Exception as error:  # noqa: BLE001
                        cells.append((f"✗ {type(error).__name__ if label == 'python' else ''} {str(error).splitlines()[0][:170]}", "", "", ""))
                if all(one is None for one in sessions[1:]):
                    print(f"| {name} | {mode} | {cells[0][0]} | {cells[1][0]} |", flush=True)
                    continue
                ms = ["" if value is None else f"{value:.2f}" for value in times(sessions, inputs)]
                size = f"{file.stat().st_size / 1e6:.2f}"
                row = [name, mode, cells[0][0], cells[1][0], size, cells[0][1], cells[1][1], cells[0][2], cells[1][2], cells[0][3], cells[1][3], *ms]
                print("| " + " | ".join(row) + " |", flush=True)


main()
