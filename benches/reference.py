"""What users write by hand in Python, for benches/pipelines.rs: one line in, one line out.

    jpeg FILE COUNT         decode, resize to 224 x 224, scale, normalise, channels first; seconds of all
    embed FOLDER THREADS    tokenize texts.json of FOLDER, sort by length, run in batches of 32, pool, normalise; seconds of all
"""

import io
import json
import os
import pathlib
import sys
import time

import numpy as np
import onnxruntime
import tokenizers
from PIL import Image

MEAN = np.array([0.485, 0.456, 0.406], dtype=np.float32)
STD = np.array([0.229, 0.224, 0.225], dtype=np.float32)
sessions = {}


def jpeg(file, count):
    data = pathlib.Path(file).read_bytes()
    started = time.perf_counter()
    for _ in range(int(count)):
        picture = Image.open(io.BytesIO(data)).convert("RGB").resize((224, 224), Image.Resampling.BILINEAR)
        values = np.asarray(picture, dtype=np.float32) * np.float32(1 / 255)
        values = ((values - MEAN) / STD).transpose(2, 0, 1)
        np.ascontiguousarray(values[None])
    return time.perf_counter() - started


def embed(folder, threads):
    folder = pathlib.Path(folder)
    if folder not in sessions:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(threads)
        session = onnxruntime.InferenceSession(folder / "1" / "model.onnx", options, providers=["CPUExecutionProvider"])
        tokenizer = tokenizers.Tokenizer.from_file(str(next(folder.rglob("tokenizer.json"))))
        tokenizer.no_padding()
        tokenizer.enable_truncation(512)
        texts = [text["text"] for text in json.loads((folder / "texts.json").read_text())]
        sessions[folder] = session, tokenizer, [texts[at % len(texts)] for at in range(1000)]
    session, tokenizer, texts = sessions[folder]
    names = {value.name for value in session.get_inputs()}
    started = time.perf_counter()
    ids = [encoding.ids for encoding in tokenizer.encode_batch_fast(texts)]
    order = sorted(range(len(ids)), key=lambda at: -len(ids[at]))
    vectors = [None] * len(ids)
    for at in range(0, len(order), 32):
        batch = order[at : at + 32]
        longest = max(len(ids[place]) for place in batch)
        tokens = np.zeros((len(batch), longest), dtype=np.int64)
        mask = np.zeros_like(tokens)
        for row, place in enumerate(batch):
            tokens[row, : len(ids[place])] = ids[place]
            mask[row, : len(ids[place])] = 1
        given = {"input_ids": tokens, "attention_mask": mask, "token_type_ids": np.zeros_like(tokens)}
        (hidden, *_) = session.run(None, {name: value for name, value in given.items() if name in names})
        weights = mask[..., None].astype(np.float32)
        pooled = (hidden * weights).sum(axis=1) / weights.sum(axis=1)
        pooled /= np.linalg.norm(pooled, axis=1, keepdims=True)
        for row, place in enumerate(batch):
            vectors[place] = pooled[row]
    return time.perf_counter() - started


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    for line in sys.stdin:
        kind, *arguments = line.split()
        print({"jpeg": jpeg, "embed": embed}[kind](*arguments), flush=True)
