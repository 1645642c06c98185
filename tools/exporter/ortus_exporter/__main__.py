"""Reads one request, exports one model, says how it went.

Standard input: one JSON object.
    kind         "torchvision", "pytorch_hub" or "file"
    out          an empty folder for the result
    scratch      an empty folder for what is needed on the way
    model        of torchvision: the name of its function
    repository   of pytorch_hub: owner/repo[:branch], or a folder with `hub_source` "local"; entry: a function of its
                 hubconf.py; trust_repository: true, since its code is run
    path, name   of a file: where it lies, and what it is called for people
    weights      torchvision's name of pretrained weights; null = the default ones, "none" = random ones
    input_shape  of the example, batch included; null = what the model's transforms say
    opset        null = 17 (18 for .pt2)
    architecture the function of torchvision that weights without a model belong to

Standard output: lines of JSON. {"phase": "loading" | "exporting" | "checking"}, and at the end
    {"ok": true, "report": {...}} or {"ok": false, "code": "...", "error": "one sentence"}
Everything that libraries print goes to standard error.
"""

import json
import os
import sys

from .errors import ExportError, first_line

REQUEST_MAX = 1 << 20


def main():
    # Libraries print where they like; the lines are ours alone.
    lines = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.stdout = sys.stderr

    def say(**line):
        lines.write(json.dumps(line) + "\n")
        lines.flush()

    try:
        # Before anything is imported: the limits of this process are set before the request is sent.
        request = json.loads(sys.stdin.buffer.read(REQUEST_MAX))
        report = run(request, lambda phase: say(phase=phase))
    except ExportError as error:
        say(ok=False, code=error.code, error=str(error))
        return 1
    except MemoryError:
        say(ok=False, code="memory", error="the conversion needs more memory than it may have ([hub] export_memory_mb)")
        return 1
    except Exception as error:  # Whatever a library or a repository's code raises ends as one line.
        import traceback

        traceback.print_exc()
        if "DefaultCPUAllocator" in str(error) or "bad_alloc" in str(error):
            say(ok=False, code="memory", error="the conversion needs more memory than it may have ([hub] export_memory_mb)")
        else:
            say(ok=False, code="failed", error=f"the conversion failed: {type(error).__name__}: {first_line(error)}")
        return 1
    say(ok=True, report=report)
    return 0


def run(request, phase):
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    os.environ.pop("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", None)
    phase("loading")
    missing = []
    for name in ("torch", "torchvision", "onnx", "onnxruntime"):
        try:
            __import__(name)
        except ImportError as error:
            print(error, file=sys.stderr)
            missing.append(name)
    if missing:
        raise ExportError("no_torch", f"the exporter's interpreter lacks {', '.join(missing)}; run make exporter")
    from . import export, load

    loaded = load.load(request)
    return export.export(loaded, request, phase)


if __name__ == "__main__":
    sys.exit(main())
