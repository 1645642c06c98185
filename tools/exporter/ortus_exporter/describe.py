"""config.json and preprocessor_config.json beside the graph, in HuggingFace's form, which Ortus reads."""

import json
import os

ARCHITECTURES = {
    "image-classification": "TorchvisionForImageClassification",
    "image-segmentation": "TorchvisionForSemanticSegmentation",
}
PIL_FILTERS = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}


def describe(loaded, out):
    if loaded.task is None:
        return
    config = {"model_type": "torchvision", "architectures": [ARCHITECTURES[loaded.task]]}
    if loaded.task == "image-classification":
        config["problem_type"] = "single_label_classification"
    if loaded.categories:
        config["id2label"] = {str(index): name for index, name in enumerate(loaded.categories)}
    write(out, "config.json", config)
    if loaded.transforms is not None:
        sides = list(loaded.example[0].shape[-2:])
        write(out, "preprocessor_config.json", preprocessor(loaded.transforms, sides, loaded.task))


def preprocessor(transforms, sides, task):
    """`sides` are the height and width of the graph's pictures."""
    interpolation = getattr(transforms.interpolation, "value", transforms.interpolation)
    described = {
        # Shortest edge, then a crop from the middle, as torchvision does it.
        "image_processor_type": "BitImageProcessor",
        "do_resize": True,
        "resample": PIL_FILTERS[interpolation],
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(transforms.mean),
        "image_std": list(transforms.std),
        "do_convert_rgb": True,
    }
    if task == "image-segmentation":
        return {**described, "size": {"height": sides[0], "width": sides[1]}, "do_center_crop": False}
    # For other pictures than the transforms are for, the same part of them is cropped.
    crop, resize = transforms.crop_size, transforms.resize_size
    crop, resize = (side if isinstance(side, int) else side[0] for side in (crop, resize))
    edge = max(round(min(sides) * resize / crop), *sides)
    size = {"height": sides[0], "width": sides[1]}
    return {**described, "size": {"shortest_edge": edge}, "do_center_crop": True, "crop_size": size}


def write(out, name, content):
    with open(os.path.join(out, name), "x", encoding="utf-8") as file:
        json.dump(content, file, indent=1, ensure_ascii=False)
