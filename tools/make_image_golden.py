"""Makes tests/fixtures/images/ and tests/golden/images.json with Pillow.

Usage: python tools/make_image_golden.py   (Pillow and NumPy; written with Pillow 13.0)

The pictures are computed, not drawn at random, so that the script always makes the same ones. For each picture the
golden file has the size after EXIF rotation and, for RGB and for L, the mean and the pixels on a coarse grid; for the
lossless ones also those of several resizes with each filter, as Pillow computes them.
"""

import io
import json
import pathlib

import numpy as np
from PIL import Image, ImageOps

ROOT = pathlib.Path(__file__).resolve().parent.parent
PICTURES = ROOT / "tests/fixtures/images"
GOLDEN = ROOT / "tests/golden/images.json"
FILTERS = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}
SIZES = [(32, 32), (17, 41), (97, 130)]  # height, width: reduced, reduced unevenly, enlarged


def scene(width=84, height=60):
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    red = 127.5 + 127.5 * np.sin(x / 5.0 + y / 11.0)
    green = 255.0 * x / (width - 1)
    blue = 255.0 * (((x // 7) + (y // 9)) % 2)
    return np.stack([red, green, blue], -1).round().astype(np.uint8)


def pictures():
    rgb = Image.fromarray(scene())
    grey = rgb.convert("L")
    alpha = Image.fromarray(scene()[:, :, 1])
    deep = (np.asarray(grey).astype(np.uint16) << 8) | 0x37
    exif = Image.Exif()
    exif[0x0112] = 6
    yield "rgb.png", rgb, {}
    yield "grey.png", grey, {}
    yield "grey_alpha.png", Image.merge("LA", (grey, alpha)), {}
    yield "rgba.png", Image.merge("RGBA", (*rgb.split(), alpha)), {}
    yield "palette.png", rgb.quantize(64), {}
    yield "palette_transparent.png", rgb.quantize(16), {"transparency": 3}
    yield "one_bit.png", grey.convert("1"), {}
    yield "grey16.png", Image.fromarray(deep), {}
    yield "rgb.bmp", rgb, {}
    yield "palette.bmp", rgb.quantize(32), {}
    yield "rgb.gif", rgb.quantize(128), {}
    yield "lossless.webp", rgb, {"lossless": True}
    yield "lossy.webp", rgb, {"quality": 90}
    yield "rgb.jpg", rgb, {"quality": 90}
    yield "full_chroma.jpg", rgb, {"quality": 90, "subsampling": 0}
    yield "grey.jpg", grey, {"quality": 90}
    yield "progressive.jpg", rgb, {"quality": 90, "progressive": True}
    yield "cmyk.jpg", rgb.convert("CMYK"), {"quality": 90}
    yield "rotated.jpg", rgb, {"quality": 90, "exif": exif.tobytes()}
    yield "rotated.png", rgb, {"exif": exif.tobytes()}


def summary(image):
    values = np.asarray(image)
    if values.ndim == 2:
        values = values[:, :, None]
    rows = np.linspace(0, values.shape[0] - 1, 6).astype(int)
    columns = np.linspace(0, values.shape[1] - 1, 6).astype(int)
    return {
        "height": values.shape[0],
        "width": values.shape[1],
        "mean": [round(float(mean), 4) for mean in values.mean((0, 1))],
        "rows": rows.tolist(),
        "columns": columns.tolist(),
        "pixels": values[np.ix_(rows, columns)].reshape(-1).tolist(),
    }


def upright(data, name):
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    if name == "grey16.png":
        # Pillow clips 16-bit grey at 255 and gives a white picture; the high byte is what the picture shows.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image


def main():
    PICTURES.mkdir(parents=True, exist_ok=True)
    GOLDEN.parent.mkdir(parents=True, exist_ok=True)
    cases = []
    for name, image, options in pictures():
        buffer = io.BytesIO()
        image.save(buffer, {"jpg": "JPEG"}.get(name.split(".")[1], name.split(".")[1].upper()), **options)
        data = buffer.getvalue()
        assert len(data) <= 20_000, (name, len(data))
        (PICTURES / name).write_bytes(data)
        image = upright(data, name)
        case = {"file": name, "rgb": summary(image.convert("RGB")), "l": summary(image.convert("L")), "resized": []}
        if name in ("rgb.png", "grey.png"):
            mode = "RGB" if name == "rgb.png" else "L"
            for label, code in FILTERS.items():
                for height, width in SIZES:
                    resized = image.convert(mode).resize((width, height), resample=code)
                    case["resized"].append({"filter": label, "mode": mode, **summary(resized)})
        cases.append(case)
    lines = ",\n".join(json.dumps(case) for case in cases)
    GOLDEN.write_text('{"made_by": "tools/make_image_golden.py", "pillow": "%s", "cases": [\n%s\n]}\n' % (Image.__version__, lines))


if __name__ == "__main__":
    main()
