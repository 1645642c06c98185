"""A person with a keyboard alone: Tab, Enter and letters. Every stop on the way has to be seen."""

from _look import FOCUS

# What WCAG 2.2 asks of the mark of focus.
CONTRAST_MIN = 3.0


class Keyboard:
    def __init__(self, page):
        self.page = page
        # Dialogs for files are taken from here on: asked for only at the key, that may come too late.
        page.on("filechooser", lambda _: None)
        self.stops = 0
        # Stops that one does not see.
        self.unseen = []

    def tab(self):
        self.page.keyboard.press("Tab")
        stop = self.page.evaluate(FOCUS)
        if stop:
            self.stops += 1
            if not stop["seen"] or stop["ring"] < 2 or stop["contrast"] < CONTRAST_MIN:
                self.unseen.append((self.page.url, stop))
        return stop

    def to(self, what, limit=150):
        """On to what has the text `what`, or for `#name` to the field of that name."""
        is_there = (
            f"document.activeElement.id === {what[1:]!r}" if what.startswith("#") else f"document.activeElement.textContent.trim() === {what!r}"
        )
        for _ in range(limit):
            if self.tab() and self.page.evaluate(is_there):
                return
        raise AssertionError(f"{what!r} is not reached by the keyboard on {self.page.url}")

    def press(self, what):
        self.to(what)
        with self.page.expect_navigation():
            self.page.keyboard.press("Enter")

    def write(self, field, text):
        self.to(field)
        self.page.keyboard.type(text)

    def choose(self, field, path):
        """A file; the dialog is the system's own."""
        self.to(field)
        with self.page.expect_file_chooser() as chooser:
            self.page.keyboard.press("Enter")
        chooser.value.set_files(path)

    def around(self):
        """Once through the whole page."""
        for _ in range(300):
            if self.tab() is None:
                return
        raise AssertionError(f"the keyboard does not come round {self.page.url}")
