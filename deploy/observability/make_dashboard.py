"""Writes grafana.json: python3 make_dashboard.py > grafana.json. Edit here, not there."""

import json

BY_MODEL = 'model=~"$model",instance=~"$instance"'


def panel(title, width, height, unit, *targets, kind="timeseries", stack=False):
    custom = {"fillOpacity": 10, "lineWidth": 1, "showPoints": "never"}
    if stack:
        custom["stacking"] = {"mode": "normal"}
        custom["fillOpacity"] = 60
    return {
        "title": title, "type": kind, "size": (width, height),
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "fieldConfig": {"defaults": {"unit": unit, "min": 0, "custom": custom if kind == "timeseries" else {}}, "overrides": []},
        "options": {"legend": {"displayMode": "table", "placement": "bottom", "calcs": ["mean", "max"]}, "tooltip": {"mode": "multi"}}
        if kind == "timeseries" else {"reduceOptions": {"calcs": ["lastNotNull"]}},
        "targets": [
            {"refId": chr(65 + number), "expr": expression, "legendFormat": legend, "datasource": {"type": "prometheus", "uid": "${datasource}"}}
            for number, (expression, legend) in enumerate(targets)
        ],
    }


def quantile(share, stage):
    return f'histogram_quantile({share}, sum by (le, model) (rate(ortus_request_duration_seconds_bucket{{{BY_MODEL},stage="{stage}"}}[$__rate_interval])))'


def mean(stage):
    of = f'{{{BY_MODEL},stage="{stage}"}}[$__rate_interval]'
    return f"sum(rate(ortus_request_duration_seconds_sum{of})) / sum(rate(ortus_request_duration_seconds_count{of}))"


PANELS = [
    panel("Requests", 4, 4, "reqps", (f"sum(rate(ortus_requests_total{{{BY_MODEL}}}[$__rate_interval]))", "all"), kind="stat"),
    panel("Failing", 4, 4, "percentunit",
          (f'sum(rate(ortus_requests_total{{{BY_MODEL},code=~"500|502|504"}}[$__rate_interval])) / sum(rate(ortus_requests_total{{{BY_MODEL}}}[$__rate_interval]))', "5xx"), kind="stat"),
    panel("Shed", 4, 4, "percentunit",
          (f'sum(rate(ortus_requests_total{{{BY_MODEL},code=~"429|503"}}[$__rate_interval])) / sum(rate(ortus_requests_total{{{BY_MODEL}}}[$__rate_interval]))', "429, 503"), kind="stat"),
    panel("p99", 4, 4, "s",
          (f'histogram_quantile(0.99, sum by (le) (rate(ortus_request_duration_seconds_bucket{{{BY_MODEL},stage="total"}}[$__rate_interval])))', "p99"), kind="stat"),
    panel("In flight", 4, 4, "short", (f"sum(ortus_inflight{{{BY_MODEL}}})", "in flight"), kind="stat"),
    panel("Models ready", 4, 4, "short", ('sum(ortus_model_state{instance=~"$instance",state="ready"})', "ready"), kind="stat"),
    panel("Requests by status", 12, 8, "reqps", (f"sum by (code) (rate(ortus_requests_total{{{BY_MODEL}}}[$__rate_interval]))", "{{code}}"), stack=True),
    panel("Requests by model", 12, 8, "reqps", (f"sum by (model) (rate(ortus_requests_total{{{BY_MODEL}}}[$__rate_interval]))", "{{model}}"), stack=True),
    panel("p50", 8, 8, "s", (quantile(0.5, "total"), "{{model}}")),
    panel("p95", 8, 8, "s", (quantile(0.95, "total"), "{{model}}")),
    panel("p99 by model", 8, 8, "s", (quantile(0.99, "total"), "{{model}}")),
    panel("Where the time goes, mean", 12, 8, "s",
          *[(mean(stage), stage) for stage in ("preprocess", "queue", "inference", "postprocess")], stack=True),
    panel("Waiting for an instance", 12, 8, "short", (f"sum by (model) (ortus_queue_depth{{{BY_MODEL}}})", "{{model}}")),
    panel("Rows of a run, mean", 8, 8, "short",
          (f"sum by (model) (rate(ortus_batch_size_sum{{{BY_MODEL}}}[$__rate_interval])) / sum by (model) (rate(ortus_batch_size_count{{{BY_MODEL}}}[$__rate_interval]))", "{{model}}")),
    panel("Turned away", 8, 8, "reqps", ('sum by (reason) (rate(ortus_rejected_total{instance=~"$instance"}[$__rate_interval]))', "{{reason}}")),
    panel("Answers from a cache", 8, 8, "percentunit",
          (f"sum by (model, cache) (rate(ortus_cache_hits_total{{{BY_MODEL}}}[$__rate_interval])) / (sum by (model, cache) (rate(ortus_cache_hits_total{{{BY_MODEL}}}[$__rate_interval])) + sum by (model, cache) (rate(ortus_cache_misses_total{{{BY_MODEL}}}[$__rate_interval])))", "{{model}} {{cache}}")),
    panel("Memory of the models", 12, 8, "bytes", (f"sum by (model, device) (ortus_model_memory_bytes{{{BY_MODEL}}})", "{{model}} {{device}}"), stack=True),
    panel("Memory of the process", 12, 8, "bytes", ('ortus_process_resident_memory_bytes{instance=~"$instance"}', "{{instance}}")),
    panel("GPU in use", 12, 8, "percentunit", ('ortus_gpu_utilization_ratio{instance=~"$instance"}', "{{instance}} GPU {{gpu}}")),
    panel("GPU memory", 12, 8, "bytes", ('ortus_gpu_memory_used_bytes{instance=~"$instance"}', "{{instance}} GPU {{gpu}}")),
    panel("Loads and evictions", 12, 6, "short",
          (f"sum by (model, result) (increase(ortus_model_loads_total{{{BY_MODEL}}}[$__rate_interval]))", "{{model}} load {{result}}"),
          (f"sum by (model) (increase(ortus_model_evictions_total{{{BY_MODEL}}}[$__rate_interval]))", "{{model}} evicted")),
    panel("Faults caught", 12, 6, "short", ('increase(ortus_panics_total{instance=~"$instance"}[$__rate_interval])', "{{instance}}")),
]


def placed():
    x, y, row = 0, 0, 0
    for number, one in enumerate(PANELS, 1):
        width, height = one.pop("size")
        if x + width > 24:
            x, y, row = 0, y + row, 0
        one.update(id=number, gridPos={"x": x, "y": y, "w": width, "h": height})
        x, row = x + width, max(row, height)
        yield one


def variable(name, label):
    return {
        "name": name, "type": "query", "multi": True, "includeAll": True, "current": {"text": "All", "value": "$__all"},
        "datasource": {"type": "prometheus", "uid": "${datasource}"}, "query": f"label_values(ortus_model_state, {label})", "refresh": 2,
    }


print(json.dumps({
    "title": "Ortus", "uid": "ortus", "schemaVersion": 39, "editable": True, "refresh": "10s", "time": {"from": "now-1h", "to": "now"},
    "tags": ["ortus"],
    "templating": {"list": [{"name": "datasource", "type": "datasource", "query": "prometheus"}, variable("instance", "instance"), variable("model", "model")]},
    "panels": list(placed()),
}, indent=1))
