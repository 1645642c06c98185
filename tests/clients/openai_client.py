#!/usr/bin/env python3
"""Runs OpenAI's unmodified Python client against the server: embeddings as numbers and as base64, the model list, errors.

    openai_client.py [--ortus BINARY]

Starts the server itself (needs ORT_DYLIB_PATH) on a copy of two models of tests/fixtures/store.
"""

import argparse
import json
import pathlib
import shutil
import sys
import tempfile

import numpy as np
import openai
from _ortus import ROOT, Server, default_binary

STORE = ROOT / "tests" / "fixtures" / "store"


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--ortus", default=default_binary(), help="the server's binary (default: $ORTUS, or the debug build)")
    arguments = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for name in ("embedder", "mlp"):
            shutil.copytree(STORE / name, pathlib.Path(folder) / name)
        with Server(arguments.ortus, folder) as server:
            check(openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0))
    print("openai: all passed")


def check(client):
    golden = json.loads((ROOT / "tests" / "golden" / "text.json").read_text())
    cases = [case for case in golden["cases"] if case["model"] == "embedder" and not case["parameters"]]
    texts = [case["text"] for case in cases]
    expected = np.array([case["prediction"] for case in cases])
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    # The client asks for base64 by itself where no format is named, and for numbers where they are.
    for options in ({}, {"encoding_format": "float"}, {"encoding_format": "base64"}):
        answer = client.embeddings.create(model="embedder", input=texts, **options)
        vectors = [item.embedding for item in answer.data]
        if options.get("encoding_format") == "base64":
            import base64

            vectors = [np.frombuffer(base64.b64decode(vector), "<f4") if isinstance(vector, str) else vector for vector in vectors]
        worst = float(np.abs(np.array(vectors) - expected).max())
        print(f"{options or 'default'}: {len(texts)} texts, largest difference {worst:.1e}, {answer.usage.total_tokens} tokens")
        assert worst < 1e-5, worst
        assert [item.index for item in answer.data] == list(range(len(texts)))
    assert len(client.embeddings.create(model="embedder", input="the cat", dimensions=2).data[0].embedding) == 2
    assert {model.id for model in client.models.list()} == {"embedder", "mlp"}
    for model, kind in (("nowhere", openai.NotFoundError), ("mlp", openai.UnprocessableEntityError)):
        try:
            client.embeddings.create(model=model, input="a")
        except kind as error:
            print(f"{kind.__name__}: {error.body['message']}")
        else:
            sys.exit(f"{model}: was not refused")


if __name__ == "__main__":
    main()
