"""Tests of the exporter; needs what requirements.txt names.

    cd tools/exporter && .venv/bin/python -m unittest discover tests
"""

import json
import os
import subprocess
import sys
import tempfile
import unittest
import zipfile
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))


class Exporter(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.kept = tempfile.TemporaryDirectory()
        cls.files = Path(cls.kept.name)
        subprocess.run([sys.executable, str(HERE / "make_files.py"), str(cls.files)], check=True, stderr=subprocess.DEVNULL)

    @classmethod
    def tearDownClass(cls):
        cls.kept.cleanup()

    def ask(self, **request):
        """The last line, and the files that were written."""
        with tempfile.TemporaryDirectory() as folder:
            out, scratch = Path(folder, "out"), Path(folder, "scratch")
            out.mkdir()
            scratch.mkdir()
            request = {"out": str(out), "scratch": str(scratch), "input_shape": [1, 3, 64, 64], **request}
            done = subprocess.run(
                [sys.executable, "-B", "-m", "ortus_exporter"], input=json.dumps(request), capture_output=True, text=True,
                cwd=HERE.parent, env={"PATH": os.environ["PATH"], "HOME": folder, "TORCH_HOME": folder}, timeout=300,
            )
            lines = [json.loads(line) for line in done.stdout.splitlines()]
            self.assertTrue(lines, done.stderr)
            self.assertTrue(all("phase" in line for line in lines[:-1]))
            self.assertFalse((self.files / "marker").exists(), "code of a file was run")
            files = {path.name: path.read_bytes() for path in out.iterdir()}
            self.assertEqual(done.returncode, 0 if lines[-1]["ok"] else 1)
            return lines[-1], files

    def exported(self, **request):
        answer, files = self.ask(**request)
        self.assertTrue(answer["ok"], answer)
        report = answer["report"]
        print(request.get("model") or request.get("path") or request.get("entry"), report["batch"],
              f"{report['max_difference']:.2g} ({report['max_relative_difference']:.2g})", file=sys.stderr)
        self.assertLess(report["max_relative_difference"], 1e-3)
        return report, files

    def refused(self, code, part, **request):
        answer, files = self.ask(**request)
        self.assertFalse(answer["ok"], answer)
        self.assertEqual(answer["code"], code, answer)
        self.assertIn(part, answer["error"])
        self.assertEqual(files, {})

    def test_a_classifier_of_torchvision(self):
        report, files = self.exported(kind="torchvision", model="squeezenet1_1", weights="none")
        self.assertEqual((report["batch"], report["inputs"], report["outputs"]), ("dynamic", ["pixel_values"], ["logits"]))
        self.assertEqual(sorted(files), ["config.json", "model.onnx", "preprocessor_config.json"])
        config, processor = json.loads(files["config.json"]), json.loads(files["preprocessor_config.json"])
        self.assertEqual(config["architectures"], ["TorchvisionForImageClassification"])
        # Random weights know no labels.
        self.assertNotIn("id2label", config)
        self.assertEqual((processor["size"], processor["crop_size"]), ({"shortest_edge": 73}, {"height": 64, "width": 64}))
        self.assertEqual(processor["image_mean"], [0.485, 0.456, 0.406])

    def test_labels_and_transforms_of_weights(self):
        from ortus_exporter import describe, load

        weights = load.weights_of("efficientnet_b0", None)
        processor = describe.preprocessor(weights.transforms(), [224, 224], "image-classification")
        self.assertEqual((processor["size"], processor["resample"]), ({"shortest_edge": 256}, 3))
        loaded = load.Loaded(None, (load.example_of([1, 3, 4, 4]),), "image-classification", None, weights.meta["categories"])
        with tempfile.TemporaryDirectory() as folder:
            describe.describe(loaded, folder)
            labels = json.loads(Path(folder, "config.json").read_text())["id2label"]
        self.assertEqual((len(labels), labels["0"]), (1000, "tench"))

    def test_segmentation_of_torchvision(self):
        report, files = self.exported(kind="torchvision", model="lraspp_mobilenet_v3_large", weights="none")
        self.assertEqual((report["task"], report["outputs"]), ("image-segmentation", ["logits"]))
        self.assertEqual(json.loads(files["preprocessor_config.json"])["size"], {"height": 64, "width": 64})

    def test_files(self):
        report, _ = self.exported(kind="file", path=str(self.files / "script.pt"))
        self.assertEqual(report["batch"], "dynamic")
        report, files = self.exported(kind="file", path=str(self.files / "weights.pth"), architecture="squeezenet1_1")
        # Five classes, as the weights have them.
        self.assertIn("preprocessor_config.json", files)
        if (self.files / "program.pt2").exists():
            report, _ = self.exported(kind="file", path=str(self.files / "program.pt2"))
            self.assertEqual((report["batch"], report["opset"]), ("dynamic", 18))
            # The Python source that it brings along is left out.
            self.exported(kind="file", path=str(self.files / "guard.pt2"))

    def test_files_that_are_programs_are_not_run(self):
        for name in ("whole.pth", "evil.pth"):
            self.refused("refused", "holds more than weights", kind="file", path=str(self.files / name))
        self.refused("refused", "from_file", kind="file", path=str(self.files / "evil.pt"))
        self.refused("refused", "no file of PyTorch", kind="file", path=str(self.files / "nothing.pt"))
        if (self.files / "program.pt2").exists():
            self.refused("refused", "torch.os.system", kind="file", path=str(self.files / "evil.pt2"))
            self.refused("refused", "no plain arithmetic", kind="file", path=str(self.files / "size.pt2"))

    def test_what_is_unpickled_elsewhere_is_left_out_or_refused(self):
        from ortus_exporter import archives
        from ortus_exporter.errors import ExportError

        def check(names, expected):
            path, to = self.files / "archive", self.files / "copy"
            with zipfile.ZipFile(path, "w") as archive:
                for name, content in names.items():
                    archive.writestr(name, content)
            if isinstance(expected, str):
                with self.assertRaisesRegex(ExportError, expected):
                    archives.copy_program(path, to)
            else:
                archives.copy_program(path, to)
                with zipfile.ZipFile(to) as archive:
                    self.assertEqual(sorted(archive.namelist()), expected)

        check({"p/models/model.json": "{}", "p/extra/x": "1"}, ["p/models/model.json"])
        check({"p/data/aotinductor/model/x.so": ""}, "no part of a plain exported program")
        check({"p/data/constants/custom_obj_0": ""}, "no part of a plain exported program")
        check({"p/data/constants/opaque_obj_0": ""}, "no part of a plain exported program")
        check({"p/data/weights/model_weights_config.json": '{"a": {"use_pickle": true}}'}, "pickled tensors")
        for target in ("torch.hub.load", "torch.ops.load_library", "torch.ops.aten.__class__.x", "_operator.methodcaller", "#x",
                       "torch.ops.aten.add.Tensor.__init__", "math.__loader__"):
            check({"p/models/m.json": json.dumps({"nodes": [{"target": target}]})}, "no operator")
            check({"p/models/m.json": json.dumps({"as_operator": target})}, "no operator")
        for expression in ("__import__('os')", "s0.x", "s0 if 1 else 2", "(lambda: 1)()", "[1]", "open('x')", "Symbol('s0').func"):
            check({"p/models/m.json": json.dumps({"expr_str": expression})}, "no plain arithmetic")
        for expression in ("s77", "2*s0 + 1", "Symbol('s0', positive=True, integer=True)", "Mul(Integer(2), Symbol('u0', integer=True))",
                           "FloorDiv(s0, 2)", "Max(1, s0)"):
            check({"p/models/m.json": json.dumps({"expr_str": expression})}, ["p/models/m.json"])

    def test_hub(self):
        hub = dict(kind="pytorch_hub", repository=str(self.files / "hub"), hub_source="local", input_shape=[1, 12])
        report, files = self.exported(**hub, entry="net", trust_repository=True)
        self.assertEqual((sorted(files), report["outputs"]), (["model.onnx"], ["logits"]))
        self.refused("refused", "has to be allowed", **hub, entry="net")
        self.refused("unknown_model", "no model 'x'", **hub, entry="x", trust_repository=True)
        self.refused("unsupported", "no module", **hub, entry="no_module", trust_repository=True)

    def test_requests_that_cannot_be_meant(self):
        self.refused("unknown_model", "near it are resnet18", kind="torchvision", model="resnet81")
        self.refused("unknown_model", "no weights 'X'", kind="torchvision", model="resnet18", weights="X")
        self.refused("unsupported", "no classifier", kind="torchvision", model="ssd300_vgg16", weights="none")
        self.refused("bad_request", "expected torchvision", kind="other")
        self.refused("bad_request", "name another input_shape", kind="torchvision", model="squeezenet1_1", weights="none",
                     input_shape=[1, 4, 64, 64])
        self.refused("bad_request", "input_shape: expected", kind="torchvision", model="squeezenet1_1", weights="none",
                     input_shape=[1 << 20] * 8)
        self.refused("bad_request", "opset: expected", kind="torchvision", model="squeezenet1_1", weights="none", opset=99)
        weights = str(self.files / "weights.pth")
        self.refused("bad_request", "say as architecture", kind="file", path=weights)
        self.refused("unsupported", "do not fit resnet18", kind="file", path=weights, architecture="resnet18")
        self.refused("bad_request", "input_shape is needed", kind="file", path=str(self.files / "script.pt"), input_shape=None)


if __name__ == "__main__":
    unittest.main()
