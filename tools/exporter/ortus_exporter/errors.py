"""Why a model was not exported."""


class ExportError(Exception):
    """`code` is for Ortus, the text, one sentence, for people."""

    def __init__(self, code, text):
        super().__init__(text)
        self.code = code


def first_line(error, most=300):
    """The beginning of an exception's text, which may be pages long."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    return text if len(text) <= most else text[:most] + "…"
