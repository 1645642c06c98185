#!/usr/bin/env python3
"""Calls the server as users of TorchServe call theirs: with curl, and from Python as the package requests sends it.

    torchserve_client.py [--ortus BINARY]

Starts the server itself (needs ORT_DYLIB_PATH) on copies of the digits model and of two of tests/fixtures/store. Registers,
describes, scales and unregisters models, and predicts in every form that TorchServe's documentation shows.
"""

import argparse
import base64
import functools
import http.server
import json
import pathlib
import shutil
import subprocess
import tempfile
import threading
import urllib.parse
import uuid

from _ortus import ROOT, Connection, Server, default_binary

STORE = ROOT / "tests" / "fixtures" / "store"
DIGITS = ROOT / "models" / "digits"
SEVEN = DIGITS / "samples" / "seven.png"
ROW = [place / 32 for place in range(32)]


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--ortus", default=default_binary(), help="the server's binary (default: $ORTUS, or the debug build)")
    arguments = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder, files(STORE / "versions" / "1") as address:
        for model in (DIGITS, STORE / "mlp", STORE / "embedder"):
            shutil.copytree(model, pathlib.Path(folder) / model.name)
        with Server(arguments.ortus, folder, ORTUS_HUB__ALLOWED_HOSTS=address, ORTUS_HUB__RESERVE_MB="0") as server:
            client = Client(server.url)
            predict(client)
            by_curl(server.url, pathlib.Path(folder))
            manage(client, address)
            fail(client)
    print("torchserve: all passed")


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


class files:
    """Serves a folder on a port of its own; gives host:port."""

    def __init__(self, folder):
        handler = functools.partial(Quiet, directory=str(folder))
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return f"127.0.0.1:{self.server.server_port}"

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


class Answer:
    def __init__(self, status, body):
        self.status_code, self.text = status, body.decode()

    def json(self):
        return json.loads(self.text)

    def good(self):
        assert self.status_code == 200, (self.status_code, self.text)
        return self.json()


class Client:
    """Sends what requests sends for the same arguments."""

    def __init__(self, url):
        self.connection = Connection(url)

    def call(self, method, path, params=None, data=None, files=None, json=None, headers=None):
        headers = dict(headers or {})
        if params:
            path += "?" + urllib.parse.urlencode(params)
        if isinstance(data, dict):
            data = urllib.parse.urlencode(data)
            headers["Content-Type"] = "application/x-www-form-urlencoded"
        if json is not None:
            data = dumps(json)
            headers["Content-Type"] = "application/json"
        if files:
            data, headers["Content-Type"] = form(files)
        return Answer(*self.connection.request(method, path, data, headers)[::2])

    get = functools.partialmethod(call, "GET")
    post = functools.partialmethod(call, "POST")
    put = functools.partialmethod(call, "PUT")
    delete = functools.partialmethod(call, "DELETE")


def dumps(value):
    return json.dumps(value)


def form(files):
    boundary = uuid.uuid4().hex
    body = b""
    for name, (filename, content) in files.items():
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"; filename="{filename}"\r\n\r\n'
        body += head.encode() + content + b"\r\n"
    return body + f"--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}"


def check_seven(answer):
    assert next(iter(answer)) == "7" and answer["7"] > 0.99 and len(answer) == 5, answer
    assert list(answer.values()) == sorted(answer.values(), reverse=True), answer


def predict(client):
    assert client.get("/ping").json() == {"status": "Healthy"}
    picture = SEVEN.read_bytes()
    # The forms of TorchServe's documentation: data=, files=, json=, by POST and PUT.
    for call in (
        lambda: client.post("/predictions/digits", data=picture),
        lambda: client.put("/predictions/digits", data=picture),
        lambda: client.post("/predictions/digits/1.0", data=picture, headers={"Content-Type": "application/octet-stream"}),
        lambda: client.post("/predictions/digits", files={"data": ("data", picture)}),
        lambda: client.post("/predictions/digits", files={"body": ("seven.png", picture)}),
        lambda: client.post("/predictions/digits", json={"data": base64.b64encode(picture).decode()}),
    ):
        check_seven(call().good())
    instances = {"instances": [{"data": base64.b64encode(picture).decode()}] * 3}
    for path in ("/predictions/digits", "/v1/models/digits:predict"):
        predictions = client.post(path, json=instances).good()["predictions"]
        assert len(predictions) == 3, predictions
        for prediction in predictions:
            check_seven(prediction)
    rows = client.post("/v1/models/mlp/predict", json={"inputs": [ROW, ROW]}).json()["outputs"]
    (expected,) = rows.values()
    assert client.post("/predictions/mlp", json=[ROW, ROW]).json() == expected
    assert client.post("/v1/models/mlp:predict", json={"instances": [ROW, ROW]}).json() == {"predictions": expected}
    vector = client.post("/predictions/embedder", data={"data": "the cat"}).good()
    assert vector == client.post("/predictions/embedder", data="the cat").json() and len(vector) > 1
    print("predictions: pictures, tensors and texts in every form")


def by_curl(url, folder):
    rows = folder.parent / f"{folder.name}.json"
    rows.write_text(json.dumps({"instances": [ROW]}))
    try:
        for arguments in (
            ["-T", str(SEVEN), f"{url}/predictions/digits"],
            ["-X", "POST", "-T", str(SEVEN), f"{url}/predictions/digits"],
            ["-F", f"data=@{SEVEN}", f"{url}/predictions/digits"],
            ["--data-binary", f"@{SEVEN}", f"{url}/predictions/digits"],
        ):
            check_seven(curl(arguments))
        for arguments in (
            ["-T", str(rows), f"{url}/predictions/mlp"],
            ["-d", f"@{rows}", f"{url}/v1/models/mlp:predict"],
            ["-H", "Content-Type: application/json", "--data", f"@{rows}", f"{url}/predictions/mlp"],
        ):
            assert len(curl(arguments)["predictions"]) == 1, arguments
        assert len(curl(["-d", "data=the cat", f"{url}/predictions/embedder"])) > 1
    finally:
        rows.unlink()
    print("predictions: by curl -T, -F, -d and --data-binary")


def curl(arguments):
    answer = subprocess.run(["curl", "--silent", "--show-error", "--fail-with-body", *arguments], capture_output=True, text=True)
    assert answer.returncode == 0, (arguments, answer.stdout, answer.stderr)
    return json.loads(answer.stdout)


def manage(client, address):
    registered = client.post("/models", params={
        "url": f"http://{address}/model.onnx", "model_name": "plus", "initial_workers": 1, "synchronous": "true",
    })
    assert registered.good()["status"].startswith('Model "plus" Version: 1 registered with 1'), registered.text
    assert client.post("/predictions/plus", json=[0.0, 1.0]).json() == [1.0, 2.0]
    listed = client.get("/models", params={"limit": 2}).json()
    names = [model["modelName"] for model in listed["models"]]
    listed = client.get("/models", params={"limit": 100, "next_page_token": listed["nextPageToken"]}).json()
    assert names + [model["modelName"] for model in listed["models"]] == ["digits", "embedder", "mlp", "plus"], (names, listed)
    (described,) = client.get("/models/plus").json()
    assert described["workers"][0]["status"] == "READY" and described["modelVersion"] == "1", described
    scaled = client.put("/models/plus", params={"min_worker": 0, "synchronous": "true"})
    assert scaled.json() == {"status": "Workers scaled to 0 for model: plus"}, scaled.text
    assert client.get("/models/plus/all").json()[0]["workers"] == []
    assert client.put("/models/plus", params={"min_worker": 1, "synchronous": "true"}).status_code == 200
    assert client.put("/models/plus/1/set-default").status_code == 200
    assert client.delete("/models/plus/1.0").json() == {"status": 'Model "plus" unregistered'}
    print("management: registered, listed, described, scaled, chosen and unregistered")


def fail(client):
    for answer, status, kind in (
        (client.post("/predictions/none", data=b"x"), 404, "ModelNotFoundException"),
        (client.get("/models/none"), 404, "ModelNotFoundException"),
        (client.post("/models", params={"url": "https://example.org/densenet161.mar"}), 400, "BadRequestException"),
        (client.post("/models", params={"url": "http://169.254.169.254/x.onnx"}), 400, "DownloadArchiveException"),
        (client.post("/explanations/digits", data=b"x"), 501, "NotImplementedException"),
    ):
        body = answer.json()
        assert (answer.status_code, body["code"], body["type"]) == (status, status, kind), answer.text
        print(f"{kind}: {body['message'][:100]}")


if __name__ == "__main__":
    main()
