"""Stores of models for the dashboard: ordinary ones, and ones whose names, labels and errors are as bad as they may be."""

import json
import pathlib
import shutil

from onnx import TensorProto, checker, helper, save

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
DIGITS = ROOT / "models" / "digits"
SEVEN = DIGITS / "samples" / "seven.png"
FIXTURES = ROOT / "tests" / "fixtures" / "store"

# A name as long as names may be, without a place to break it.
LONG = "n" + "0123456789" * 9 + "12345678x"
# Texts that would be markup, turn the line around, or have no place to break.
SCRIPT = "<script>window.broken=1</script>"
IMAGE = '"><img src=x onerror="window.broken=1">'
SVG = "</text></svg><svg onload=window.broken=1>"
ATTRIBUTE = "' onmouseover='window.broken=1' x='"
OVERRIDE = "\u202eright to left\u202c \u2067\u0645\u0631\u062d\u0628\u0627 \u0628\u0627\u0644\u0639\u0627\u0644\u0645\u2069"
WIDE = "W" * 128
ENDLESS = "\u0645" * 128
HOSTILE = [SCRIPT, IMAGE, SVG, ATTRIBUTE, OVERRIDE, WIDE, ENDLESS, "&lt;b&gt;&amp;", "{{ 7 * 7 }}${7*7}", " "]
# One text of all.
ALL = " ".join([IMAGE, SCRIPT, OVERRIDE, WIDE])


def ordinary(store):
    """`digits` and a few of the tests' models, and `broken`, which is no graph."""
    store = pathlib.Path(store)
    store.mkdir(parents=True, exist_ok=True)
    copy_digits(store / "digits")
    for name in ("mlp", "embedder", "segments", "letters", "slow"):
        shutil.copytree(FIXTURES / name, store / name)
    broken(store / "broken")
    return store


def copy_digits(folder, **config):
    shutil.copytree(DIGITS, folder)
    if config:
        path = folder / "1" / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | config))


def broken(folder):
    (folder / "1").mkdir(parents=True)
    (folder / "1" / "model.onnx").write_bytes(b"no graph")


def hostile(store):
    """Models that name everything as badly as they may; returns those that can be loaded."""
    store = pathlib.Path(store)
    store.mkdir(parents=True, exist_ok=True)
    said = "".join(f"{key} = {json.dumps(ALL)}\n" for key in ("description", "author", "license")) + f"tags = {json.dumps(HOSTILE)}\n"
    shutil.copytree(FIXTURES / "mlp", store / LONG)
    (store / LONG / "model.toml").write_text(said)
    copy_digits(store / "labels", id2label={str(index): text for index, text in enumerate(HOSTILE)})
    shutil.copytree(FIXTURES / "segments", store / "segments")
    config = json.loads((store / "segments" / "config.json").read_text())
    config["id2label"] = {str(index): text for index, text in enumerate(HOSTILE[:5])}
    (store / "segments" / "config.json").write_text(json.dumps(config))
    graph(store / "tensors" / "1")
    # Errors that repeat what they did not understand.
    for name, text in {"bad-key": f"{json.dumps(IMAGE)} = 1", "bad-task": f"[pipeline]\ntask = {json.dumps(ALL)}"}.items():
        shutil.copytree(FIXTURES / "mlp", store / name)
        (store / name / "model.toml").write_text(text)
    broken(store / ("b" + LONG[1:]))
    return [LONG, "labels", "segments", "tensors"]


def graph(folder):
    """A graph whose inputs and outputs have such names."""
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in (SCRIPT, IMAGE, OVERRIDE, WIDE)]
    nodes = [helper.make_node("Identity", [value.name], [f"{value.name}{ATTRIBUTE}"]) for value in inputs]
    outputs = [helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, ["n"]) for node in nodes]
    model = helper.make_model(helper.make_graph(nodes, SCRIPT, inputs, outputs), opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    checker.check_model(model)
    folder.mkdir(parents=True)
    save(model, folder / "model.onnx")
