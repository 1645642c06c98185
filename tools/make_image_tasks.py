#!/usr/bin/env python3
"""Writes tests/fixtures/store/{segments,depths,patches} and tests/golden/image_tasks.json.

Usage: python tools/make_image_tasks.py   (after tools/make_fixtures.py, which clears the store)

Three small graphs with random weights and a HuggingFace folder each: a SegFormer-like segmenter, a depth model whose
pictures keep their shape, a ViT-like encoder. The golden file has what the documented steps of transformers' pipelines
give for pictures of tests/fixtures/images, computed here with Pillow and NumPy:

- preparation: EXIF turned, RGB, Pillow's resize, `(x / 255 - mean) / std`;
- segmentation: scores enlarged bilinearly (as PyTorch without align_corners), best class, COCO run lengths by column;
- depth: enlarged by cubic convolution (A = -0.75), `(x - min) / (max - min) * 255`, cut to whole levels.

Tolerances: `pixels` is the share of a mask's pixels that may differ, `levels` the largest difference of a grey picture,
`atol` that of the model's own numbers.
"""

import base64
import json
import pathlib

import numpy as np
import onnx
import onnxruntime
import PIL
from onnx import TensorProto as T
from onnx import helper, numpy_helper
from PIL import Image, ImageOps

ROOT = pathlib.Path(__file__).resolve().parent.parent
STORE = ROOT / "tests/fixtures/store"
PICTURES = ROOT / "tests/fixtures/images"
GOLDEN = ROOT / "tests/golden/image_tasks.json"
INPUTS = ["rgb.png", "rotated.png", "grey.png"]
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
LABELS = ["sky", "sea", "sand", "rock", "tree"]


def main():
    models = [segments(), depths(), patches()]
    made_by = f"tools/make_image_tasks.py: onnxruntime {onnxruntime.__version__} CPU, pillow {PIL.__version__}, numpy {np.__version__}"
    lines = ",\n".join("  " + json.dumps(one) for one in models)
    GOLDEN.write_text(f'{{"made_by": {json.dumps(made_by)}, "models": [\n{lines}\n]}}\n')


# --- models -------------------------------------------------------------------------------------


def random(seed, *shape):
    fan_in = int(np.prod(shape[1:])) or 1
    return (np.random.default_rng(seed).standard_normal(shape) / np.sqrt(fan_in)).astype(np.float32)


def constant(name, array):
    return numpy_helper.from_array(np.asarray(array), name)


def conv(source, weights, target, stride, side=3):
    return helper.make_node("Conv", [source, weights], [target], kernel_shape=[side, side], pads=[side // 2] * 4 if side % 2 else [0] * 4,
                            strides=[stride, stride])


def save(name, nodes, picture, outputs, initializers, config, preprocessor):
    inputs = [helper.make_tensor_value_info("pixel_values", T.FLOAT, picture)]
    outputs = [helper.make_tensor_value_info(output, T.FLOAT, shape) for output, shape in outputs]
    graph = helper.make_graph(nodes, "graph", inputs, outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10, producer_name="ortus-fixtures")
    onnx.checker.check_model(model)
    folder = STORE / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_bytes(model.SerializeToString(deterministic=True))
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor, indent=2) + "\n")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])


def segments():
    nodes = [conv("pixel_values", "w1", "a", 2), helper.make_node("Relu", ["a"], ["b"]), conv("b", "w2", "c", 2),
             helper.make_node("Relu", ["c"], ["d"]), conv("d", "w3", "logits", 1)]
    weights = [constant("w1", random(1, 8, 3, 3, 3)), constant("w2", random(2, 8, 8, 3, 3)), constant("w3", random(3, 5, 8, 3, 3))]
    session = save(
        "segments", nodes, ["batch", 3, "height", "width"], [("logits", ["batch", 5, "h", "w"])], weights,
        {"architectures": ["SegformerForSemanticSegmentation"], "model_type": "segformer",
         "id2label": {str(index): label for index, label in enumerate(LABELS)}},
        {"image_processor_type": "SegformerImageProcessor", "do_resize": True, "size": {"height": 64, "width": 96}, "resample": 2,
         "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": MEAN, "image_std": STD})
    cases = []
    for name in INPUTS:
        picture = load(name)
        logits = session.run(["logits"], {"pixel_values": tensor_of(picture, 64, 96, Image.BILINEAR)})[0][0]
        classes = enlarged(logits, picture.height, picture.width, linear).argmax(0)
        masks = [{"label": LABELS[index], "size": list(classes.shape), "counts": runs(classes == index)} for index in np.unique(classes)]
        cases.append({"file": name, "masks": masks})
    return {"name": "segments", "tolerance": {"pixels": 0.0005}, "cases": cases}


def depths():
    nodes = [conv("pixel_values", "w1", "a", 2), helper.make_node("Relu", ["a"], ["b"]), conv("b", "w2", "c", 1),
             helper.make_node("Sigmoid", ["c"], ["d"]), helper.make_node("Squeeze", ["d", "axis"], ["predicted_depth"])]
    weights = [constant("w1", random(4, 8, 3, 3, 3)), constant("w2", random(5, 1, 8, 3, 3)), constant("axis", np.array([1]))]
    size, multiple = 42, 6
    session = save(
        "depths", nodes, ["batch", 3, "height", "width"], [("predicted_depth", ["batch", "h", "w"])], weights,
        {"architectures": ["DPTForDepthEstimation"], "model_type": "dpt"},
        {"image_processor_type": "DPTImageProcessor", "do_resize": True, "size": {"height": size, "width": size}, "resample": 3,
         "keep_aspect_ratio": True, "ensure_multiple_of": multiple, "do_rescale": True, "rescale_factor": 1 / 255,
         "do_normalize": True, "image_mean": MEAN, "image_std": STD})
    cases = []
    for name in INPUTS:
        picture = load(name)
        by_height, by_width = size / picture.height, size / picture.width
        by = by_width if abs(1 - by_width) < abs(1 - by_height) else by_height
        height, width = (round(by * side / multiple) * multiple for side in (picture.height, picture.width))
        depth = session.run(["predicted_depth"], {"pixel_values": tensor_of(picture, height, width, Image.BICUBIC)})[0][0]
        large = enlarged(depth[None], picture.height, picture.width, cubic)[0]
        grey = ((large - large.min()) / (large.max() - large.min()) * 255).astype(np.uint8)
        cases.append({"file": name, "size": list(grey.shape), "depth": base64.b64encode(grey.tobytes()).decode()})
    return {"name": "depths", "tolerance": {"levels": 1}, "cases": cases}


def patches():
    nodes = [conv("pixel_values", "w1", "a", 8, side=8), helper.make_node("Reshape", ["a", "shape"], ["b"]),
             helper.make_node("Transpose", ["b"], ["c"], perm=[0, 2, 1]), helper.make_node("Tanh", ["c"], ["last_hidden_state"]),
             helper.make_node("ReduceMean", ["last_hidden_state", "axis"], ["d"], keepdims=0),
             helper.make_node("MatMul", ["d", "w2"], ["pooler_output"])]
    weights = [constant("w1", random(6, 6, 3, 8, 8)), constant("shape", np.array([0, 6, -1])), constant("axis", np.array([1])),
               constant("w2", random(7, 6, 6))]
    session = save(
        "patches", nodes, ["batch", 3, 32, 32], [("last_hidden_state", ["batch", 16, 6]), ("pooler_output", ["batch", 6])], weights,
        {"architectures": ["ViTModel"], "model_type": "vit"},
        {"image_processor_type": "ViTImageProcessor", "do_resize": True, "size": {"height": 32, "width": 32}, "resample": 2,
         "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": MEAN, "image_std": STD})
    cases = []
    for name in INPUTS:
        hidden, pooled = session.run(["last_hidden_state", "pooler_output"], {"pixel_values": tensor_of(load(name), 32, 32, Image.BILINEAR)})
        cases.append({"file": name, "hidden": np.round(hidden.astype(float), 6).tolist(), "pooled": np.round(pooled[0].astype(float), 6).tolist()})
    return {"name": "patches", "tolerance": {"atol": 0.0001}, "cases": cases}


# --- the reference's steps ----------------------------------------------------------------------


def load(name):
    return ImageOps.exif_transpose(Image.open(PICTURES / name)).convert("RGB")


def tensor_of(picture, height, width, resample):
    pixels = np.asarray(picture.resize((width, height), resample)).astype(np.float64) / 255
    return ((pixels - MEAN) / STD).astype(np.float32).transpose(2, 0, 1)[None]


def linear(size, target):
    """The matrix that enlarges an axis of `size` numbers to `target`."""
    matrix = np.zeros((target, size), np.float32)
    for at in range(target):
        position = max((at + 0.5) * size / target - 0.5, 0.0)
        low = int(position)
        matrix[at, low] += 1 - (position - low)
        matrix[at, min(low + 1, size - 1)] += position - low
    return matrix


def cubic(size, target):
    def weight(x, a=-0.75):
        x = abs(x)
        return (a + 2) * x**3 - (a + 3) * x**2 + 1 if x <= 1 else a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a

    matrix = np.zeros((target, size), np.float32)
    for at in range(target):
        position = (at + 0.5) * size / target - 0.5
        low = int(np.floor(position))
        for place in range(low - 1, low + 3):
            matrix[at, min(max(place, 0), size - 1)] += weight(position - place)
    return matrix


def enlarged(maps, height, width, matrix):
    return matrix(maps.shape[1], height) @ maps @ matrix(maps.shape[2], width).T


def runs(mask):
    """COCO's uncompressed counts: column by column, beginning with those outside."""
    flat = mask.flatten(order="F").astype(np.int8)
    changes = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff(np.concatenate([[0], changes, [flat.size]])).tolist()
    return counts if flat[0] == 0 else [0, *counts]


if __name__ == "__main__":
    main()
