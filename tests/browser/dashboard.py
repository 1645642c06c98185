"""Drives every page and action of the dashboard in headless Chromium, against a real server with real models.

Fails on a script error, a message of the console, a violation of the content security policy, a page wider than its window, or
a serious finding of axe-core (where AXE names its script). With SCREENSHOTS=DIR it writes pictures of every page, both themes,
wide and narrow, there.
"""

import json
import os
import pathlib
import shutil
import sys
import tempfile
import time
import urllib.request

from playwright.sync_api import sync_playwright

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(ROOT / "tests" / "clients"))
sys.path.insert(0, str(HERE))
from _hub import Hub  # noqa: E402
from _ortus import Connection, Server, default_binary  # noqa: E402

CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
AXE = os.environ.get("AXE")
SCREENSHOTS = os.environ.get("SCREENSHOTS")
DIGITS = ROOT / "models" / "digits"
SEVEN = DIGITS / "samples" / "seven.png"
# A name as long as names may be, and texts that would be markup or turn the line around.
LONG = "n" + "0123456789" * 9 + "12345678" + "x"
HOSTILE = '<img src=x onerror="window.broken=1">\u202e end'

problems = []


def check(condition, text):
    print(("ok   " if condition else "FAIL ") + text)
    if not condition:
        problems.append(text)


def watched(context):
    page = context.new_page()
    page.on("console", lambda message: problems.append(f"console: {message.text}") if message.type in ("error", "warning") and not expected(message.text) else None)
    page.on("pageerror", lambda error: problems.append(f"script: {error}"))
    return page


def expected(text):
    # A refused form and a missing page are answers like any other.
    return "status of 4" in text


def looks_right(page, name):
    page.wait_for_load_state("load")
    wide = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
    check(wide <= 0, f"{name}: as wide as its window ({wide})")
    check(page.evaluate("window.broken") is None, f"{name}: no text of a model became markup")
    if AXE:
        page.evaluate(pathlib.Path(AXE).read_text())
        found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
        serious = [f"{one['id']}: {one['nodes'][0]['html'][:160]}" for one in found if one["impact"] in ("serious", "critical")]
        check(not serious, f"{name}: axe-core finds nothing serious {serious}")


def pages(server):
    return {
        "overview": "/", "models": "/ui/models", "model": "/ui/models/digits", "failed-model": "/ui/models/broken", "try": "/ui/models/digits/try",
        "add": "/ui/add", "new-version": "/ui/add?model=digits", "jobs": "/ui/jobs", "events": "/ui/events", "system": "/ui/system",
        "delete": "/ui/models/digits/delete", "long-name": f"/ui/models/{LONG}", "not-found": "/ui/models/none",
    }


def look_at_all(browser, server, suffix=""):
    for scheme in ("light", "dark"):
        for width in (1440, 390):
            context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
            page = watched(context)
            for name, path in pages(server).items():
                page.goto(server.url + path)
                # The live parts come once a second.
                page.wait_for_timeout(1200)
                looks_right(page, f"{name} {scheme} {width}")
                if SCREENSHOTS:
                    target = pathlib.Path(SCREENSHOTS) / f"{name}{suffix}-{scheme}-{width}.png"
                    page.screenshot(path=target, full_page=True)
            context.close()


def without_scripts(browser, server):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    for name, path in pages(server).items():
        answer = page.goto(server.url + path)
        check(answer.status in (200, 404) and page.locator("h1").count() == 1, f"{name}: readable without scripts")
    page.goto(server.url + "/ui/models/digits/try")
    page.set_input_files("input[name=file]", SEVEN)
    page.click("button:text-is('Predict')")
    check("7" in page.locator(".scores tbody tr").first.inner_text(), "trying a picture without scripts finds the seven")
    page.goto(server.url + "/")
    page.select_option("select[name=theme]", "dark")
    page.click("button:text-is('Set')")
    check(page.locator("html").get_attribute("data-theme") == "dark", "a theme can be chosen without scripts")
    context.close()


def add_a_model(page, server, hub):
    page.goto(server.url + "/ui/add")
    page.fill("#source", "someone/digits")
    page.fill("#name", "fetched")
    page.click("button:text-is('Check')")
    check(page.locator("text=What would be fetched").count() == 1, "a check lists what would be fetched")
    check(page.locator("td:text-is('model.onnx')").count() == 1, "it names the files")
    hub.hold.clear()
    page.click("button:text-is('Fetch and load it')")
    row = page.locator("tr", has_text="fetched")
    row.wait_for()
    check("downloading" in row.inner_text() or "queued" in row.inner_text(), "its progress is shown")
    hub.hold.set()
    # Live: the page is not loaded again.
    page.locator("tr:has-text('fetched') .state.ok").wait_for(timeout=60_000)
    check("done" in row.inner_text(), "the row is done without a reload")


def keyboard_only(page, server):
    """Through the whole life of a model without a mouse."""

    def press_on(text, limit=80):
        for _ in range(limit):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.textContent.trim()") == text:
                with page.expect_navigation():
                    page.keyboard.press("Enter")
                return
        raise AssertionError(f"{text!r} is not reached by the keyboard on {page.url}")

    page.goto(server.url + "/")
    press_on("Models")
    press_on("fetched")
    press_on("Unload")
    check("unloaded" in page.locator("main").inner_text(), "unloaded by keyboard")
    press_on("Load")
    check("ready" in page.locator("main").inner_text(), "loaded by keyboard")
    press_on("Warm up")
    check("warm-up is done" in page.locator("[role=status].notice").inner_text(), "warmed up by keyboard")
    press_on("Reset the statistics")
    check("count anew" in page.locator("[role=status].notice").inner_text(), "statistics reset by keyboard")
    press_on("Delete …")
    check("model.onnx" in page.locator("main").inner_text(), "the question names the files")
    press_on("Delete")
    check(page.locator("a:text-is('fetched')").count() == 0, "deleted by keyboard")


def actions(page, server):
    page.goto(server.url + "/ui/models/digits/try")
    page.set_input_files("input[name=file]", SEVEN)
    page.click("button:text-is('Predict')")
    check(page.locator(".scores tbody tr").first.inner_text().startswith("7"), "the seven is found")
    check(page.locator("text=The same call").count() == 1 and "curl" in page.locator("#curl").inner_text(), "with the call as code")
    page.goto(server.url + "/ui/models/mlp/try")
    page.click("button:text-is('Predict')")
    check(page.locator("dl.facts code").count() >= 1, "tensors are answered")
    page.goto(server.url + "/ui/models/mlp/try")
    page.fill("#text", HOSTILE)
    page.click("button:text-is('Predict')")
    check(page.locator("[role=alert]").count() >= 1, "what is no JSON is refused in words")
    page.goto(server.url + "/ui/system")
    page.fill("#level", "loud")
    page.click("button:text-is('Set until the next start')")
    check(page.locator(".notice.bad").count() == 1, "a level that is none is refused")
    page.goto(server.url + "/ui/system")
    page.fill("#level", "info,ortus::models=debug")
    page.click("button:text-is('Set until the next start')")
    check(page.locator("#level").input_value() == "info,ortus::models=debug", "the log's level is changed")
    page.click("button:text-is('Give back what is free')")
    check("given back" in page.locator(".notice").inner_text(), "free memory is given back")
    page.goto(server.url + "/ui/add?model=uploaded")
    page.set_input_files("#file", DIGITS / "1" / "model.onnx")
    page.click("button:text-is('Upload and load it')")
    page.wait_for_load_state("load")
    check("in the store" in page.locator(".notice").inner_text(), "a model is uploaded")
    page.goto(server.url + "/ui/models/uploaded")
    page.click("button:text-is('Compare variants')")
    page.wait_for_load_state("load")
    row = page.locator("tr", has_text="optimize").first
    row.locator(".state.ok").wait_for(timeout=120_000)
    check("uploaded" in row.inner_text(), "an optimisation runs as a job and is seen to end")
    page.goto(server.url + "/ui/events?text=ready&level=info")
    check(page.locator("tbody tr").count() > 0, "events are filtered")


def costs(server):
    """The first paint and the weight of the first page, and that ten open tabs are quiet."""
    times = []
    for _ in range(20):
        started = time.monotonic()
        urllib.request.urlopen(server.url + "/").read()
        times.append(time.monotonic() - started)
    print(f"     overview: {sorted(times)[10] * 1e3:.1f} ms, median of 20")
    connection, weight = Connection(server.url), 0
    for path in ("/", "/ui/assets/ortus.css", "/ui/assets/ortus.js", "/ui/assets/htmx.js", "/ui/assets/htmx-sse.js", "/ui/assets/icon.svg"):
        _, body = connection.ok("GET", path, headers={"Accept-Encoding": "gzip"})
        weight += len(body)
    check(weight < 150_000, f"the first page weighs {weight} bytes with all that it brings")


def cpu_seconds(server):
    fields = pathlib.Path(f"/proc/{server.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def ten_tabs(server, seconds=10):
    streams = [urllib.request.urlopen(f"{server.url}/ui/live?of=/") for _ in range(10)]
    for stream in streams:
        stream.readline()
    before = cpu_seconds(server)
    time.sleep(seconds)
    used = (cpu_seconds(server) - before) / seconds
    print(f"     ten open tabs take {used:.2%} of a core")
    return streams


def main():
    if not pathlib.Path(CHROMIUM).exists():
        raise SystemExit(f"{CHROMIUM} is not there: apt-get install chromium, or set CHROMIUM")
    with tempfile.TemporaryDirectory() as folder:
        store = pathlib.Path(folder) / "store"
        shutil.copytree(ROOT / "models", store)
        shutil.copytree(ROOT / "tests" / "fixtures" / "store" / "mlp", store / "mlp")
        shutil.copytree(ROOT / "tests" / "fixtures" / "store" / "mlp", store / LONG)
        (store / LONG / "model.toml").write_text("description = " + json.dumps(HOSTILE) + "\n")
        (store / "broken" / "1").mkdir(parents=True)
        (store / "broken" / "1" / "model.onnx").write_bytes(b"no graph")
        repository = pathlib.Path(folder) / "repository"
        repository.mkdir()
        for path in (DIGITS / "1").iterdir():
            shutil.copy(path, repository / path.name)
        with Hub("someone/digits", repository) as hub:
            host = hub.url.removeprefix("http://")
            settings = {"ORTUS_HUB__HF_ENDPOINT": hub.url, "ORTUS_HUB__ALLOWED_HOSTS": host}
            with Server(default_binary(), store, **settings) as server, sync_playwright() as playwright:
                browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
                context = browser.new_context()
                page = watched(context)
                without_scripts(browser, server)
                actions(page, server)
                add_a_model(page, server, hub)
                keyboard_only(page, server)
                context.close()
                look_at_all(browser, server)
                costs(server)
                streams = ten_tabs(server)
                browser.close()
                # The server has to end though somebody looks.
                assert len(streams) == 10
            with tempfile.TemporaryDirectory() as empty, Server(default_binary(), empty) as server, sync_playwright() as playwright:
                browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
                page = watched(browser.new_context())
                page.goto(server.url + "/")
                check("Add your first model" in page.locator("main").inner_text(), "an empty store says how to begin")
                if SCREENSHOTS:
                    page.screenshot(path=pathlib.Path(SCREENSHOTS) / "empty-light-1440.png", full_page=True)
                browser.close()
    if problems:
        print("\n".join(["", f"{len(problems)} problems:"] + problems))
        raise SystemExit(1)
    print("all is well")


if __name__ == "__main__":
    main()
