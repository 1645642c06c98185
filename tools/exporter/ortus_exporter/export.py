"""From a module to a graph that is checked against it."""

import inspect
import os
import shutil
import sys

import numpy
import onnx
import onnxruntime
import torch
import torchvision

from .describe import describe
from .errors import ExportError, first_line

OPSET = 17
#: The exporter for programs of torch.export writes no older ones.
PROGRAM_OPSET = 18
#: Of the largest value of the output.
RELATIVE_MAX = 1e-3
#: Protobuf holds 2 GiB; the graph itself needs some of it.
SINGLE_FILE_MAX = 1_900_000_000


def export(loaded, request, phase):
    phase("exporting")
    is_program = not isinstance(loaded.module, torch.nn.Module)
    opset = request.get("opset") or OPSET
    if is_program:
        opset = max(opset, PROGRAM_OPSET)
    if not 7 <= opset <= 30:
        raise ExportError("bad_request", f"opset: expected 7 to 30, got {opset}")
    scratch = os.path.join(request["scratch"], "graph")
    os.mkdir(scratch)
    graph = os.path.join(scratch, "model.onnx")
    with torch.no_grad():
        if is_program:
            names, batch = program_to_onnx(loaded, graph, opset)
            difference = check(loaded, graph, loaded.example)
        else:
            names, batch, difference = module_to_onnx(loaded, graph, opset, phase)
    phase("checking")
    size = finish(scratch, graph, request["out"])
    describe(loaded, request["out"])
    return {
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "onnx": onnx.__version__,
        "onnxruntime": onnxruntime.__version__,
        "opset": opset,
        "inputs": names[0],
        "outputs": names[1],
        "input_shapes": [list(value.shape) for value in loaded.example],
        "batch": batch,
        "task": loaded.task,
        "bytes": size,
        "max_difference": difference[0],
        "max_relative_difference": difference[1],
        **loaded.report,
    }


def tensors_of(output):
    """The tensors of a module's output, in order."""
    if isinstance(output, torch.Tensor):
        return [output]
    if isinstance(output, dict):
        output = list(output.values())
    if not isinstance(output, (list, tuple)):
        raise ExportError("unsupported", f"the model gives a {type(output).__name__}, where tensors are needed")
    return [tensor for value in output for tensor in tensors_of(value)]


def names_of(loaded):
    example = loaded.example[0]
    pictures = len(loaded.example) == 1 and example.dim() == 4 and example.shape[1] in (1, 3)
    inputs = ["pixel_values"] if pictures else [f"input_{index}" for index in range(len(loaded.example))]
    outputs = tensors_of(run(loaded.module, loaded.example))
    if not outputs:
        raise ExportError("unsupported", "the model gives no tensor")
    if len(outputs) == 1:
        return inputs, ["logits" if loaded.task or outputs[0].dim() == 2 else "output"]
    return inputs, [f"output_{index}" for index in range(len(outputs))]


def run(module, example):
    call = module if isinstance(module, torch.nn.Module) else module.module()
    try:
        return call(*example)
    except MemoryError:
        raise
    except Exception as error:
        if "DefaultCPUAllocator" in str(error):
            raise MemoryError from error
        shapes = " and ".join(str(list(value.shape)) for value in example)
        raise ExportError("bad_request", f"the model does not take an input of {shapes}: {first_line(error)}; name another input_shape") from error


def module_to_onnx(loaded, graph, opset, phase):
    names = names_of(loaded)
    # A batch of one is a constant to some models; two show whether it varies.
    example = tuple(torch.cat([value, value.flip(-1)]) if value.shape[0] == 1 else value for value in loaded.example)
    for batch, traced in (("dynamic", example), ("fixed", loaded.example)):
        axes = {name: {0: "batch"} for name in names[0] + names[1]} if batch == "dynamic" else {}
        try:
            if batch == "dynamic":
                run(loaded.module, example)
            trace_to_onnx(loaded.module, traced, graph, opset, names, axes)
            phase("checking")
            difference = check(loaded, graph, loaded.example)
            if batch == "dynamic":
                wider = tuple(torch.cat([value, value[:1] * 0.5]) for value in example)
                difference = tuple(map(max, difference, check(loaded, graph, wider)))
            return names, batch, difference
        except ExportError as error:
            if batch == "fixed":
                raise
            print(f"not with a free batch: {error}", file=sys.stderr)
            for name in os.listdir(os.path.dirname(graph)):
                os.unlink(os.path.join(os.path.dirname(graph), name))


def trace_to_onnx(module, example, graph, opset, names, axes):
    keywords = dict(input_names=names[0], output_names=names[1], dynamic_axes=axes, opset_version=opset)
    # The exporter by tracing: it takes TorchScript too, gives smaller graphs, and old versions have no other.
    if "dynamo" in inspect.signature(torch.onnx.export).parameters:
        keywords["dynamo"] = False
    try:
        torch.onnx.export(module, example, graph, **keywords)
    except MemoryError:
        raise
    except Exception as error:
        if "DefaultCPUAllocator" in str(error):
            raise MemoryError from error
        print(error, file=sys.stderr)
        raise ExportError("export_failed", f"PyTorch could not export the model: {first_line(error)}") from error


def program_to_onnx(loaded, graph, opset):
    names = names_of(loaded)
    try:
        torch.onnx.export(
            loaded.module, (), graph, input_names=names[0], output_names=names[1], opset_version=opset, dynamo=True,
            external_data=False, verbose=False,
        )
    except Exception as error:
        print(error, file=sys.stderr)
        raise ExportError("export_failed", f"PyTorch could not export the program: {first_line(error)}") from error
    first = onnx.load(graph, load_external_data=False).graph.input[0].type.tensor_type.shape.dim
    return names, "dynamic" if first and first[0].HasField("dim_param") else "fixed"


def check(loaded, graph, example):
    """The largest difference between PyTorch and ONNX Runtime, absolute and as a part of the largest value."""
    expected = [tensor.detach().numpy() for tensor in tensors_of(run(loaded.module, example))]
    try:
        session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
        feed = {given.name: value.numpy() for given, value in zip(session.get_inputs(), example)}
        got = session.run(None, feed)
    except Exception as error:
        print(error, file=sys.stderr)
        raise ExportError("export_failed", "ONNX Runtime does not run the exported graph") from error
    if [value.shape for value in got] != [value.shape for value in expected]:
        raise ExportError("mismatch", "the exported graph gives other shapes than PyTorch")
    largest = relative = 0.0
    for ours, theirs in zip(got, expected):
        if theirs.size == 0:
            continue
        difference = float(numpy.max(numpy.abs(ours.astype(numpy.float64) - theirs.astype(numpy.float64))))
        scale = float(numpy.max(numpy.abs(theirs.astype(numpy.float64))))
        part = difference / max(scale, 1e-6)
        # Not a number is no agreement either.
        if not part <= RELATIVE_MAX:
            raise ExportError("mismatch", f"the exported graph differs from PyTorch by {difference:.3g} where the largest value is {scale:.3g}")
        largest, relative = max(largest, difference), max(relative, part)
    return largest, relative


def finish(scratch, graph, out):
    """Puts the graph into `out`: one file, or one beside it where that would be too large."""
    size = sum(os.path.getsize(os.path.join(scratch, name)) for name in os.listdir(scratch))
    target = os.path.join(out, "model.onnx")
    if len(os.listdir(scratch)) == 1 and size <= SINGLE_FILE_MAX:
        shutil.move(graph, target)
    elif size <= SINGLE_FILE_MAX:
        onnx.save_model(onnx.load(graph), target)
    else:
        onnx.save_model(onnx.load(graph), target, save_as_external_data=True, location="model.onnx_data")
    return size
