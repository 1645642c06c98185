"""What is asked of every page: as wide as its window, quiet, within the content security policy, and without a serious finding of
axe-core, in both themes."""

import hashlib
import importlib.util
import pathlib

AXE = pathlib.Path(importlib.util.find_spec("axe_playwright_python").origin).parent / "axe.min.js"
AXE_SHA512 = "b3c14bebe414ee827a275f296a0e38b6330b3c7c43effe1d14ea2260f62467c51235e4d48eeed41759039cfbf45108bb1863a8295a5c16b2291a7f96c869a251"
THEMES = ("light", "dark")
WIDTHS = (1440, 390)
HEIGHT = 900
LISTEN = """
window.violations = [];
document.addEventListener("securitypolicyviolation", (event) => window.violations.push(`${event.violatedDirective}: ${event.blockedURI}`));
"""
# Where the keyboard stands, and how it is shown.
FOCUS = """() => {
  const at = document.activeElement;
  if (!at || at === document.body) return null;
  const light = (colour) => {
    const part = (value) => { const c = value / 255; return c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4; };
    const [r, g, b] = colour.match(/[0-9.]+/g).map(Number);
    return 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
  };
  const behind = (of) => { for (; of; of = of.parentElement) { const colour = getComputedStyle(of).backgroundColor; if (!/, 0\\)$/.test(colour)) return colour; } return "rgb(255, 255, 255)"; };
  const style = getComputedStyle(at), box = at.getBoundingClientRect();
  const [one, other] = [light(style.outlineColor), light(behind(at.parentElement))].sort((a, b) => b - a);
  // Where it is within the window: what is larger than the window may begin above it.
  const within = (from, to, size) => { const low = Math.max(from, 0), high = Math.min(to, size); return high > low ? (low + high) / 2 : -1; };
  const x = within(box.left, box.right, innerWidth), y = within(box.top, box.bottom, innerHeight);
  const top = document.elementFromPoint(x, y);
  return {
    what: `${at.tagName.toLowerCase()} ${(at.getAttribute("aria-label") || at.textContent).trim().slice(0, 40)}`,
    ring: style.outlineStyle === "none" ? 0 : parseFloat(style.outlineWidth), contrast: (one + 0.05) / (other + 0.05),
    seen: box.width > 0 && box.height > 0 && !!top && (at.contains(top) || top.contains(at)),
  };
}"""

problems = []


def check(condition, text):
    print(("ok   " if condition else "FAIL ") + text, flush=True)
    if not condition:
        problems.append(text)


def axe_script():
    content = AXE.read_bytes()
    if hashlib.sha512(content).hexdigest() != AXE_SHA512:
        raise SystemExit("axe-core is not the one of requirements.txt: change AXE_SHA512 with its version")
    return content.decode()


def context_of(browser, width=1440, **more):
    # Transitions would be looked at half-way.
    return browser.new_context(viewport={"width": width, "height": HEIGHT}, reduced_motion="reduce", **more)


def watched(context):
    page = context.new_page()
    page.add_init_script(LISTEN)
    page.on("console", lambda message: hear(page, message))
    page.on("pageerror", lambda error: problems.append(f"{page.url}: script: {error}"))
    page.on("dialog", lambda dialog: (problems.append(f"{page.url}: a dialog: {dialog.message}"), dialog.dismiss()))
    return page


def hear(page, message):
    # A refused form and a missing page are answers like any other.
    if message.type in ("error", "warning") and "status of 4" not in message.text:
        problems.append(f"{page.url}: console: {message.text}")


def quiet(page, name):
    """Nothing of a model's texts ran, and the policy had nothing to forbid."""
    check(page.evaluate("window.broken") is None, f"{name}: no text of a model became markup")
    found = page.evaluate("window.violations")
    check(not found, f"{name}: within the content security policy {found or ''}")


def fits(page, name):
    wide = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
    over = page.evaluate("[...document.querySelectorAll('.card')].filter((card) => card.scrollWidth > card.clientWidth).map((card) => card.innerText.slice(0, 30))")
    check(wide <= 0 and not over, f"{name}: within its window ({wide}) and its cards {over or ''}")


def serious(page):
    """axe-core's findings that hinder people."""
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
    return [f"{one['id']}: {one['nodes'][0]['html'][:160]}" for one in found if one["impact"] in ("serious", "critical")]


def look(page, name, axe=None, picture=None):
    """The page that is open, in both themes, wide and narrow. `axe` is axe-core's script; `picture(page, theme, width)` is called
    for each look."""
    page.wait_for_load_state("load")
    if axe:
        page.evaluate(axe)
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": HEIGHT})
        for theme in THEMES:
            page.emulate_media(color_scheme=theme)
            fits(page, f"{name} {theme} {width}")
            if axe:
                found = serious(page)
                check(not found, f"{name} {theme} {width}: axe-core finds nothing serious {found or ''}")
            if picture:
                picture(page, theme, width)
    quiet(page, name)
    page.set_viewport_size({"width": WIDTHS[0], "height": HEIGHT})
    page.emulate_media(color_scheme="light")
