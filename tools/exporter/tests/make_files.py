"""Writes PyTorch files into a folder: such as can be converted, and such as would write a file `marker` there if they were
loaded carelessly. Small models, random weights."""

import json
import sys
import zipfile
from pathlib import Path

import torch
import torchvision


class Evil:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (open, (self.marker, "w"))


class EvilScript(torch.nn.Module):
    def __init__(self, marker):
        super().__init__()
        self.marker: str = marker

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.from_file(self.marker, True, 4)[0]


def main(folder):
    folder = Path(folder)
    marker = str(folder / "marker")
    torch.manual_seed(1)
    model = torchvision.models.squeezenet1_1(weights=None, num_classes=5).eval()
    example = torch.randn(2, 3, 64, 64)
    torch.jit.trace(model, example).save(str(folder / "script.pt"))
    torch.save({"state_dict": model.state_dict()}, folder / "weights.pth")
    torch.save(model, folder / "whole.pth")
    torch.save({"a.weight": torch.zeros(2), "b": Evil(marker)}, folder / "evil.pth")
    torch.jit.script(EvilScript(marker)).save(str(folder / "evil.pt"))
    (folder / "nothing.pt").write_bytes(b"no file of PyTorch")
    hub = folder / "hub"
    hub.mkdir(exist_ok=True)
    (hub / "hubconf.py").write_text(
        "dependencies = ['torch']\n"
        "import torch\n"
        "def net(pretrained=True):\n"
        "    torch.manual_seed(1 if pretrained else 2)\n"
        "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3))\n"
        "def no_module():\n"
        "    return 7\n"
    )
    if hasattr(torch, "export") and hasattr(torch.export, "save"):
        program = torch.export.export(model, (example,), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},))
        torch.export.save(program, folder / "program.pt2")
        change(folder / "program.pt2", folder / "evil.pt2", call_system)
        change(folder / "program.pt2", folder / "guard.pt2", lambda text: guard(text, marker))
        change(folder / "program.pt2", folder / "size.pt2", lambda text: size(text, marker))


def call_system(text):
    program = json.loads(text)
    program["graph_module"]["graph"]["nodes"][0]["target"] = "torch.os.system"
    return json.dumps(program)


def guard(text, marker):
    program = json.loads(text)
    program["guards_code"] = [f"open({marker!r}, 'w')"]
    return json.dumps(program)


def size(text, marker):
    return text.replace("Symbol('s77', positive=True, integer=True)", f"open('{marker}', 'w')")


def change(path, to, edit):
    """Copies an archive with another program in it."""
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(to, "w") as changed:
        for entry in archive.infolist():
            content = archive.read(entry)
            if "/models/" in entry.filename:
                edited = edit(content.decode()).encode()
                assert edited != content
                content = edited
            changed.writestr(entry.filename, content)


if __name__ == "__main__":
    main(sys.argv[1])
