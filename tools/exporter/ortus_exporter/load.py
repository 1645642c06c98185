"""From a request to a module with an example input.

Nothing here unpickles without `weights_only`; __main__ sets PyTorch's variable that forces it everywhere.
"""

import os
import sys
from dataclasses import dataclass, field

import torch
import torchvision

from . import archives
from .errors import ExportError, first_line


@dataclass
class Loaded:
    """A module in evaluation mode, or a program of torch.export."""

    module: object
    example: tuple
    #: "image-classification", "image-segmentation" or None.
    task: str = None
    #: torchvision's transforms, where they are known.
    transforms: object = None
    categories: list = None
    report: dict = field(default_factory=dict)


def load(request):
    kind = request.get("kind")
    if kind == "torchvision":
        return from_torchvision(request)
    if kind == "pytorch_hub":
        return from_hub(request)
    if kind == "file":
        return from_file(request)
    raise ExportError("bad_request", f"kind: expected torchvision, pytorch_hub or file, got {kind!r}")


def builder_of(name):
    """A model's function, where the name is one of torchvision's models and nothing else."""
    models = torchvision.models
    try:
        known = models.list_models()
        found = name in known
    except AttributeError:  # Before 0.14.
        known = sorted(key for key, value in vars(models).items() if key.islower() and callable(value))
        found = name in known
    if not found:
        import difflib

        near = difflib.get_close_matches(str(name), known, 3)
        hint = f"; near it are {', '.join(near)}" if near else ""
        raise ExportError("unknown_model", f"torchvision {torchvision.__version__} has no model {name!r}{hint}")
    builder = models.get_model_builder(name)
    module = builder.__module__
    if ".detection" in module or ".video" in module or ".optical_flow" in module or ".quantization" in module:
        raise ExportError(
            "unsupported",
            f"{name} is no classifier or semantic segmentation; only those of torchvision's models are exported",
        )
    return builder


def task_of(builder):
    return "image-segmentation" if ".segmentation" in builder.__module__ else "image-classification"


def weights_of(name, wanted):
    """The named weights; None where there are none of that name and none were asked for."""
    weights = torchvision.models.get_model_weights(name)
    wanted = wanted or "DEFAULT"
    found = getattr(weights, wanted, None) if wanted in weights.__members__ else None
    if found is None:
        names = ", ".join(weights.__members__) or "none"
        raise ExportError("unknown_model", f"{name} has no weights {wanted!r}; there are {names}")
    return found


def default_weights(name):
    """What torchvision says of its own weights, as a start for others'."""
    try:
        return weights_of(name, None)
    except ExportError:
        return None


def from_torchvision(request):
    name, wanted = request.get("model"), request.get("weights")
    builder = builder_of(name)
    report = {"torchvision_model": name}
    if wanted == "none":
        weights, about = None, default_weights(name)
        report["weights"] = "none"
    else:
        weights = about = weights_of(name, wanted)
        report["weights"] = str(weights)
    keywords = {"weights": weights}
    if task_of(builder) == "image-segmentation":
        # The backbone's are part of the whole.
        keywords["weights_backbone"] = None
    try:
        module = builder(**keywords)
    except OSError as error:
        print(error, file=sys.stderr)
        raise ExportError("download_failed", f"the weights of {name} could not be fetched: {first_line(error)}") from error
    transforms = about.transforms() if about else None
    categories = list(weights.meta.get("categories") or []) if weights else None
    return image_model(module, task_of(builder), transforms, categories, request, report)


def image_model(module, task, transforms, categories, request, report):
    shape = request.get("input_shape") or [1, 3, *crop_of(transforms)]
    if task == "image-segmentation":
        module = OneOutput(module)
    return Loaded(module.eval(), (example_of(shape),), task, transforms, categories, report)


class OneOutput(torch.nn.Module):
    """The scores alone, of a module that gives more."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x):
        return self.module(x)["out"]


def crop_of(transforms):
    size = getattr(transforms, "crop_size", None) or getattr(transforms, "resize_size", None) or [224]
    size = [size] if isinstance(size, int) else list(size)
    return (size * 2)[:2] if len(size) == 1 else size[:2]


def example_of(shape):
    good = isinstance(shape, list) and 1 <= len(shape) <= 8 and all(isinstance(side, int) and 1 <= side <= 1 << 20 for side in shape)
    count = 1
    for side in shape if good else []:
        count *= side
    if not good or count > 1 << 28:
        raise ExportError("bad_request", "input_shape: expected 1 to 8 positive sizes, of 268435456 values at most")
    generator = torch.Generator().manual_seed(7)
    return torch.randn(shape, generator=generator)


def from_hub(request):
    repository, entry = request.get("repository"), request.get("entry")
    if request.get("trust_repository") is not True:
        raise ExportError("refused", "a model of pytorch_hub runs code of its repository, which has to be allowed on the server")
    source = request.get("hub_source", "github")
    wanted = request.get("weights")
    # The repositories have two conventions, and some neither.
    if wanted == "none":
        tries = [{"weights": None}, {"pretrained": False}, {}]
    elif wanted:
        tries = [{"weights": wanted}]
    else:
        tries = [{"weights": "DEFAULT"}, {"pretrained": True}, {}]
    module = None
    for keywords in tries:
        try:
            module = torch.hub.load(repository, entry, source=source, trust_repo=True, verbose=False, **keywords)
            break
        except TypeError as error:
            if "argument" not in str(error) or keywords is tries[-1]:
                raise
        except OSError as error:
            raise ExportError("download_failed", f"{repository} could not be fetched: {first_line(error)}") from error
        except RuntimeError as error:
            if "Cannot find callable" in str(error):
                raise ExportError("unknown_model", f"{repository} has no model {entry!r} in its hubconf.py") from error
            raise
    if not isinstance(module, torch.nn.Module):
        raise ExportError("unsupported", f"{entry} of {repository} gives no module but a {type(module).__name__}")
    report = {"weights": wanted or next(iter(keywords.values()), "the entry's own")}
    transforms = task = None
    if repository.split(":")[0] == "pytorch/vision" and entry in torchvision.models.list_models():
        about = default_weights(entry)
        transforms, task = (about.transforms() if about else None), task_of(builder_of(entry))
        if task == "image-segmentation":
            module = OneOutput(module)
    shape = request.get("input_shape") or [1, 3, *crop_of(transforms)]
    return Loaded(module.eval(), (example_of(shape),), task, transforms, None, report)


def from_file(request):
    path = request["path"]
    name = request.get("name") or os.path.basename(path)
    kind = archives.kind_of(path)
    copy = os.path.join(request["scratch"], "checked")
    if kind == "script":
        archives.copy_script(path, copy)
        try:
            module = torch.jit.load(copy, map_location="cpu").eval()
        except RuntimeError as error:
            raise ExportError("refused", f"{name} is no TorchScript that can be loaded: {first_line(error)}") from error
        return with_architecture(module, request, {"file": "torchscript"})
    if kind == "program":
        return from_program(path, copy, name)
    if kind == "pickle":
        return from_weights(path, name, request)
    raise ExportError("refused", f"{name} is no file of PyTorch: expected TorchScript, weights or a .pt2 of torch.export.save")


def with_architecture(module, request, report):
    architecture = request.get("architecture")
    if architecture:
        builder = builder_of(architecture)
        about = default_weights(architecture)
        transforms = about.transforms() if about else None
        return image_model(module, task_of(builder), transforms, None, request, report)
    shape = request.get("input_shape")
    if not shape:
        raise ExportError("bad_request", "input_shape is needed for this file: the shape of an example input, such as 1,3,224,224")
    return Loaded(module, (example_of(shape),), report=report)


def from_program(path, copy, name):
    if not hasattr(torch, "export"):
        raise ExportError("no_torch", "the exporter's PyTorch cannot read .pt2 files; it has to be 2.8 or later")
    archives.copy_program(path, copy)
    # Where a program still gets to a pickle, it ends there.
    import pickle

    def refuse(*_arguments, **_keywords):
        raise ExportError("refused", f"{name} holds pickled objects, which are not loaded")

    kept = pickle.loads, pickle.load, torch._C._pickle_load_obj
    pickle.loads = pickle.load = torch._C._pickle_load_obj = refuse
    try:
        with open(copy, "rb") as file:
            program = torch.export.load(file)
    except ExportError:
        raise
    except Exception as error:
        raise ExportError("refused", f"{name} is no program that can be loaded: {first_line(error)}") from error
    finally:
        pickle.loads, pickle.load, torch._C._pickle_load_obj = kept
    if not program.example_inputs:
        raise ExportError("unsupported", f"{name} has no example inputs; save it with those it was exported with")
    example, keywords = program.example_inputs
    if keywords or not example or not all(isinstance(value, torch.Tensor) for value in example):
        raise ExportError("unsupported", f"{name} takes other inputs than tensors by position")
    return Loaded(program, tuple(example), report={"file": "torch.export"})


def from_weights(path, name, request):
    try:
        # Reads tensors and plain containers; anything else of a pickle is an error before it is run.
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        print(error, file=sys.stderr)
        raise ExportError(
            "refused",
            f"{name} holds more than weights (a whole pickled model, whose loading would run its code) or is damaged; save it "
            "with torch.jit.save or torch.export.save, or its state_dict() alone",
        ) from error
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    if not isinstance(found, dict) or not found or not all(isinstance(value, torch.Tensor) for value in found.values()):
        raise ExportError("refused", f"{name} holds no state_dict: expected tensors by the names of parameters")
    architecture = request.get("architecture")
    if not architecture:
        raise ExportError(
            "bad_request",
            f"{name} holds weights without a model; say as architecture which function of torchvision they belong to, such as resnet18",
        )
    prefix = "module." if all(key.startswith("module.") for key in found) else ""
    state = {key[len(prefix):]: value for key, value in found.items()}
    builder = builder_of(architecture)
    # A classifier ends with a bias for each class, which need not be those of torchvision's own weights.
    last, value = next(reversed(state.items()))
    is_classifier = task_of(builder) == "image-classification"
    keywords = {"num_classes": int(value.shape[0])} if is_classifier and last.endswith("bias") and value.dim() == 1 else {}
    try:
        module = builder(weights=None, **keywords)
        module.load_state_dict(state)
    except (RuntimeError, TypeError, ValueError) as error:
        print(error, file=sys.stderr)
        raise ExportError("unsupported", f"the weights of {name} do not fit {architecture}; name the architecture they were saved from") from error
    return with_architecture(module.eval(), request, {"file": "state_dict", "torchvision_model": architecture})
