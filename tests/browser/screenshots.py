"""Writes pictures of every page of the dashboard, both themes, wide and narrow, empty, busy and failed, into a folder.

`python screenshots.py [DIR]`, docs/screenshots where none is named. All that is in DIR as a picture is replaced.
"""

import io
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import threading
import time

import numpy as np
from PIL import Image
from playwright.sync_api import sync_playwright

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(ROOT / "tests" / "clients"))
sys.path.insert(0, str(HERE))
from _hub import Hub  # noqa: E402
from _look import context_of, look, problems, watched  # noqa: E402
from _ortus import Connection, Refused, Server, default_binary  # noqa: E402
from _store import DIGITS, SEVEN, ordinary  # noqa: E402

CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
RGB = ROOT / "tests" / "fixtures" / "images" / "rgb.png"
SOUND = ROOT / "tests" / "fixtures" / "sounds" / "tone.ogg"
# Colours with as many pixels stay as they are: areas and what tells states. Between them, at the edges of letters, coarser steps
# are not seen.
PIXELS_KEPT = 120
STEP = 16
# Of longer pages, such as a thousand events, the beginning is shown.
HEIGHT_MAX = 4000
# Of pages that are much like another, each theme and each width is shown once.
FEW = {("light", 1440), ("dark", 390)}
MUCH_LIKE_ANOTHER = {
    "add-checked", "add-failed", "add-version", "download-done", "download-failed", "events-busy", "jobs-empty", "jobs-failed", "job-done", "job-failed",
    "model-failed", "model-looks-only", "models-empty", "models-failed", "not-found", "optimize", "overview-failed", "system-looks-only", "try",
    "try-failed", "try-tensors-answered", "try-text-answered",
}
JSON = {"Content-Type": "application/json"}


def fewer(picture):
    """The picture in fewer colours."""
    pixels = np.asarray(picture)
    packed = pixels.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], dtype=np.uint32)
    colours, where, counts = np.unique(packed, return_inverse=True, return_counts=True)
    parts = (colours[:, None] >> np.array([16, 8, 0], dtype=np.uint32)) & 255
    coarse = np.clip((parts + STEP // 2) // STEP * STEP, 0, 255)
    return Image.fromarray(np.where((counts >= PIXELS_KEPT)[:, None], parts, coarse).astype(np.uint8)[where.reshape(packed.shape)])


class Album:
    """Pictures of pages under names."""

    def __init__(self, browser, folder):
        self.page = watched(context_of(browser))
        self.folder = pathlib.Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        for old in [*self.folder.glob("*.png"), *self.folder.glob("*.webp")]:
            old.unlink()

    def take(self, name, url=None):
        if url:
            self.page.goto(url)
        if self.page.locator("[sse-connect]").count():
            self.page.locator(".age:text-is('live')").wait_for(state="attached")

        def picture(page, theme, width):
            if name in MUCH_LIKE_ANOTHER and (theme, width) not in FEW:
                return
            shot = Image.open(io.BytesIO(page.screenshot(full_page=True))).convert("RGB")
            shot = shot.crop((0, 0, shot.width, min(shot.height, HEIGHT_MAX)))
            fewer(shot).save(self.folder / f"{name}-{theme}-{width}.webp", lossless=True, quality=100, method=4)

        look(self.page, name, picture=picture)

    def leave(self):
        """Before the server goes: a page that stays open says so."""
        self.page.goto("about:blank")

    def press(self, text):
        self.page.click(f"button:text-is('{text}')")
        self.page.wait_for_load_state("load")


class Traffic:
    """Requests to a few models, by turns many and few, right and wrong."""

    def __init__(self, url):
        self.url, self.stop = url, threading.Event()
        self.threads = [threading.Thread(target=self.ask, args=(index,), daemon=True) for index in range(4)]

    def ask(self, index):
        api, seven, turn = Connection(self.url), SEVEN.read_bytes(), 0
        # What each asks for; the last is refused.
        asks = [
            ("digits", seven, {"Content-Type": "image/png"}),
            ("mlp", json.dumps({"inputs": {"x": [[0.5] * 32]}}), JSON),
            ("embedder", json.dumps({"inputs": ["a red fox", "the lazy dog"]}), JSON),
            ("digits", b"no picture", {"Content-Type": "image/png"}),
        ]
        while not self.stop.is_set():
            turn += 1
            model, body, headers = asks[index] if turn % 7 else asks[(index + 1) % 4]
            try:
                api.ok("POST", f"/v1/models/{model}/predict", body, headers)
            except Refused:
                pass
            self.stop.wait((0.02, 0.05, 0.15, 1.0)[index] * (1 + (turn // 60) % 3))

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        for thread in self.threads:
            thread.join()


def empty(album, url):
    for name, path in {"overview": "/", "models": "/ui/models", "jobs": "/ui/jobs"}.items():
        album.take(f"{name}-empty", url + path)


def forms(album, url):
    for name, path in {"add": "/ui/add", "add-version": "/ui/add?model=digits", "try": "/ui/models/digits/try", "optimize": "/ui/models/digits/optimize"}.items():
        album.take(name, url + path)
    album.page.goto(url + "/ui/add")
    album.page.fill("#source", "someone/digits")
    album.press("Check")
    album.take("add-checked")
    for name, model, file in (("picture", "digits", SEVEN), ("segments", "segments", RGB), ("sound", "letters", SOUND)):
        album.page.goto(f"{url}/ui/models/{model}/try")
        album.page.set_input_files("#file", file)
        album.press("Predict")
        album.take(f"try-{name}-answered")
    album.page.goto(url + "/ui/models/embedder/try")
    album.page.fill("#text", "the quick brown fox")
    album.page.fill("#second", "the lazy dog")
    album.press("Predict")
    album.take("try-text-answered")
    album.page.goto(url + "/ui/models/mlp/try")
    album.press("Predict")
    album.take("try-tensors-answered")


def failed(album, url, api):
    order(api, "harmed", "someone/damaged")
    wait_for(lambda: api.get("/v1/downloads")["downloads"][0]["state"] == "failed")
    api.request("POST", "/v1/models/digits/jobs", json.dumps({"inputs": {"b64": "bm8gcGljdHVyZQ=="}}), JSON)
    wait_for(lambda: api.get("/v1/jobs")["jobs"][0]["status"] == "failed")
    paths = {"overview": "/", "models": "/ui/models", "model": "/ui/models/broken", "jobs": "/ui/jobs", "not-found": "/ui/models/none"}
    download, job = api.get("/v1/downloads")["downloads"][0]["id"], api.get("/v1/jobs")["jobs"][0]["id"]
    for name, path in paths.items():
        album.take(name if name == "not-found" else f"{name}-failed", url + path)
    album.take("download-failed", f"{url}/ui/downloads/{download}")
    album.take("job-failed", f"{url}/ui/jobs/{job}")
    album.page.goto(url + "/ui/add")
    album.page.fill("#source", "someone/nothing")
    album.press("Check")
    album.take("add-failed")
    album.page.goto(url + "/ui/models/mlp/try")
    album.page.fill("#text", '{"x": [1, 2')
    album.press("Predict")
    album.take("try-failed")


def busy(album, url, api, hub):
    order(api, "fetched", "someone/digits")
    wait_for(lambda: api.get("/v1/downloads")["downloads"][0]["state"] == "done")
    hub.hold.clear()
    order(api, "coming", "someone/digits")
    coming = download_of(api, "coming")["id"]
    report = json.loads(api.request("POST", "/v1/models/digits/optimize", json.dumps({"adopt": False}), JSON)[2])["id"]
    wait_for(lambda: api.get(f"/v1/jobs/{report}")["status"] == "succeeded")
    job = json.loads(api.request("POST", "/v1/models/mlp/jobs", json.dumps({"inputs": {"x": [[0.5] * 32]}}), JSON)[2])["id"]
    wait_for(lambda: api.get(f"/v1/jobs/{job}")["status"] == "succeeded")
    paths = {"download-done": f"/ui/downloads/{download_of(api, 'fetched')['id']}", "job-report": f"/ui/jobs/{report}", "job-done": f"/ui/jobs/{job}"}
    for name, path in paths.items():
        album.take(name, url + path)
    api = Connection(url)
    endless = json.dumps({"inputs": {"n": 10**12}})
    jobs = [json.loads(api.request("POST", "/v1/models/slow/jobs", endless, JSON)[2])["id"] for _ in range(2)]
    with Traffic(url):
        time.sleep(25)
        paths = {
            "overview": "/", "models": "/ui/models", "model": "/ui/models/digits", "jobs": "/ui/jobs", "events": "/ui/events", "system": "/ui/system",
            "delete": "/ui/models/fetched/delete",
        }
        for name, path in paths.items():
            album.take(name if name == "delete" else f"{name}-busy", url + path)
        album.take("download-running", f"{url}/ui/downloads/{coming}")
        album.take("job-running", f"{url}/ui/jobs/{jobs[0]}")
    for job in jobs:
        Connection(url).request("DELETE", f"/v1/jobs/{job}")
    hub.hold.set()
    album.leave()


def make_key(store, role):
    words = [default_binary(), "key", "create", "--models", store, "--role", role, "--name", "me"]
    return subprocess.run(words, capture_output=True, check=True, text=True).stdout.split()[0]


def download_of(api, name):
    return next(download for download in api.get("/v1/downloads")["downloads"] if download["name"] == name)


def order(api, name, repository):
    status, _, body = api.request("POST", "/v1/models", json.dumps({"name": name, "source": "huggingface", "model_id": repository}), JSON)
    if status != 202:
        raise SystemExit(f"{repository} could not be ordered: {status} {body.decode()}")


def wait_for(holds, seconds=60):
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            raise SystemExit("what was to be pictured did not come")
        time.sleep(0.2)


def main():
    target = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "screenshots"
    folders = {"someone/digits": DIGITS / "1", "someone/damaged": DIGITS / "1"}
    with tempfile.TemporaryDirectory() as folder, Hub(folders, {"someone/damaged"}) as hub, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        album = Album(browser, target)
        settings = {"HF_HUB_CACHE": str(pathlib.Path(folder) / "hub"), "ORTUS_HUB__HF_ENDPOINT": hub.url, "ORTUS_HUB__ALLOWED_HOSTS": hub.url.removeprefix("http://")}
        with Server(default_binary(), pathlib.Path(folder) / "nothing", **settings) as server:
            empty(album, server.url)
            album.leave()
        with Server(default_binary(), ordinary(pathlib.Path(folder) / "store"), **settings) as server:
            forms(album, server.url)
            # The server closes connections that are quiet for as long as pictures take.
            failed(album, server.url, Connection(server.url))
            busy(album, server.url, Connection(server.url), hub)
        locked = pathlib.Path(folder) / "locked"
        locked.mkdir()
        make_key(locked, "admin")
        with Server(default_binary(), locked, **settings) as server:
            album.take("sign-in", server.url + "/")
        looked_at = ordinary(pathlib.Path(folder) / "looked-at")
        key = make_key(looked_at, "infer")
        with Server(default_binary(), looked_at, **settings) as server:
            album.page.goto(server.url + "/ui/sign-in")
            album.page.fill("#key", key)
            album.press("Sign in")
            for name, path in {"model": "/ui/models/digits", "system": "/ui/system"}.items():
                album.take(f"{name}-looks-only", server.url + path)
            album.leave()
        browser.close()
    pictures = sorted(target.glob("*.webp"))
    print(f"{len(pictures)} pictures, {sum(path.stat().st_size for path in pictures) / 1e6:.2f} MB, in {target}")
    if problems:
        raise SystemExit("\n".join(problems))


if __name__ == "__main__":
    main()
