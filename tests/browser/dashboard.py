"""Drives every page and action of the dashboard in headless Chromium, against a real server with real models.

Fails on a script error, a message of the console, a violation of the content security policy, a page wider than its window, a
serious finding of axe-core in either theme, an action that the keyboard alone does not reach or a focus that is not seen, a fact
missing without scripts, a text of a model that becomes markup, a page heavier than its budget, and a query of
deploy/observability that /metrics does not answer.
"""

import contextlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request

from playwright.sync_api import sync_playwright

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(ROOT / "tests" / "clients"))
sys.path.insert(0, str(HERE))
from _hub import Hub  # noqa: E402
from _keyboard import Keyboard  # noqa: E402
from _look import axe_script, check, context_of, look, problems, quiet, watched  # noqa: E402
from _ortus import Connection, Server, default_binary  # noqa: E402
from _store import ALL, DIGITS, HOSTILE, LONG, SEVEN, WIDE, hostile, ordinary  # noqa: E402

CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
# Of the whole page with all that it brings, as it comes over the wire.
PAGE_BYTES_MAX = 150_000
ENDLESS_RUN = {"inputs": {"n": 10**12}}


def pages():
    return {
        "overview": "/", "models": "/ui/models", "model": "/ui/models/digits", "failed model": "/ui/models/broken", "try": "/ui/models/digits/try",
        "try a text": "/ui/models/embedder/try", "try a sound": "/ui/models/letters/try", "try tensors": "/ui/models/mlp/try", "add": "/ui/add",
        "new version": "/ui/add?model=digits", "jobs": "/ui/jobs", "events": "/ui/events", "system": "/ui/system", "delete": "/ui/models/digits/delete",
        "optimise": "/ui/models/digits/optimize", "not found": "/ui/models/none", "overview of 5 minutes": "/?minutes=5",
    }


def of_their_own(server):
    """The pages of a download and of jobs that are there."""
    api = Connection(server.url)
    first = {job["kind"] + " job, " + job["status"]: f"/ui/jobs/{job['id']}" for job in api.get("/v1/jobs")["jobs"]}
    return first | {"download, " + one["state"]: f"/ui/downloads/{one['id']}" for one in api.get("/v1/downloads")["downloads"]}


def main_text(page):
    return page.locator("main").inner_text()


def notice(page):
    return page.locator(".notice").inner_text()


def press(page, text):
    page.click(f"button:text-is('{text}')")
    page.wait_for_load_state("load")


def look_at_all(browser, server, names):
    page, axe = watched(context_of(browser)), axe_script()
    for name, path in names.items():
        page.goto(server.url + path)
        if page.locator("[sse-connect]").count():
            # The live parts come once a second.
            page.locator(".age:text-is('live')").wait_for(state="attached")
        look(page, name, axe)
    page.context.close()


def facts(server):
    """What each page has to say, as the API says it."""
    api = Connection(server.url)
    models, broken = api.get("/v1/models")["models"], api.get("/v1/models/broken")
    digits, stats, system = api.get("/v1/models/digits"), api.get("/v1/models/digits/stats"), api.get("/v1/system")
    ready = sum(model["state"] == "ready" for model in models)
    reason = broken["versions"][0]["reason"]
    inputs = [tensor["name"] for tensor in digits["metadata"]["inputs"] + digits["metadata"]["outputs"]]
    jobs = [word for job in api.get("/v1/jobs")["jobs"] for word in (job["id"][:8], job["model"], job["status"])]
    downloads = [word for download in api.get("/v1/downloads")["downloads"] for word in (download["name"], download["state"])]
    limit = next(limit["limit"] for limit in system["limits"] if limit["key"] == "limits.max_jobs")
    download = api.get("/v1/downloads")["downloads"][0]
    digits_files = [file["path"] for file in api.get("/v1/models/digits/files?version=1")["files"]]
    return {
        f"/ui/downloads/{download['id']}": [download["name"], download["state"], "Files"] + [file["path"] for file in download["files"]],
        "/ui/models/digits/delete": ["1/" + path for path in digits_files],
        "/": [f"{ready} of {len(models)}", "broken", reason, "digits", "p95", "Memory"],
        "/ui/models": [model["name"] for model in models] + ["image-classification", "failed", reason],
        "/ui/models/digits": inputs + ["ready", "image-classification", digits["metadata"]["producer"], str(stats["forward_time"]["count"]), "In memory", "chosen at load", "p99"] + digits_files,
        "/ui/models/broken": ["failed", reason],
        "/ui/models/digits/try": ["Picture", "Predict"],
        "/ui/add": ["HuggingFace id", "Check"],
        "/ui/jobs": jobs + downloads,
        "/ui/events": ["is ready", "broken"],
        "/ui/system": [system["runtime"].split()[-1], "CUDAExecutionProvider", "limits.", "listen", "Jobs that are kept", f"of {limit:,}"],
        "/ui/models/fetched/delete": ["model.onnx", "Keep it"],
        "/ui/models/none": ["none"],
    }


def without_scripts(browser, server):
    page = context_of(browser, java_script_enabled=False).new_page()
    for path, words in facts(server).items():
        page.goto(server.url + path)
        text = page.locator("body").inner_text()
        missing = [word for word in words if word not in text]
        check(page.locator("h1").count() == 1 and not missing, f"{path}: says all without scripts {missing or ''}")
    page.goto(server.url + "/ui/models/digits/try")
    page.set_input_files("input[name=file]", SEVEN)
    press(page, "Predict")
    check("7" in page.locator(".scores tbody tr").first.inner_text(), "without scripts: a picture of a seven is found")
    for button, word in {"Unload": "unloaded", "Load": "is loaded", "Warm up": "warm-up is done", "Reset the statistics": "count anew"}.items():
        page.goto(server.url + "/ui/models/mlp")
        press(page, button)
        check(word in notice(page), f"without scripts: {button}")
    page.goto(server.url + "/ui/add?model=scriptless")
    page.set_input_files("#file", DIGITS / "1" / "model.onnx")
    press(page, "Upload and load it")
    check("in the store" in notice(page), "without scripts: a model is uploaded")
    page.goto(server.url + "/ui/models/scriptless/delete")
    press(page, "Delete")
    check("deleted" in notice(page) and page.locator("a:text-is('scriptless')").count() == 0, "without scripts: it is deleted")
    page.goto(server.url + "/ui/add")
    page.fill("#source", "someone/digits")
    press(page, "Check")
    check("What would be fetched" in main_text(page), "without scripts: an order is checked")
    page.goto(server.url + "/ui/events?text=ready&level=info")
    check(page.locator("tbody tr").count() > 0, "without scripts: events are filtered")
    page.goto(server.url + "/")
    page.select_option("select[name=theme]", "dark")
    press(page, "Set")
    check(page.locator("html").get_attribute("data-theme") == "dark", "without scripts: a theme is chosen")
    page.context.close()


def add_a_model(page, server, hub):
    page.goto(server.url + "/ui/add")
    page.fill("#source", "someone/digits")
    page.fill("#name", "fetched")
    press(page, "Check")
    check(page.locator("text=What would be fetched").count() == 1, "a check lists what would be fetched")
    check(page.locator("td:text-is('model.onnx')").count() == 1, "it names the files")
    hub.hold.clear()
    press(page, "Fetch and load it")
    row = page.locator("tr", has_text="fetched")
    row.wait_for()
    check("downloading" in row.inner_text() or "queued" in row.inner_text(), "its progress is shown")
    other = page.context.new_page()
    other.goto(row.locator("a").first.evaluate("(link) => link.href"))
    check("downloading" in main_text(other) or "queued" in main_text(other), "a download has a page of its own")
    hub.hold.set()
    # Live: the pages are not loaded again.
    other.locator(".tiles .state.ok").wait_for(timeout=60_000)
    check("verified" in main_text(other) and "model.onnx" in main_text(other), "it says of each file that it is verified")
    other.close()
    page.locator("tr:has-text('fetched') .state.ok").wait_for(timeout=60_000)
    check("done" in row.inner_text(), "the row is done without a reload")


def keyboard_only(page, server, hub):
    """Through each action and the whole life of a model without a mouse."""
    keyboard = Keyboard(page)
    page.goto(server.url + "/")
    keyboard.tab()
    page.keyboard.press("Enter")
    keyboard.tab()
    check(page.evaluate("document.querySelector('main').contains(document.activeElement)"), "keyboard: the first stop skips to the content")
    keyboard.press("Add")
    keyboard.write("#source", "someone/digits")
    keyboard.write("#name", "typed")
    hub.hold.clear()
    keyboard.press("Check")
    keyboard.press("Fetch and load it")
    page.locator("tr:has-text('typed') button").wait_for()
    keyboard.press("Cancel")
    check("cancelled" in notice(page), "keyboard: a download is cancelled")
    hub.hold.set()
    keyboard.press("Add")
    keyboard.write("#source", "someone/digits")
    keyboard.write("#name", "typed")
    keyboard.press("Check")
    keyboard.press("Fetch and load it")
    page.locator("tr:has-text('typed') .state.ok").wait_for(timeout=60_000)
    keyboard.press("Models")
    keyboard.press("typed")
    check("ready" in main_text(page), "keyboard: a model is added")
    keyboard.press("Unload")
    check("unloaded" in notice(page), "keyboard: unloaded")
    keyboard.press("Load")
    check("is loaded" in notice(page), "keyboard: loaded")
    keyboard.press("Warm up")
    check("warm-up is done" in notice(page), "keyboard: warmed up")
    keyboard.press("Reset the statistics")
    check("count anew" in notice(page), "keyboard: statistics reset")
    keyboard.press("Optimise …")
    keyboard.press("Leave it as it is")
    keyboard.press("Try it")
    keyboard.choose("#file", SEVEN)
    keyboard.press("Predict")
    check(page.locator(".scores tbody tr").first.inner_text().startswith("7"), "keyboard: a picture is tried")
    keyboard.press("Back to the model")
    keyboard.press("New version")
    keyboard.choose("#file", DIGITS / "1" / "model.onnx")
    keyboard.press("Upload and load it")
    check("in the store" in notice(page), "keyboard: a version is uploaded")
    keyboard.press("Let it serve")
    check("serves" in notice(page), "keyboard: a version is chosen")
    keyboard.press("Delete …")
    check("model.onnx" in main_text(page), "keyboard: the question names the files")
    keyboard.press("Keep it")
    keyboard.press("Delete …")
    keyboard.press("Delete")
    check("deleted" in notice(page) and page.locator("a:text-is('typed')").count() == 0, "keyboard: deleted")
    Connection(server.url).request("POST", "/v1/models/slow/jobs", json.dumps(ENDLESS_RUN), {"Content-Type": "application/json"})
    keyboard.press("Jobs")
    keyboard.press("Cancel")
    check("cancelled" in notice(page), "keyboard: a job is cancelled")
    keyboard.press("System")
    keyboard.press("Give back what is free")
    check("given back" in notice(page), "keyboard: free memory is given back")
    keyboard.press("Events")
    keyboard.write("#text", "ready")
    keyboard.press("Filter")
    check(page.locator("tbody tr").count() > 0, "keyboard: events are filtered")
    for theme in ("light", "dark"):
        page.emulate_media(color_scheme=theme)
        for path in pages().values():
            page.goto(server.url + path)
            keyboard.around()
    check(not keyboard.unseen, f"keyboard: each of {keyboard.stops} stops is seen {keyboard.unseen[:5] or ''}")


def actions(page, server):
    page.goto(server.url + "/ui/models/digits/try")
    page.set_input_files("input[name=file]", SEVEN)
    press(page, "Predict")
    check(page.locator(".scores tbody tr").first.inner_text().startswith("7"), "the seven is found")
    check(page.locator("text=The same call").count() == 1 and "curl" in page.locator("#curl").inner_text(), "with the call as code")
    page.goto(server.url + "/ui/models/mlp/try")
    press(page, "Predict")
    check(page.locator("dl.facts code").count() >= 1, "tensors are answered")
    page.goto(server.url + "/ui/models/mlp/try")
    page.fill("#text", "no JSON")
    press(page, "Predict")
    check(page.locator("[role=alert]").count() >= 1, "what is no JSON is refused in words")
    page.goto(server.url + "/ui/system")
    page.fill("#level", "loud")
    press(page, "Set until the next start")
    check(page.locator(".notice.bad").count() == 1, "a level that is none is refused")
    page.goto(server.url + "/ui/system")
    page.fill("#level", "info,ortus::models=debug")
    press(page, "Set until the next start")
    check(page.locator("#level").input_value() == "info,ortus::models=debug", "the log's level is changed")
    press(page, "Give back what is free")
    check("given back" in notice(page), "free memory is given back")
    page.goto(server.url + "/ui/add?model=uploaded")
    page.set_input_files("#file", DIGITS / "1" / "model.onnx")
    press(page, "Upload and load it")
    check("in the store" in notice(page), "a model is uploaded")
    page.goto(server.url + "/ui/models/uploaded")
    page.click("a:text-is('Optimise …')")
    press(page, "Compare only")
    job = page.url.split("?")[0]
    check("optimize" in page.locator("h1").inner_text(), "an optimisation is a job with a page of its own")
    page.goto(server.url + "/ui/jobs")
    row = page.locator("tr", has_text="optimize").first
    row.locator(".state.ok").wait_for(timeout=120_000)
    check("uploaded" in row.inner_text(), "an optimisation runs as a job and is seen to end")
    page.goto(job)
    check(page.locator("h2:text-is('What was found')").count() == 1, "its page says what was found")
    better = page.locator("button:has-text('serve')")
    report = Connection(server.url).get("/v1/jobs/" + job.rsplit("/", 1)[1])["result"]
    is_better = any(variant["verdict"] == "better" for variant in report["variants"])
    check(better.count() == int(is_better), f"it offers to adopt what is better, if anything is ({is_better})")
    page.goto(server.url + "/ui/models/uploaded")
    check(page.locator(f"a[href='/ui/jobs/{job.rsplit('/', 1)[1]}']").count() == 1, "the model's page leads to the report")
    page.click(".ranges a:text-is('5 min')")
    page.locator(".age:text-is('live')").wait_for(state="attached")
    check("minutes=5" in page.url and page.locator(".span span:text-is('5 min ago')").count() >= 4, "charts of five minutes are asked for by the address")
    page.goto(job)
    look(page, "the job of an optimisation", axe_script())


def events_as_they_happen(browser, server):
    """The list of events grows by itself, filtered, and not under somebody who stands in it."""
    api, page = Connection(server.url), watched(context_of(browser))
    page.goto(server.url + "/ui/events?text=ready&model=mlp")
    page.locator(".age:text-is('live')").wait_for(state="attached")
    rows, grown = page.locator("table.log tbody tr"), "(rows) => document.querySelectorAll('table.log tbody tr').length > rows"

    def happen():
        for action in ("unload", "load"):
            status, _, _ = api.request("POST", f"/v1/models/mlp/{action}", "", {})
            check(status == 200, f"events: mlp is told to {action} ({status})")

    before = rows.count()
    happen()
    page.wait_for_function(grown, arg=before)
    texts = rows.all_inner_texts()
    check(all("mlp" in text and "ready" in text for text in texts), f"events: what happens comes by itself, filtered as the address says {texts[:3]}")
    rows.first.locator("a").focus()
    page.evaluate("""() => {
        window.kept = document.activeElement;
        window.brought = 0;
        const count = (event) => { if (event.target.getAttribute("sse-swap") === "events") window.brought += 1; };
        document.body.addEventListener("htmx:sseBeforeMessage", count);
    }""")
    before = rows.count()
    happen()
    page.wait_for_function("() => window.brought > 0")
    stays = page.evaluate("() => window.kept.isConnected && document.activeElement === window.kept")
    check(stays and rows.count() == before, "events: who stands in the list with the keyboard keeps it")
    page.evaluate("() => window.kept.blur()")
    happen()
    page.wait_for_function(grown, arg=before)
    look(page, "events, live", axe_script())
    page.context.close()


def hostile_texts(browser, server, loaded, hub):
    """Names, labels and errors that would be markup, turn the line around, or have no place to break."""
    api, page = Connection(server.url), watched(context_of(browser))
    states = {model["name"]: model["state"] for model in api.get("/v1/models")["models"]}
    check(all(states[name] == "ready" for name in loaded), f"hostile: the models load {states}")
    paths = ["/", "/ui/models", "/ui/events", "/ui/system", "/ui/jobs"] + [f"/ui/models/{name}" for name in states]
    paths += [f"/ui/models/{name}/{leaf}" for name in loaded for leaf in ("try", "delete")]
    # What comes in the address comes back on the page.
    quoted = urllib.parse.quote(ALL)
    paths += [f"/ui/events?text={quoted}&model={quoted}", f"/ui/models/{quoted}", f"/ui/add?model={quoted}", f"/ui/models/{WIDE}", f"/?done={quoted}"]
    status, _, _ = api.request("POST", "/v1/models", json.dumps({"name": "d" + LONG[1:], "source": "huggingface", "model_id": f"someone/{LONG[:96]}"}), {"Content-Type": "application/json"})
    check(status == 202, f"hostile: a download that will fail is taken ({status})")
    api.request("POST", f"/v1/models/{LONG}/jobs", json.dumps({"inputs": {ALL: [1]}}), {"Content-Type": "application/json"})
    for path in paths:
        page.goto(server.url + path)
        look(page, f"hostile: {path[:60]}")
    for name, file in (("labels", SEVEN), ("segments", ROOT / "tests" / "fixtures" / "images" / "rgb.png")):
        page.goto(f"{server.url}/ui/models/{name}/try")
        page.set_input_files("#file", file)
        page.fill("#parameters", '{"top_k": 10}' if name == "labels" else "")
        press(page, "Predict")
        text = page.locator(".scores").inner_text()
        # A browser shows no more than one space.
        given = [label for label in (HOSTILE if name == "labels" else HOSTILE[:5]) if label.strip()]
        shown = [label for label in given if label in text]
        check(len(shown) == len(given) if name == "labels" else shown, f"hostile: {len(shown)} labels of {name} are shown as they are")
        look(page, f"hostile: an answer of {name}")
    for name in ("tensors", LONG):
        page.goto(f"{server.url}/ui/models/{name}/try")
        for given in (None, ALL, json.dumps({ALL: [1.0]})):
            if given:
                page.fill("#text", given)
            press(page, "Predict")
            look(page, f"hostile: {name[:20]} answers {(given or 'its example')[:20]}")
    for field, texts in {"source": [ALL, f"someone/{WIDE[:90]}", "https://" + WIDE], "name": HOSTILE[:5]}.items():
        for text in texts:
            page.goto(server.url + "/ui/add")
            page.fill("#source", "someone/digits")
            page.fill(f"#{field}", text)
            press(page, "Check")
            look(page, f"hostile: {field} {text[:20]} to add")
    page.goto(server.url + "/ui/system")
    page.fill("#level", ALL)
    press(page, "Set until the next start")
    look(page, "hostile: a log level")
    # What happens while a page is open comes by the stream.
    page.goto(server.url + "/ui/jobs")
    page.locator(f"tr:has-text('{'d' + LONG[1:]}') .state.bad").wait_for(timeout=30_000)
    look(page, "hostile: jobs, live")
    for name, path in of_their_own(server).items():
        page.goto(server.url + path)
        look(page, f"hostile: {name}")
    page.context.close()


def costs(browser, server):
    """The first paint, and the weight of each page with all that it brings."""
    times = []
    for _ in range(20):
        started = time.monotonic()
        urllib.request.urlopen(server.url + "/").read()
        times.append(time.monotonic() - started)
    print(f"     overview: {sorted(times)[10] * 1e3:.1f} ms until all of it is here, median of 20")
    for name, path in pages().items():
        page = watched(context_of(browser))
        page.goto(server.url + path)
        page.wait_for_load_state("load")
        loaded = page.evaluate("""() => performance.getEntries().filter((entry) => "transferSize" in entry && !entry.name.includes("/ui/live"))
            .map((entry) => [entry.name, entry.transferSize])""")
        brought = {urllib.parse.urlsplit(url).path: size for url, size in loaded}
        weight = sum(brought.values())
        whole = all(brought.get(asset, 0) > 0 for asset in ("/ui/assets/ortus.css", "/ui/assets/htmx.js", path.split("?")[0]))
        check(whole and weight < PAGE_BYTES_MAX, f"{name}: weighs {weight} bytes with the {len(brought) - 1} files that it brings")
        if name == "overview":
            paint = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0]?.startTime")
            print(f"     overview: painted {paint or float('nan'):.0f} ms after it was asked for")
        page.context.close()


def cpu_seconds(server):
    fields = pathlib.Path(f"/proc/{server.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def ten_tabs(server, seconds=5):
    streams = [urllib.request.urlopen(f"{server.url}/ui/live?of=/") for _ in range(10)]
    for stream in streams:
        stream.readline()
    before = cpu_seconds(server)
    time.sleep(seconds)
    used = (cpu_seconds(server) - before) / seconds
    print(f"     ten open tabs take {used:.2%} of a core")
    return streams


def observed(server):
    """The alerts and panels of deploy/observability find their series in this server's /metrics."""
    script = ROOT / "deploy" / "observability" / "check.py"
    run = subprocess.run([sys.executable, script, server.url], capture_output=True, text=True, timeout=60)
    check(run.returncode == 0, f"deploy/observability: {(run.stdout + run.stderr).strip()}")


def key_of(store, role="admin"):
    """A key of a store, from which on it asks for one."""
    order = [default_binary(), "key", "create", "--models", store, "--role", role, "--name", "browser"]
    return subprocess.run(order, capture_output=True, text=True, check=True).stdout.split()[0]


def sign_in(browser, server, key):
    look_at_all(browser, server, {"sign in": "/ui/sign-in"})
    page = watched(context_of(browser))
    page.goto(server.url + "/ui/models")
    check(page.url.split("?")[0].endswith("/ui/sign-in"), "who has not signed in is asked to")
    keyboard = Keyboard(page)
    page.keyboard.type(key)
    keyboard.press("Sign in")
    check(page.locator("h1").inner_text() in ("Models", "Overview") and not keyboard.unseen, "keyboard: signed in")
    page.context.close()


def looks_only(browser, server, key):
    """Who may only look and try sees nothing that would be refused, and why."""
    page, refused = watched(context_of(browser)), []
    page.on("response", lambda response: refused.append(response.url) if response.status == 403 else None)
    page.goto(server.url + "/ui/sign-in")
    page.fill("#key", key)
    press(page, "Sign in")
    check("looks only" in page.locator("header").inner_text(), "looks only: the head says so")
    paths = {name: path for name, path in pages().items() if "digits" in path or path.count("/") == 2 or path == "/"}
    for name, path in paths.items():
        page.goto(server.url + path)
        if page.locator("[sse-connect]").count():
            # Live parts must not bring back what is not offered.
            page.locator(".age:text-is('live')").wait_for(state="attached")
            page.wait_for_function("() => performance.now() > 2500")
        actions = page.eval_on_selector_all("main form[method=post]", "(forms) => forms.map((form) => new URL(form.action).pathname)")
        allowed = [action for action in actions if action.endswith("/try") or action.startswith("/ui/jobs/")]
        check(actions == allowed, f"looks only: {name} offers only what is allowed {actions}")
        check(page.locator("a[href^='/ui/add'], a[href$='/delete'], a[href*='/delete?'], a[href$='/optimize']").count() == 0, f"looks only: {name} has no way to a change")
        look(page, f"looks only: {name}", axe_script())
    page.goto(server.url + "/ui/models/digits/try")
    page.set_input_files("input[name=file]", SEVEN)
    press(page, "Predict")
    check(page.locator(".scores tbody tr").first.inner_text().startswith("7"), "looks only: a model is tried")
    check(not refused, f"looks only: nothing was refused {refused}")
    page.context.close()


@contextlib.contextmanager
def step(name):
    started = time.monotonic()
    print(f"== {name}", flush=True)
    yield
    print(f"     {time.monotonic() - started:.0f} s", flush=True)


def main():
    if not pathlib.Path(CHROMIUM).exists():
        raise SystemExit(f"{CHROMIUM} is not there: apt-get install chromium, or set CHROMIUM")
    with tempfile.TemporaryDirectory() as folder, Hub({"someone/digits": DIGITS / "1"}) as hub, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        settings = {"ORTUS_HUB__HF_ENDPOINT": hub.url, "ORTUS_HUB__ALLOWED_HOSTS": hub.url.removeprefix("http://")}
        with Server(default_binary(), ordinary(pathlib.Path(folder) / "store"), **settings) as server:
            page = watched(context_of(browser))
            with step("actions"):
                actions(page, server)
                add_a_model(page, server, hub)
            with step("without scripts"):
                without_scripts(browser, server)
            with step("keyboard"):
                keyboard_only(page, server, hub)
            with step("events"):
                events_as_they_happen(browser, server)
            quiet(page, "the pages on the way")
            page.context.close()
            with step("looks"):
                look_at_all(browser, server, pages() | of_their_own(server))
            with step("costs"):
                costs(browser, server)
                observed(server)
                streams = ten_tabs(server)
            # The server has to end though somebody looks.
            assert len(streams) == 10
        # F44
        with step("hostile texts"):
            store = pathlib.Path(folder) / "hostile"
            loaded = hostile(store)
            with Server(default_binary(), store, **settings) as server:
                hostile_texts(browser, server, loaded, hub)
        with step("empty"), Server(default_binary(), pathlib.Path(folder) / "nothing", **settings) as server:
            page = watched(context_of(browser))
            page.goto(server.url + "/")
            check("Add your first model" in main_text(page), "an empty store says how to begin")
            page.context.close()
            look_at_all(browser, server, {"empty overview": "/", "no models": "/ui/models", "no jobs": "/ui/jobs"})
        locked = pathlib.Path(folder) / "locked"
        locked.mkdir()
        key = key_of(locked)
        with step("sign-in"), Server(default_binary(), locked, **settings) as server:
            sign_in(browser, server, key)
        looked_at = ordinary(pathlib.Path(folder) / "looked-at")
        key = key_of(looked_at, "infer")
        with step("looks only"), Server(default_binary(), looked_at, **settings) as server:
            looks_only(browser, server, key)
        browser.close()
    if problems:
        print("\n".join(["", f"{len(problems)} problems:"] + problems))
        raise SystemExit(1)
    print("all is well")


if __name__ == "__main__":
    main()
