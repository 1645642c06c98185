#!/usr/bin/env python3
"""Writes tests/fixtures/transformers/ and tests/golden/transformers_images.json.

Usage: python tools/make_transformers_images.py [NAME …]   (needs PyTorch, transformers 4.57, timm, onnx, onnxruntime)

Tiny models of the architectures that are served, made from configurations with seeded random weights, exported to ONNX, with
`config.json` and `preprocessor_config.json` as `save_pretrained` writes them. The golden file has what transformers' own
`pipeline(...)` answers, with the image processors that work with Pillow. Weights are small and heads are scaled so that scores
are far from equal and follow the picture, but change little where a pixel is off by one level of 255.

With names only those models are made again, and the golden file keeps the others.
"""

import base64
import io
import json
import pathlib
import shutil
import sys
import tempfile
import warnings

import numpy as np
import onnx
import onnxruntime
import PIL
import torch
import transformers as tf
from PIL import Image, ImageOps
from transformers.models.depth_anything import modeling_depth_anything

ROOT = pathlib.Path(__file__).resolve().parent.parent
FIXTURES = ROOT / "tests/fixtures/transformers"
PICTURES = ROOT / "tests/fixtures/images"
GOLDEN = ROOT / "tests/golden/transformers_images.json"
LABELS = ["ant", "bee", "cat", "dog", "elk", "fox"]
ALL = ["rgb.png", "rgba.png", "grey.png", "palette_transparent.png", "rotated.png", "odd.png", "portrait.png", "thin.png"]
SOME = ["rgb.png", "grey.png", "rotated.png", "odd.png", "portrait.png"]
FEW = ["rgb.png", "rotated.png", "odd.png"]
MODELS = {}


def model(make):
    MODELS[make.__name__.replace("_", "-")] = make
    return make


def main():
    warnings.filterwarnings("ignore")
    tf.logging.set_verbosity_error()
    torch.set_num_threads(1)
    names = sys.argv[1:] or list(MODELS)
    if not sys.argv[1:]:
        shutil.rmtree(FIXTURES, ignore_errors=True)
    pictures()
    kept = json.loads(GOLDEN.read_text())["models"] if sys.argv[1:] and GOLDEN.exists() else []
    made = {one["name"]: one for one in kept} | {name: build(name, MODELS[name]()) for name in names}
    made_by = (f"tools/make_transformers_images.py: transformers {tf.__version__}, torch {torch.__version__.split('+')[0]}, "
               f"pillow {PIL.__version__}")
    lines = ",\n".join("  " + json.dumps(made[name]) for name in MODELS if name in made)
    GOLDEN.write_text(f'{{"made_by": {json.dumps(made_by)}, "models": [\n{lines}\n]}}\n')
    total = sum(path.stat().st_size for path in [GOLDEN, *FIXTURES.rglob("*")] if path.is_file())
    print(f"{len(made)} models, {total} bytes")


def pictures():
    """Pictures of sizes that no grid fits: one wider, one higher, one a pixel wide."""
    (FIXTURES / "pictures").mkdir(parents=True, exist_ok=True)
    for name, width, height in [("odd", 131, 93), ("portrait", 90, 233), ("thin", 1, 150)]:
        y, x = np.mgrid[0:height, 0:width]
        waves = [np.sin(x / (17 + 9 * c) + y / (21 - 4 * c) + c) + 0.2 * ((x // 5 + y // 7) % 2) for c in range(3)]
        pixels = np.stack([127.5 + 100 * wave for wave in waves], -1).clip(0, 255) // 8 * 8
        pixels[height // 3 : height // 2, width // 4 : width // 2 + 1] = [250, 20, 90]
        Image.fromarray(pixels.astype(np.uint8)).save(FIXTURES / "pictures" / f"{name}.png", optimize=True)


def path_of(file):
    own = FIXTURES / "pictures" / file
    return own if own.exists() else PICTURES / file


# --- weights and export -------------------------------------------------------------------------


def settle(network, seed, gain=0.8):
    """Seeded weights: matrices of the given gain, small biases, positions that matter a little."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in network.named_parameters():
        normal = torch.randn(weight.shape, generator=generator)
        with torch.no_grad():
            if any(part in name for part in ("lambda", "layer_scale", "gamma")):
                weight.fill_(0.5)
            elif weight.ndim >= 2 and ("embed" in name or "token" in name or "quer" in name) and weight.shape[0] <= 64 and "proj" not in name:
                weight.copy_(0.4 * normal)
            elif weight.ndim >= 2:
                weight.copy_(normal * gain / np.sqrt(np.prod(weight.shape[1:])))
            elif "bias" in name:
                weight.copy_(0.1 * normal)
            else:
                weight.copy_(1 + 0.1 * normal)
    network.eval()
    return network


def spread(network, head, processor, output="logits", to=1.5, axis=-1):
    """Scales a linear or convolutional head so that its scores have mean 0 and deviation `to` over a few pictures."""
    with torch.no_grad():
        scores = [getattr(network(**processor(images=[load(file)], return_tensors="pt")), output) for file in FEW]
        scores = torch.cat([one.movedim(axis, -1).reshape(-1, one.shape[axis]) for one in scores])
        by = to / scores.std()
        head.weight.mul_(by)
        head.bias.sub_(scores.mean(0)).mul_(by)


def load(file):
    return ImageOps.exif_transpose(Image.open(path_of(file))).convert("RGB")


class Outputs(torch.nn.Module):
    def __init__(self, network, names, mask):
        super().__init__()
        self.network, self.names, self.mask = network, names, mask

    def forward(self, pixel_values, pixel_mask=None):
        more = {"pixel_mask": pixel_mask} if self.mask else {}
        answer = self.network(pixel_values=pixel_values, **more)
        return tuple(getattr(answer, name) for name in self.names)


def export(folder, network, processor, outputs, free, mask):
    picture = processor(images=[load("odd.png")], return_tensors="pt")
    inputs = {"pixel_values": picture["pixel_values"]}
    if mask:
        inputs["pixel_mask"] = picture["pixel_mask"]
    sides = {0: "batch", 2: "height", 3: "width"} if free else {0: "batch"}
    axes = {"pixel_values": sides, **{name: {0: "batch"} for name in outputs}}
    if mask:
        axes["pixel_mask"] = {0: "batch", 1: "height", 2: "width"} if free else {0: "batch"}
    if free:
        for name in outputs:
            if getattr(network(**inputs), name).ndim == 4:
                axes[name] |= {2: "h", 3: "w"}
            if name == "predicted_depth":
                axes[name] |= {1: "h", 2: "w"}
    buffer = io.BytesIO()
    torch.onnx.export(Outputs(network, outputs, mask).eval(), tuple(inputs.values()), buffer, input_names=list(inputs), output_names=outputs,
                      dynamic_axes=axes, opset_version=17, dynamo=False)
    graph = min((compact(one) for one in [onnx.load_from_string(buffer.getvalue()), folded(buffer.getvalue())]), key=lambda one: one.ByteSize())
    onnx.checker.check_model(graph)
    (folder / "model.onnx").write_bytes(graph.SerializeToString(deterministic=True))


def folded(graph):
    """The same with its constants computed, in operators of the standard alone."""
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = f"{folder}/model.onnx"
        onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        folded = onnx.load(options.optimized_model_filepath)
    for at in reversed([at for at, one in enumerate(folded.opset_import) if one.domain]):
        del folded.opset_import[at]
    return folded


def compact(graph):
    """Short names for what is only inside, and no notes on where it came from."""
    kept = {value.name for value in [*graph.graph.input, *graph.graph.output]}
    names = {}

    def short(name):
        return name if name in kept or not name else names.setdefault(name, f"v{len(names)}")

    def walk(inner):
        del inner.value_info[:]
        inner.doc_string = ""
        del inner.metadata_props[:]
        for constant in inner.initializer:
            constant.name, constant.doc_string = short(constant.name), ""
            del constant.metadata_props[:]
        for node in inner.node:
            node.name = node.doc_string = ""
            del node.metadata_props[:]
            node.input[:], node.output[:] = map(short, node.input), map(short, node.output)
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    walk(attribute.g)

    walk(graph.graph)
    for value in [*graph.graph.input, *graph.graph.output]:
        del value.metadata_props[:]
    del graph.metadata_props[:]
    graph.producer_name, graph.producer_version, graph.graph.name = "ortus-fixtures", "", "graph"
    return graph


def agree(folder, network, processor, outputs, files, mask):
    """The graph gives what the network gives, at every size that a picture leads to."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
    largest = 0.0
    for file in files:
        inputs = processor(images=[load(file)], return_tensors="pt")
        inputs = {name: inputs[name] for name in ("pixel_values", "pixel_mask")[: 1 + mask]}
        got = session.run(outputs, {name: value.numpy() for name, value in inputs.items()})
        with torch.no_grad():
            answer = network(**inputs)
        for name, values in zip(outputs, got):
            largest = max(largest, float(np.abs(values - getattr(answer, name).numpy()).max()))
    assert largest < 1e-4, (folder.name, largest)


def build(name, made):
    task, network, processor, outputs, free, files, cases = (made[key] for key in ("task", "network", "processor", "outputs", "free", "files", "cases"))
    mask = made.get("mask", False)
    folder = FIXTURES / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    network.config.architectures = [type(network).__name__]
    network.config.save_pretrained(folder)
    processor.save_pretrained(folder)
    export(folder, network, processor, outputs, free, mask)
    agree(folder, network, processor, outputs, files, mask)
    pipeline = tf.pipeline(task, model=network, image_processor=processor, device="cpu")
    done = []
    for parameters in cases:
        for file in files:
            with torch.no_grad():
                answer = pipeline(str(path_of(file)), **parameters)
            done.append({"file": file, "parameters": parameters, "answer": written(task, answer)})
    print(f"{name}: {(folder / 'model.onnx').stat().st_size} bytes, faster processor {fast(processor, files)}, {json.dumps(done[0]['answer'])[:300]}", flush=True)
    return {"name": name, "task": task, "cases": done}


def fast(processor, files):
    """How far the tensors of the processor that works with torchvision are from those of the one that works with Pillow."""
    kind = getattr(tf, type(processor).__name__ + "Fast", None)
    if kind is None:
        return "none"
    settings = {key: value for key, value in processor.to_dict().items() if key not in ("image_processor_type", "_processor_class")}
    other = kind(**settings)
    worst = 0.0
    for file in files:
        a, b = (one(images=[load(file)], return_tensors="pt")["pixel_values"] for one in (processor, other))
        if a.shape != b.shape:
            return f"{file}: shape {tuple(b.shape)} for {tuple(a.shape)}"
        worst = max(worst, float((a - b).abs().max()))
    return f"{worst:.4f}"


# --- answers ------------------------------------------------------------------------------------


def written(task, answer):
    if task == "image-segmentation":
        return [{"label": one["label"], "score": one["score"], "size": list(one["mask"].size)[::-1], "counts": runs(np.asarray(one["mask"]) > 0)}
                for one in answer]
    if task == "depth-estimation":
        depth = answer["predicted_depth"].numpy()
        rows, columns = (np.unique(np.linspace(0, side - 1, 14).astype(int)) for side in depth.shape)
        buffer = io.BytesIO()
        answer["depth"].save(buffer, "png", optimize=True)
        return {"size": list(depth.shape), "rows": rows.tolist(), "columns": columns.tolist(),
                "predicted_depth": rounded(depth[np.ix_(rows, columns)]), "depth": base64.b64encode(buffer.getvalue()).decode()}
    if task == "image-feature-extraction":
        return rounded(np.asarray(answer))
    return [one | {"score": float(f"{one['score']:.6g}")} for one in answer]


def rounded(values):
    return json.loads(json.dumps(values.astype(float).tolist()), parse_float=lambda text: float(f"{float(text):.6g}"))


def runs(mask):
    """COCO's uncompressed counts: column by column, beginning with those outside."""
    flat = mask.flatten(order="F").astype(np.int8)
    changes = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff(np.concatenate([[0], changes, [flat.size]])).tolist()
    return counts if flat[0] == 0 else [0, *counts]


def labels(count=len(LABELS), **more):
    return {"id2label": dict(enumerate(LABELS[:count])), "label2id": {label: at for at, label in enumerate(LABELS[:count])}, **more}


# --- classification -----------------------------------------------------------------------------


def classifier(network, processor, seed, head, gain=0.8, files=ALL, cases=({"top_k": 6},)):
    settle(network, seed, gain)
    spread(network, head(network), processor)
    return {"task": "image-classification", "network": network, "processor": processor, "outputs": ["logits"], "free": False,
            "files": files, "cases": list(cases)}


@model
def vit():
    config = tf.ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24, image_size=32, patch_size=8, **labels())
    processor = tf.ViTImageProcessor(size={"height": 32, "width": 32})
    cases = [{"top_k": 3}, {"top_k": 2, "function_to_apply": "sigmoid"}, {"top_k": 6, "function_to_apply": "none"}]
    return classifier(tf.ViTForImageClassification(config), processor, 1, lambda n: n.classifier, cases=cases)


@model
def deit():
    config = tf.DeiTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24, image_size=32, patch_size=8, **labels())
    processor = tf.DeiTImageProcessor(size={"height": 40, "width": 36}, crop_size={"height": 32, "width": 32})
    return classifier(tf.DeiTForImageClassification(config), processor, 2, lambda n: n.classifier)


@model
def beit():
    config = tf.BeitConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24, image_size=32, patch_size=8,
                           use_mean_pooling=True, **labels(problem_type="multi_label_classification"))
    processor = tf.BeitImageProcessor(size={"height": 41, "width": 41}, crop_size={"height": 32, "width": 32})
    return classifier(tf.BeitForImageClassification(config), processor, 3, lambda n: n.classifier)


@model
def convnext():
    config = tf.ConvNextConfig(hidden_sizes=[8, 8, 12, 12], depths=[1, 1, 1, 1], patch_size=4, **labels())
    processor = tf.ConvNextImageProcessor(size={"shortest_edge": 32}, resample=3)
    return classifier(tf.ConvNextForImageClassification(config), processor, 4, lambda n: n.classifier)


@model
def resnet():
    config = tf.ResNetConfig(embedding_size=6, hidden_sizes=[6, 8], depths=[1, 1], layer_type="basic", **labels())
    # From 384 on ConvNext's processor warps.
    processor = tf.ConvNextImageProcessor(size={"shortest_edge": 384}, crop_pct=0.95, resample=3)
    return classifier(tf.ResNetForImageClassification(config), processor, 5, lambda n: n.classifier[1], files=SOME)


@model
def mobilenet():
    config = tf.MobileNetV1Config(depth_multiplier=0.04, min_depth=6, image_size=32, **labels())
    processor = tf.MobileNetV1ImageProcessor(size={"shortest_edge": 37}, crop_size={"height": 32, "width": 32})
    return classifier(tf.MobileNetV1ForImageClassification(config), processor, 6, lambda n: n.classifier, gain=1.4)


@model
def swin():
    config = tf.SwinConfig(image_size=32, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[2, 2], window_size=4, mlp_ratio=2.0, **labels(1))
    # One class has a sigmoid.
    processor = tf.ViTImageProcessor(size={"height": 32, "width": 32}, resample=3, image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225])
    return classifier(tf.SwinForImageClassification(config), processor, 7, lambda n: n.classifier)


@model
def efficientnet():
    config = tf.EfficientNetConfig(image_size=33, width_coefficient=0.25, depth_coefficient=0.4, hidden_dim=320, kernel_sizes=[3, 3, 5], in_channels=[32, 16, 24],
                                   out_channels=[16, 24, 40], depthwise_padding=[], strides=[1, 2, 2], num_block_repeats=[1, 1, 1],
                                   expand_ratios=[1, 2, 2], pooling_type="mean", **labels())
    processor = tf.EfficientNetImageProcessor(size={"height": 41, "width": 47}, do_center_crop=True, crop_size={"height": 33, "width": 33}, rescale_factor=1 / 127.5,
                                              rescale_offset=True, include_top=True, image_mean=[0.1, 0.0, -0.1], image_std=[0.5, 0.6, 0.7])
    network = tf.EfficientNetForImageClassification(config)
    return classifier(network, processor, 8, lambda n: n.classifier, gain=1.8)


@model
def dinov2():
    config = tf.Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, mlp_ratio=2, image_size=28, patch_size=7, **labels())
    processor = tf.BitImageProcessor(size={"shortest_edge": 33}, crop_size={"height": 28, "width": 28}, image_mean=[0.485, 0.456, 0.406],
                                     image_std=[0.229, 0.224, 0.225])
    return classifier(tf.Dinov2ForImageClassification(config), processor, 9, lambda n: n.classifier)


@model
def levit():
    config = tf.LevitConfig(image_size=64, hidden_sizes=[16, 16, 16], num_attention_heads=[1, 1, 1], depths=[1, 1, 1], key_dim=[4, 4, 4],
                            mlp_ratio=[1, 1, 1], attention_ratio=[1, 1, 1], **labels())
    config.down_ops = [["Subsample", 4, 2, 2, 1, 2], ["Subsample", 4, 2, 2, 1, 2]]
    processor = tf.LevitImageProcessor(size={"shortest_edge": 60}, crop_size={"height": 64, "width": 64})
    return classifier(tf.LevitForImageClassification(config), processor, 10, lambda n: n.classifier.linear, gain=0.6)


@model
def poolformer():
    config = tf.PoolFormerConfig(hidden_sizes=[8, 8], depths=[1, 1], patch_sizes=[7, 3], strides=[4, 2], padding=[2, 1], num_encoder_blocks=2,
                                 mlp_ratio=2.0, **labels())
    processor = tf.PoolFormerImageProcessor(size={"height": 31, "width": 31}, crop_pct=0.9, crop_size={"height": 32, "width": 32})
    return classifier(tf.PoolFormerForImageClassification(config), processor, 11, lambda n: n.classifier)


@model
def mobilevit():
    config = tf.MobileViTConfig(image_size=32, hidden_sizes=[8, 8, 8], neck_hidden_sizes=[4, 4, 6, 8, 8, 8, 12], num_attention_heads=1, mlp_ratio=1.0,
                                expand_ratio=1.0, **labels())
    processor = tf.MobileViTImageProcessor(size={"shortest_edge": 36}, crop_size={"height": 32, "width": 32})
    return classifier(tf.MobileViTForImageClassification(config), processor, 12, lambda n: n.classifier, gain=1.7)


@model
def textnet():
    config = tf.TextNetConfig(stem_num_channels=3, stem_out_channels=8, hidden_sizes=[8, 8, 8, 8, 8], conv_layer_kernel_sizes=[[[3, 3]]] * 4,
                              conv_layer_strides=[[2]] * 4, image_size=[32, 32], depths=[1] * 4, **labels())
    processor = tf.TextNetImageProcessor(size={"shortest_edge": 40}, size_divisor=16)
    made = classifier(tf.TextNetForImageClassification(config), processor, 13, lambda n: n.fc, files=SOME)
    return made | {"free": True}


# --- detection ----------------------------------------------------------------------------------


def detector(network, processor, seed, heads, files, cases=({"threshold": 0.3}, {"threshold": 0.0}), gain=0.8, mask=False):
    settle(network, seed, gain)
    for head in heads(network):
        spread(network, head, processor)
    return {"task": "object-detection", "network": network, "processor": processor, "outputs": ["logits", "pred_boxes"], "free": True,
            "files": files, "cases": list(cases), "mask": mask}


TINY = {"hidden_sizes": [8, 12], "embedding_size": 8, "depths": [1, 1], "layer_type": "basic"}
SHORTEST = {"shortest_edge": 64, "longest_edge": 120}


def backbone():
    return tf.ResNetConfig(**TINY, out_features=["stage2"])


@model
def detr():
    config = tf.DetrConfig(use_timm_backbone=False, backbone_config=backbone(), backbone=None, use_pretrained_backbone=False, num_queries=6, d_model=16,
                           encoder_layers=1, decoder_layers=1, encoder_ffn_dim=16, decoder_ffn_dim=16, encoder_attention_heads=2,
                           decoder_attention_heads=2, **labels(4))
    processor = tf.DetrImageProcessor(size=SHORTEST)
    return detector(tf.DetrForObjectDetection(config), processor, 21, lambda n: [n.class_labels_classifier], SOME, mask=True)


@model
def yolos():
    config = tf.YolosConfig(hidden_size=10, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=[64, 96], patch_size=16,
                            num_detection_tokens=6, **labels(4))
    processor = tf.YolosImageProcessor(size=SHORTEST)
    return detector(tf.YolosForObjectDetection(config), processor, 22, lambda n: [n.class_labels_classifier.layers[-1]], SOME)


@model
def rt_detr():
    inner = tf.RTDetrResNetConfig(embedding_size=8, hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1], layer_type="basic", out_features=["stage2", "stage3", "stage4"])
    config = tf.RTDetrConfig(backbone_config=inner, encoder_hidden_dim=8, encoder_in_channels=[8, 8, 8], encoder_layers=1, encoder_ffn_dim=8,
                             encoder_attention_heads=2, d_model=8, num_queries=6, decoder_in_channels=[8, 8, 8], decoder_ffn_dim=8,
                             decoder_layers=1, decoder_attention_heads=2, decoder_n_points=2, hidden_expansion=0.5, anchor_image_size=None,
                             with_box_refine=True, **labels(4))
    processor = tf.RTDetrImageProcessor(size={"height": 64, "width": 96})
    made = detector(tf.RTDetrForObjectDetection(config), processor, 23, lambda n: [n.model.decoder.class_embed[0]], SOME)
    return made | {"free": False}


@model
def conditional_detr():
    config = tf.ConditionalDetrConfig(use_timm_backbone=False, backbone_config=backbone(), backbone=None, use_pretrained_backbone=False, num_queries=30,
                                      d_model=16, encoder_layers=1, decoder_layers=2, encoder_ffn_dim=16, decoder_ffn_dim=16,
                                      encoder_attention_heads=2, decoder_attention_heads=2, **labels(4))
    processor = tf.ConditionalDetrImageProcessor(size=SHORTEST)
    return detector(tf.ConditionalDetrForObjectDetection(config), processor, 24, lambda n: [n.class_labels_classifier], FEW, cases=[{"threshold": 0.3}])


@model
def deformable_detr():
    config = tf.DeformableDetrConfig(use_timm_backbone=False, backbone_config=tf.ResNetConfig(**TINY, out_features=["stage1", "stage2"]), backbone=None,
                                     use_pretrained_backbone=False, num_queries=6, d_model=32, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=16,
                                     decoder_ffn_dim=16, encoder_attention_heads=2, decoder_attention_heads=2, num_feature_levels=2,
                                     encoder_n_points=2, decoder_n_points=2, **labels(4))
    processor = tf.DeformableDetrImageProcessor(size={"height": 64, "width": 96})
    made = detector(tf.DeformableDetrForObjectDetection(config), processor, 25, lambda n: [n.class_embed[0]], FEW)
    return made | {"free": False}


# --- segmentation -------------------------------------------------------------------------------


def segmenter(network, processor, seed, head, files=FEW, free=False, gain=0.8):
    settle(network, seed, gain)
    spread(network, head(network), processor, axis=1)
    return {"task": "image-segmentation", "network": network, "processor": processor, "outputs": ["logits"], "free": free, "files": files, "cases": [{}]}


@model
def segformer():
    config = tf.SegformerConfig(num_encoder_blocks=2, depths=[1, 1], sr_ratios=[2, 1], hidden_sizes=[8, 12], patch_sizes=[7, 3], strides=[4, 2],
                                num_attention_heads=[1, 2], mlp_ratios=[2, 2], decoder_hidden_size=16, **labels(5))
    processor = tf.SegformerImageProcessor(size={"height": 64, "width": 80})
    return segmenter(tf.SegformerForSemanticSegmentation(config), processor, 31, lambda n: n.decode_head.classifier)


@model
def upernet():
    inner = tf.ResNetConfig(**TINY, out_features=["stage1", "stage2"])
    config = tf.UperNetConfig(backbone_config=inner, hidden_size=12, pool_scales=[1, 2], use_auxiliary_head=False, **labels(5))
    processor = tf.SegformerImageProcessor(size={"height": 48, "width": 64})
    return segmenter(tf.UperNetForSemanticSegmentation(config), processor, 32, lambda n: n.decode_head.classifier)


# --- depth --------------------------------------------------------------------------------------


def depth(network, processor, seed, files=FEW, free=True, gain=1.0):
    settle(network, seed, gain)
    return {"task": "depth-estimation", "network": network, "processor": processor, "outputs": ["predicted_depth"], "free": free, "files": files, "cases": [{}]}


@model
def dpt():
    config = tf.DPTConfig(hidden_size=8, num_hidden_layers=4, num_attention_heads=2, intermediate_size=8, image_size=48, patch_size=8,
                          backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[4, 4, 4, 4], fusion_hidden_size=4)
    processor = tf.DPTImageProcessor(size={"height": 48, "width": 48})
    return depth(tf.DPTForDepthEstimation(config), processor, 41, free=False)


@model
def depth_anything():
    inner = tf.Dinov2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=2, image_size=28, patch_size=7,
                            out_features=["stage1", "stage2"], reshape_hidden_states=False)
    config = tf.DepthAnythingConfig(backbone_config=inner, patch_size=7, reassemble_hidden_size=16, reassemble_factors=[2, 1], neck_hidden_sizes=[8, 8],
                                    fusion_hidden_size=8, head_hidden_size=8)
    # A trace keeps sizes only where they stay what they are while it is made.
    modeling_depth_anything.int = lambda size: size
    processor = tf.DPTImageProcessor(size={"height": 56, "width": 56}, keep_aspect_ratio=True, ensure_multiple_of=7,
                                     image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225])
    return depth(tf.DepthAnythingForDepthEstimation(config), processor, 42)


@model
def glpn():
    config = tf.GLPNConfig(num_encoder_blocks=4, depths=[1, 1, 1, 1], sr_ratios=[4, 2, 1, 1], hidden_sizes=[8, 8, 8, 8], patch_sizes=[7, 3, 3, 3],
                           strides=[4, 2, 2, 2], num_attention_heads=[1, 1, 2, 2], mlp_ratios=[2, 2, 2, 2], decoder_hidden_size=8, head_in_index=-1)
    processor = tf.GLPNImageProcessor(size_divisor=32)
    return depth(tf.GLPNForDepthEstimation(config), processor, 43)


# --- embeddings ---------------------------------------------------------------------------------


def encoder(network, processor, seed, outputs, pools=(False, True), files=FEW, gain=0.8, free=False):
    settle(network, seed, gain)
    cases = [{"pool": pool} if pool else {} for pool in pools]
    return {"task": "image-feature-extraction", "network": network, "processor": processor, "outputs": outputs, "free": free, "files": files, "cases": cases}


BOTH = ["last_hidden_state", "pooler_output"]


@model
def vit_features():
    config = tf.ViTConfig(hidden_size=12, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=32, patch_size=8)
    return encoder(tf.ViTModel(config), tf.ViTImageProcessor(size={"height": 32, "width": 32}), 51, BOTH)


@model
def dinov2_features():
    config = tf.Dinov2Config(hidden_size=12, num_hidden_layers=1, num_attention_heads=2, mlp_ratio=2, image_size=28, patch_size=7)
    processor = tf.BitImageProcessor(size={"shortest_edge": 31}, crop_size={"height": 28, "width": 28})
    return encoder(tf.Dinov2Model(config), processor, 52, BOTH)


@model
def resnet_features():
    config = tf.ResNetConfig(**TINY)
    return encoder(tf.ResNetModel(config), tf.ConvNextImageProcessor(size={"shortest_edge": 32}), 53, BOTH)


@model
def clip_features():
    config = tf.CLIPVisionConfig(hidden_size=12, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=32, patch_size=8)
    processor = tf.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    return encoder(tf.CLIPVisionModel(config), processor, 54, BOTH)


@model
def clip_embeddings():
    config = tf.CLIPVisionConfig(hidden_size=12, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=32, patch_size=8, projection_dim=8)
    processor = tf.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    return encoder(tf.CLIPVisionModelWithProjection(config), processor, 55, ["image_embeds", "last_hidden_state"], pools=[False])


if __name__ == "__main__":
    main()
