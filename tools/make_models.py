#!/usr/bin/env python3
"""Makes `models/digits`, the model that comes with the server: a small classifier of handwritten digits.

`make_models.py` trains it and writes the model folder; it needs PyTorch, scikit-learn, NumPy and
Pillow (Debian: python3-torch python3-sklearn python3-numpy python3-pil). `make_models.py --golden`
classifies the sample pictures with ONNX Runtime and Pillow, checks that the answers are right, and
writes them to `tests/golden/digits.json`; it needs what tests/clients/requirements.txt lists.

The data are scikit-learn's 1797 handwritten digits of 8x8 pixels (UCI "Optical Recognition of
Handwritten Digits", CC BY 4.0), bright on dark and filling the frame. People send something else: dark strokes on
white with a margin, thinner, tilted. Each training picture is therefore drawn anew with a random
size, place, tilt, stroke width, contrast and polarity. Seeds are fixed.
"""

import argparse
import json
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
MODEL = ROOT / "models" / "digits"
GOLDEN = ROOT / "tests" / "golden" / "digits.json"

SIDE = 32
SEED = 20
HELD_OUT = 360
EPOCHS = 150
BATCH = 96

# What preprocessor_config.json states, used by training and by the reference alike.
PREPROCESSOR = {
    "image_processor_type": "ViTImageProcessor",
    "do_convert_rgb": False,
    "do_resize": True,
    "size": {"height": SIDE, "width": SIDE},
    "resample": 2,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.5],
    "image_std": [0.5],
}

# (file, digit, white strokes on black)
SAMPLES = [("seven.png", 7, False), ("three.png", 3, False), ("five.png", 5, True)]


def main():
    parser = argparse.ArgumentParser(description="Train the digit classifier, or write its golden answers.")
    parser.add_argument("--golden", action="store_true", help="check the samples and write tests/golden/digits.json")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="passes over the training pictures (default: %(default)s)")
    arguments = parser.parse_args()
    if arguments.golden:
        write_golden()
    else:
        train(arguments.epochs)


def preprocess(picture):
    """A Pillow picture as `f32[1, 1, SIDE, SIDE]`, by PREPROCESSOR."""
    import numpy
    from PIL import Image

    grey = picture.convert("L").resize((SIDE, SIDE), Image.Resampling(PREPROCESSOR["resample"]), reducing_gap=None)
    values = numpy.asarray(grey, dtype=numpy.float32) * numpy.float32(PREPROCESSOR["rescale_factor"])
    values = (values - numpy.float32(PREPROCESSOR["image_mean"][0])) / numpy.float32(PREPROCESSOR["image_std"][0])
    return values[None, None]


def drawn(digit, side, margin, white_on_black):
    """An 8x8 digit (values 0 to 16) as a square Pillow picture of `side` pixels with a margin on every edge."""
    import numpy
    from PIL import Image

    small = Image.fromarray((digit * (255 / 16)).round().astype(numpy.uint8), "L")
    inner = side - 2 * margin
    picture = Image.new("L", (side, side), 0)
    picture.paste(small.resize((inner, inner), Image.Resampling.BICUBIC), (margin, margin))
    return picture if white_on_black else picture.point(lambda value: 255 - value)


def train(epochs):
    import numpy
    import torch
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    torch.manual_seed(SEED)
    torch.use_deterministic_algorithms(True)
    data = load_digits()
    kept, held, kept_labels, held_labels = train_test_split(
        data.images, data.target, test_size=HELD_OUT, random_state=SEED, stratify=data.target
    )
    pictures = torch.tensor(kept / 16, dtype=torch.float32)[:, None]
    pictures = torch.nn.functional.interpolate(pictures, size=(SIDE, SIDE), mode="bicubic", align_corners=False).clamp(0, 1)
    labels = torch.tensor(kept_labels)

    network = build_network()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=0.02)
    steps = -(-len(pictures) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=epochs * steps)
    loss_of = torch.nn.CrossEntropyLoss(label_smoothing=0.02)
    for epoch in range(epochs):
        network.train()
        total = 0.0
        for rows in torch.randperm(len(pictures)).split(BATCH):
            loss = loss_of(network(redrawn(pictures[rows]) * 2 - 1), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * len(rows)
        if epoch % 10 == 9:
            print(f"epoch {epoch + 1}: loss {total / len(pictures):.4f}", flush=True)

    network.eval()
    accuracy = {}
    for name, margin, white_on_black in [
        ("white on black, filling the frame", 0, True),
        ("black on white, filling the frame", 0, False),
        ("black on white, with a margin", 20, False),
        ("white on black, with a wide margin", 32, True),
    ]:
        inputs = numpy.concatenate([preprocess(drawn(digit, 128, margin, white_on_black)) for digit in held])
        with torch.no_grad():
            answers = network(torch.tensor(inputs)).argmax(1).numpy()
        accuracy[name] = float((answers == held_labels).mean())
        print(f"held-out accuracy, {name}: {accuracy[name]:.4f}")
    export(network, accuracy)
    write_samples(network, held, held_labels)


def build_network():
    """`f32[batch, 1, SIDE, SIDE]` to ten logits. The first layer takes brightness and contrast out of the picture."""
    from torch import nn

    def block(inputs, outputs):
        return [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]

    return nn.Sequential(
        nn.InstanceNorm2d(1),
        *block(1, 16), *block(16, 16), nn.MaxPool2d(2),
        *block(16, 32), nn.MaxPool2d(2),
        *block(32, 64), nn.MaxPool2d(2),
        nn.Flatten(), nn.Dropout(0.3),
        nn.Linear(64 * (SIDE // 8) ** 2, 96), nn.ReLU(), nn.Dropout(0.2),
        nn.Linear(96, 10),
    )


def redrawn(pictures):
    """Each picture (bright on dark, 0 to 1) as another hand, pen and paper might have made it."""
    import math

    import torch

    count = len(pictures)

    def uniform(low, high, *shape):
        return torch.empty(count, *(shape or (1, 1, 1))).uniform_(low, high)

    # Stroke: a soft threshold makes it crisp, and its level makes it thin or thick.
    steepness, level = uniform(5, 18), uniform(0.25, 0.65)
    crisp = torch.sigmoid(steepness * (pictures - level))
    pictures = torch.where(uniform(0, 1) < 0.65, crisp, pictures)

    # Place: output pixel -> source pixel, so sizes enter inverted.
    size, aspect = uniform(0.4, 1.05, 1)[:, 0], uniform(0.8, 1.2, 1)[:, 0]
    angle, shear = uniform(-0.26, 0.26, 1)[:, 0], uniform(-0.2, 0.2, 1)[:, 0]
    room = (1 - size).clamp(min=0) + 0.08
    right, down = uniform(-1, 1, 1)[:, 0] * room * 0.8, uniform(-1, 1, 1)[:, 0] * room * 0.8
    width, height = size * aspect.clamp(max=1), size / aspect.clamp(min=1)
    cosine, sine = torch.cos(angle), torch.sin(angle)
    matrix = torch.stack([
        torch.stack([cosine / width, (sine + shear) / width, -right / width], 1),
        torch.stack([-sine / height, cosine / height, -down / height], 1),
    ], 1)
    grid = torch.nn.functional.affine_grid(matrix, pictures.shape, align_corners=False)
    pictures = torch.nn.functional.grid_sample(pictures, grid, padding_mode="zeros", align_corners=False)

    # Paper: background, ink, noise, polarity.
    background, ink = uniform(0, 0.25), uniform(0.55, 1)
    pictures = background + (ink - background) * pictures
    pictures = pictures + uniform(0, 0.05) * torch.randn(pictures.shape)
    pictures = torch.where(uniform(0, 1) < 0.5, 1 - pictures, pictures)
    assert math.isfinite(float(pictures.sum()))
    return pictures.clamp(0, 1)


def export(network, accuracy):
    import torch

    folder = MODEL / "1"
    folder.mkdir(parents=True, exist_ok=True)
    torch.onnx.export(
        network, torch.zeros(1, 1, SIDE, SIDE), str(folder / "model.onnx"), opset_version=13,
        input_names=["pixel_values"], output_names=["logits"],
        dynamic_axes={"pixel_values": {0: "batch"}, "logits": {0: "batch"}},
    )
    digits = [str(digit) for digit in range(10)]
    write_json(folder / "config.json", {
        "architectures": ["DigitsForImageClassification"],
        "model_type": "digits",
        "num_labels": 10,
        "id2label": {digit: digit for digit in digits},
        "label2id": {digit: int(digit) for digit in digits},
        "problem_type": "single_label_classification",
    })
    write_json(folder / "preprocessor_config.json", PREPROCESSOR)
    worst = min(accuracy.values())
    (MODEL / "model.toml").write_text(f'''# The model that comes with the server. Made by tools/make_models.py.
description = "Handwritten digits 0 to 9, dark on light or light on dark. A small convolutional network trained on scikit-learn's digits (UCI Optical Recognition of Handwritten Digits, CC BY 4.0); {worst:.2%} accuracy in the worst of four renderings of {HELD_OUT} held-out pictures."
author = "Ortus"
license = "Apache-2.0"
tags = ["vision", "digits", "example"]

[pipeline]
task = "image-classification"

[pipeline.image]
channel_order = "L"
''', encoding="utf-8")
    print(f"{folder / 'model.onnx'}: {(folder / 'model.onnx').stat().st_size} bytes")


def write_samples(network, held, held_labels):
    """Of each wanted digit the held-out picture that the network is surest of, so that an example is no riddle."""
    import torch

    folder = MODEL / "samples"
    folder.mkdir(parents=True, exist_ok=True)
    for name, digit, white_on_black in SAMPLES:
        pictures = [drawn(image, 128, 16, white_on_black) for image, label in zip(held, held_labels) if label == digit]
        with torch.no_grad():
            scores = [float(torch.softmax(network(torch.tensor(preprocess(picture))), 1)[0, digit]) for picture in pictures]
        best = max(range(len(pictures)), key=scores.__getitem__)
        pictures[best].save(folder / name, optimize=True)
        print(f"{name}: {digit} with {scores[best]:.4f}")


def write_golden():
    import numpy
    import onnxruntime
    import PIL
    from PIL import Image

    session = onnxruntime.InferenceSession(str(MODEL / "1" / "model.onnx"), providers=["CPUExecutionProvider"])
    labels = json.loads((MODEL / "1" / "config.json").read_text())["id2label"]
    if json.loads((MODEL / "1" / "preprocessor_config.json").read_text()) != PREPROCESSOR:
        sys.exit("make_models: preprocessor_config.json differs from this script; train again")
    cases = []
    for name, digit, _ in SAMPLES:
        (logits,) = session.run(["logits"], {"pixel_values": preprocess(Image.open(MODEL / "samples" / name))})
        powers = numpy.exp(logits[0].astype(numpy.float64) - logits[0].max())
        scores = powers / powers.sum()
        best = numpy.argsort(-scores, kind="stable")[:5]
        answer = [{"label": labels[str(index)], "score": float(scores[index])} for index in best]
        if answer[0]["label"] != str(digit) or answer[0]["score"] <= 0.9:
            sys.exit(f"make_models: {name} should be {digit} with a score above 0.9, got {answer[0]}")
        print(f"{name}: {answer[0]}")
        cases.append({"id": name.removesuffix(".png"), "file": f"models/digits/samples/{name}", "top5": answer})
    GOLDEN.parent.mkdir(parents=True, exist_ok=True)
    write_json(GOLDEN, {
        "made_by": f"tools/make_models.py --golden: Pillow {PIL.__version__} (grey, bilinear resize to {SIDE}x{SIDE} without reducing_gap, (x/255 - 0.5)/0.5), onnxruntime {onnxruntime.__version__} CPU, softmax in f64",
        "model": "digits",
        "tolerance": {"rtol": 0.0, "atol": 1e-3},
        "cases": cases,
    })


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
