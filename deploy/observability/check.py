"""Holds the queries of alerts.yml and grafana.json to a server's /metrics: every series they name has to be there with the labels
they use. `python3 check.py URL`; series of GPUs and of TLS may be missing where there is none."""

import json
import pathlib
import re
import sys
import urllib.request

HERE = pathlib.Path(__file__).resolve().parent
# Labels that Prometheus adds.
ADDED = {"instance", "job", "le"}


def exposed(text):
    """The labels of each series."""
    series = {}
    for line in text.splitlines():
        found = re.match(r"([a-z_][a-z0-9_]*)(?:\{(.*)\})? ", line)
        if found and not line.startswith("#"):
            labels = set(re.findall(r'([a-z_]+)="', found[2] or ""))
            series.setdefault(found[1], set()).update(labels)
    return series


def queries():
    for number, line in enumerate((HERE / "alerts.yml").read_text().splitlines(), 1):
        if line.strip().startswith("expr:"):
            yield f"alerts.yml:{number}", line.split("expr:", 1)[1]
    for panel in json.loads((HERE / "grafana.json").read_text())["panels"]:
        for target in panel["targets"]:
            yield f"grafana.json: {panel['title']}", target["expr"]


def problems(url):
    series = exposed(urllib.request.urlopen(f"{url}/metrics", timeout=30).read().decode())
    for where, query in queries():
        for name, matchers in re.findall(r"(ortus_[a-z0-9_]+)(?:\{([^}]*)\})?", query):
            if name not in series:
                if not name.startswith(("ortus_gpu_", "ortus_tls_")):
                    yield f"{where}: {name} is no series of /metrics"
                continue
            for label in re.findall(r"([a-z_]+)=~?\"", matchers):
                if label not in series[name] | ADDED:
                    yield f"{where}: {name} has no label {label}"
        used = [name for name in re.findall(r"ortus_[a-z0-9_]+", query) if name in series]
        for labels in re.findall(r"by \(([^)]*)\)", query):
            for label in (label.strip() for label in labels.split(",")):
                if used and not any(label in series[name] | ADDED for name in used):
                    yield f"{where}: nothing in it has the label {label}"


if __name__ == "__main__":
    found = list(problems(sys.argv[1]))
    print("\n".join(found) if found else "every query is answered by /metrics")
    raise SystemExit(1 if found else 0)
