#!/usr/bin/env python3
"""Serves a store of models that bring their expected answers, and compares over V2 binary, V2 JSON and /v1 JSON.

    shared_models.py [STORE] [--ortus BINARY]

Each model folder has `expected.json`: tensors in it or in .npy and .npz files beside it, or pictures (in `inputs/` beside
the store) with the labels and scores of the reference, or texts with their embeddings. Models of other tasks are counted as
not checked. A difference counts where it is beyond the file's tolerance, or beyond 1e-5 relative where the
file allows less. Needs ORT_DYLIB_PATH.
"""

import argparse
import collections
import json
import pathlib
import shutil
import statistics
import sys
import tempfile
import urllib.parse
import wave

import numpy as np
from _ortus import ROOT, Connection, Refused, Server, Tensor, default_binary, nest

MEDIA = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp", ".bmp": "image/bmp", ".gif": "image/gif"}
WAYS = ("V2 binary", "V2 JSON", "/v1 JSON")
RTOL_LEAST = 1e-5


class Expected:
    """One case: inputs and expected outputs by name; a value is a Tensor or, for sequences and maps, a JSON value."""

    def __init__(self, case_id, inputs, outputs, version=None):
        self.id, self.inputs, self.outputs, self.version = case_id, inputs, outputs, version


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("store", nargs="?", type=pathlib.Path, default=ROOT.parent / "shared" / "models" / "store")
    arguments.add_argument("--ortus", default=default_binary(), help="the server's binary (default: $ORTUS, or the debug build)")
    arguments.add_argument("--only", help="only this model")
    arguments = arguments.parse_args()
    if not arguments.store.is_dir():
        print(f"SKIPPED: there is no store of models at {arguments.store}: NOTHING was checked")
        sys.exit(0)
    models = {path.parent.name: json.loads(path.read_text()) for path in sorted(arguments.store.glob("*/expected.json"))}
    if arguments.only:
        models = {name: expected for name, expected in models.items() if name == arguments.only}
    checked = {name: expected for name, expected in models.items() if kind_of(expected) != "other"}
    with tempfile.TemporaryDirectory() as folder:
        # A copy: the store may be read-only, and a server keeps files of its own in it.
        for name in checked:
            shutil.copytree(arguments.store / name, pathlib.Path(folder) / name, ignore=shutil.ignore_patterns("expected.json", "*.npz", "*.npy"))
        with Server(arguments.ortus, folder) as server:
            totals = Totals()
            for name, expected in models.items():
                Check(server.url, arguments.store, name, expected, totals).run()
    sys.exit(totals.show())


def kind_of(expected):
    if expected.get("must_fail_to_load"):
        return "broken"
    if expected["task"] == "image-classification":
        return "pictures"
    if expected["task"].startswith("embeddings"):
        return "texts"
    is_tensor = [("inputs" in case) or ("tensors" in case.get("input", {})) for case in expected["cases"]]
    return "tensors" if is_tensor and all(is_tensor) else "other"


class Totals:
    def __init__(self):
        self.counts = collections.Counter()
        self.failures, self.rows, self.unchecked = [], [], []

    def show(self):
        print(f"{'model':26} {'way':10} {'right':>9}  largest difference")
        for row in self.rows:
            print(row)
        for failure in self.failures:
            print(f"FAILED  {failure}")
        print(f"not checked, being tasks of other kinds: {', '.join(self.unchecked) or 'none'}")
        right = sum(count for (_, is_right), count in self.counts.items() if is_right)
        by_way = "; ".join(
            f"{way} {self.counts[way, True]} of {self.counts[way, True] + self.counts[way, False]}"
            for way in sorted({way for way, _ in self.counts})
        )
        print(by_way)
        print(f"{right} passed, {len(self.failures)} failed")
        return 1 if self.failures or not right else 0


class Check:
    """All that one model is checked for."""

    def __init__(self, url, store, name, expected, totals):
        self.connection = Connection(url)
        self.store, self.name, self.expected, self.totals = store, name, expected, totals
        tolerance = expected.get("tolerance", {})
        self.rtol, self.atol = max(tolerance.get("rtol", 0.0), RTOL_LEAST), tolerance.get("atol", 0.0)
        self.counts, self.largest = collections.Counter(), collections.defaultdict(float)

    def run(self):
        match kind_of(self.expected):
            case "other":
                self.totals.unchecked.append(self.name)
                return
            case "broken":
                self.attempt("load", "must fail to load", self.fails_to_load)
            case "pictures":
                self.pictures()
            case "texts":
                self.texts()
            case "tensors":
                self.tensors()
        for way in dict.fromkeys(way for way, _ in self.counts):
            right, wrong = self.counts[way, True], self.counts[way, False]
            self.totals.rows.append(f"{self.name:26} {way:10} {right:4}/{right + wrong:<4}  {self.largest[way]:.2g}")

    def attempt(self, way, case_id, check):
        try:
            check()
            is_right = True
        except (AssertionError, Refused, OSError, KeyError, ValueError, TypeError) as error:
            self.totals.failures.append(f"{self.name}, {way}, {case_id}: {type(error).__name__}: {error}")
            is_right = False
        self.counts[way, is_right] += 1
        self.totals.counts[way, is_right] += 1

    # --- tensors --------------------------------------------------------------------------------

    def tensors(self):
        cases = [self.read_case(case) for case in self.expected["cases"]]
        if "version_1_outputs" in self.expected:
            outputs = {name: tensor(value) for name, value in self.expected["version_1_outputs"].items()}
            cases.append(Expected("version 1", cases[0].inputs, outputs, version="1"))
        for case in cases:
            if case.version is not None and not self.serves(case.version):
                self.attempt("load", case.id, lambda: self.serve_all_versions())
            for way, infer in zip(WAYS, (self.infer_binary, self.infer_json, self.predict)):
                self.attempt(way, case.id, lambda: self.compare(way, infer(case), case.outputs))
        for number, case in enumerate(self.expected.get("must_fail", [])):
            wrong = Expected(f"must fail {number}", {name: tensor(value) for name, value in case["inputs"].items()}, {})
            for way, infer in zip(WAYS, (self.infer_binary, self.infer_json, self.predict)):
                self.attempt(way, wrong.id, lambda: self.is_refused(lambda: infer(wrong)))
        if "probabilities" in self.expected:
            self.attempt("V2 binary", "the whole recording", self.stream_speech)

    def serves(self, version):
        return self.connection.request("GET", f"/v2/models/{self.name}/versions/{version}/ready")[0] == 200

    def serve_all_versions(self):
        config = json.dumps({"name": self.name, "version_policy": {"all": {}}})
        self.connection.post(f"/v2/repository/models/{self.name}/load", {"parameters": {"config": config}})

    def read_case(self, case):
        folder = self.store / self.name
        case_id = str(case["id"])
        if "npz" in case:
            arrays = np.load(folder / case["npz"])

            def of(name):
                return arrays[name][[case["row"]]] if "row" in case else arrays[name]

            return Expected(case_id, {name: Tensor.of(of(name)) for name in case["inputs"]}, {name: Tensor.of(of(name)) for name in case["outputs"]})
        if "tensors" in case.get("input", {}):
            inputs = {name: Tensor.of(np.load(folder / value["npy"])) for name, value in case["input"]["tensors"].items()}
            return Expected(case_id, inputs, {name: Tensor.of(np.array(value, np.float32)) for name, value in case["outputs"].items()})
        return Expected(
            case_id, {name: tensor(value) for name, value in case["inputs"].items()},
            {name: tensor(value) for name, value in case["outputs"].items()},
        )

    def infer_binary(self, case):
        return self.connection.infer_binary(self.name, wire(case.inputs), case.version)

    def infer_json(self, case):
        return self.connection.infer_json(self.name, wire(case.inputs), case.version)

    def predict(self, case):
        inputs = {
            name: {"dtype": value.datatype, "shape": value.shape, "data": value.flat()} if isinstance(value, Tensor) else value
            for name, value in case.inputs.items()
        }
        version = "" if case.version is None else f"/versions/{case.version}"
        return self.connection.post(f"/v1/models/{self.name}{version}/predict", {"inputs": inputs})["outputs"]

    def compare(self, way, got, outputs):
        assert list(got) == list(outputs) or set(got) == set(outputs), f"outputs {list(got)}, not {list(outputs)}"
        for name, expected in outputs.items():
            value = got[name]
            if isinstance(value, Tensor):
                if not isinstance(expected, Tensor):
                    assert (value.datatype, value.shape) == ("BYTES", [1]), f"{name}: {value.datatype}{value.shape}"
                    value = json.loads(value.data[0])
                else:
                    described = (value.datatype, list(value.shape))
                    assert described == (expected.datatype, list(expected.shape)), f"{name}: {described}"
                    value = value.nested()
            elif isinstance(expected, Tensor) and expected.datatype in ("FP16", "BF16"):
                # The answer has the number itself; `as_tree` has the fewest digits that tell it apart.
                value = Tensor.from_flat(expected.datatype, expected.shape, leaves(value)).nested()
            self.compare_trees(way, name, value, as_tree(expected))

    def compare_trees(self, way, where, got, expected):
        if isinstance(expected, list):
            assert isinstance(got, list) and len(got) == len(expected), f"{where}: {str(got)[:80]}, not {str(expected)[:80]}"
            if expected and all(type(element) is float for element in [*got, *expected]):
                self.close(way, where, np.array(got), np.array(expected))
                return
            for index, (one, other) in enumerate(zip(got, expected)):
                self.compare_trees(way, f"{where}[{index}]", one, other)
        elif isinstance(expected, dict):
            assert isinstance(got, dict) and got.keys() == expected.keys(), f"{where}: {str(got)[:80]}, not {str(expected)[:80]}"
            for key in expected:
                self.compare_trees(way, f"{where}.{key}", got[key], expected[key])
        elif type(expected) is float and type(got) in (int, float):
            self.close(way, where, np.array(got), np.array(expected))
        else:
            assert type(got) is type(expected) and got == expected, f"{where}: {got!r}, not {expected!r}"

    def close(self, way, where, got, expected):
        difference = np.abs(got.astype(np.float64) - expected.astype(np.float64))
        self.largest[way] = max(self.largest[way], float(difference.max(initial=0.0)))
        allowed = self.atol + self.rtol * np.abs(expected)
        assert (difference <= allowed).all(), f"{where}: differs by {difference.max():.3g}, allowed {np.min(allowed):.3g}"

    def is_refused(self, call):
        try:
            call()
        except Refused as error:
            assert 400 <= error.status < 500, f"status {error.status}"
            return
        raise AssertionError("was answered")

    def fails_to_load(self):
        info = self.connection.get(f"/v1/models/{self.name}")
        assert info["state"] == "failed" and info.get("last_error"), info
        self.is_refused(lambda: self.connection.ok("POST", f"/v2/repository/models/{self.name}/load", b""))
        assert self.connection.request("GET", f"/v2/models/{self.name}/ready")[0] == 400

    def stream_speech(self):
        """Voice activity over a recording: 512 samples at a time with the 64 before them, the state fed back."""
        with wave.open(str(self.store.parent / "inputs" / "audio" / "speech_16k.wav")) as file:
            samples = np.frombuffer(file.readframes(file.getnframes()), np.int16).astype(np.float32) / 32768
        state, context = np.zeros((2, 1, 128), np.float32), np.zeros(64, np.float32)
        rate = Tensor.of(np.array(16_000, np.int64))
        for step, expected in enumerate(self.expected["probabilities"]):
            window = samples[step * 512 : (step + 1) * 512]
            window = np.pad(window, (0, 512 - len(window)))
            inputs = {"input": Tensor.of(np.concatenate([context, window])[None]), "state": Tensor.of(state), "sr": rate}
            outputs = self.connection.infer_binary(self.name, inputs)
            state, context = outputs["stateN"].array(), window[-64:]
            self.close("V2 binary", f"step {step}", outputs["output"].array().reshape(()), np.array(expected))

    # --- pictures -------------------------------------------------------------------------------

    def pictures(self):
        tolerance, differences = self.expected["tolerance"], []
        for case in self.expected["cases"]:
            self.attempt("pictures", case["id"], lambda: differences.append(self.picture(case, tolerance)))

        def median_is_small():
            median = statistics.median(differences)
            assert median <= tolerance["median_score_abs"], f"median difference {median:.3g}, allowed {tolerance['median_score_abs']}"

        self.attempt("pictures", "median", median_is_small)
        for file in self.expected.get("must_not_crash", []):
            self.attempt("pictures", file, lambda: self.answers(file, range(200, 500)))
        for file in self.expected.get("must_be_4xx", []):
            self.attempt("pictures", file, lambda: self.answers(file, range(400, 500)))

    def post_picture(self, file, parameters):
        path = self.store.parent / "inputs" / file
        query = urllib.parse.urlencode(parameters)
        return self.connection.request(
            "POST", f"/v1/models/{self.name}/predict?{query}", path.read_bytes(), {"Content-Type": MEDIA[path.suffix]}
        )

    def answers(self, file, statuses):
        status, _, answer = self.post_picture(file, {})
        assert status in statuses, f"{status}: {answer[:200]}"

    def picture(self, case, tolerance):
        """The largest difference of a score of the best five."""
        file = case["input"]["file"]
        status, _, answer = self.post_picture(file, case.get("parameters", {}))
        assert status == 200, f"{status}: {answer[:300]}"
        (got,) = json.loads(answer)["predictions"]
        expected = case["predictions"]
        is_lossy = pathlib.Path(file).suffix in (".jpg", ".jpeg", ".webp")
        allowed = tolerance["jpeg_score_abs" if is_lossy else "png_score_abs"]
        assert len(got) == len(expected), f"{len(got)} labels, not {len(expected)}"
        scores = [one["score"] for one in got]
        assert scores == sorted(scores, reverse=True), "not sorted by score"
        by_label = {one["label"]: one["score"] for one in got}
        largest = 0.0
        for want in expected:
            # A label may only be missing where it is as good as the last one here.
            score = by_label.get(want["label"], scores[-1])
            difference = abs(score - want["score"])
            largest = max(largest, difference)
            assert difference <= allowed, f"{want['label']}: {score:.4f}, not {want['score']:.4f} (allowed {allowed})"
        close_call = expected[0]["score"] - expected[1]["score"] <= 2 * allowed
        assert close_call or got[0]["label"] == expected[0]["label"], f"best is {got[0]['label']}, not {expected[0]['label']}"
        self.largest["pictures"] = max(self.largest["pictures"], largest)
        return largest

    # --- texts ----------------------------------------------------------------------------------

    def texts(self):
        """Each text alone, all of them in one request, and how near the pairs are to one another."""
        cases, found = self.expected["cases"], {}
        for case in cases:
            self.attempt("texts", case["id"], lambda: self.embedding(case, self.embed(case["input"]["text"])[0]))

        def all_at_once():
            for case, got in zip(cases, self.embed([case["input"]["text"] for case in cases]), strict=True):
                self.embedding(case, got)
                found[case["id"]] = np.array(got)

        self.attempt("texts", "all at once", all_at_once)
        for pair in self.expected.get("similarity", []):
            allowed = self.expected["tolerance"]["abs"]

            def is_as_near():
                cosine = float(found[pair["a"]] @ found[pair["b"]])
                assert abs(cosine - pair["cosine"]) <= allowed, f"cosine {cosine:.4f}, not {pair['cosine']:.4f}"

            self.attempt("texts", f"{pair['a']} and {pair['b']}", is_as_near)

    def embed(self, inputs):
        return self.connection.post(f"/v1/models/{self.name}/predict", {"inputs": inputs})["predictions"]

    def embedding(self, case, got):
        expected = case["predictions"]
        assert len(got) == len(expected), f"{len(got)} numbers, not {len(expected)}"
        largest, allowed = float(np.abs(np.array(got) - np.array(expected)).max()), self.expected["tolerance"]["abs"]
        self.largest["texts"] = max(self.largest["texts"], largest)
        assert largest <= allowed, f"differs by {largest:.3g}, allowed {allowed}"


def tensor(value):
    """A value of `expected.json`: a tensor, or JSON for sequences and maps."""
    if isinstance(value, dict) and {"dtype", "shape", "data"} <= value.keys():
        return Tensor.from_flat(value["dtype"], value["shape"], value["data"])
    return [tensor(element) for element in value] if isinstance(value, list) else value


def leaves(tree):
    """The elements of nested lists."""
    return [leaf for branch in tree for leaf in leaves(branch)] if isinstance(tree, list) else [tree]


def as_tree(value):
    if isinstance(value, Tensor):
        return nest(value.flat(), list(value.shape)) if value.shape else value.flat()[0]
    return [as_tree(element) for element in value] if isinstance(value, list) else value


def wire(inputs):
    """Inputs for V2: what is no tensor is JSON text."""
    return {
        name: value if isinstance(value, Tensor) else Tensor("BYTES", [1], [json.dumps(as_tree(value), ensure_ascii=False)])
        for name, value in inputs.items()
    }


if __name__ == "__main__":
    main()
