#!/usr/bin/env python3
"""Writes the models of the benchmarks and of the soak test into a folder (target/bench-models), or of the GPU's check (target/gpu-models).

`resnet18`, `resnet50`: the true topology with the batch normalisation folded in, random weights, dynamic batch; `-fp16` is all in 16 bits,
`-fixed` takes one row at a time.
`encoder`: six layers of a text encoder of MiniLM's size, random weights, dynamic batch and length;
padding is masked, so it does not change a text's result (checked here). Beside it lie the files of a
sentence-transformers folder, so that it embeds texts by mean pooling; `texts.json` has texts to send and
the token ids that the tokenizer makes of them. `big`: one matrix of 100 MB, for loading and unloading.
Nothing is committed and nothing is trained: only the amount of work matters. The same bytes every time;
what is there already is kept (`--force` writes again).
Needs what tests/clients/requirements.txt lists.
"""

import argparse
import json
import pathlib
import string
import sys

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto as T
from onnx import helper, numpy_helper

LAYERS, HIDDEN, HEADS, INNER, VOCABULARY, POSITIONS = 6, 384, 12, 1536, 30522, 512
# Where BERT's vocabulary has them.
SPECIAL = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103}
# Tokens of a text, [CLS] and [SEP] counted; the longest is what the model takes.
SHORTEST, LONGEST, TEXTS = 8, 128, 512
# Written last, so that a run that was stopped is done again. Changes with what is written.
STAMP = ".made-by-3"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--force", action="store_true", help="write what is there already again")
    parser.add_argument("--gpu", action="store_true", help="write those of the GPU's check: resnet50, resnet50-fp16, resnet50-fixed")
    arguments = parser.parse_args()
    stamp = arguments.folder / STAMP
    if stamp.exists() and not arguments.force:
        return
    if arguments.gpu:
        resnet(arguments.folder / "resnet50", 50, (3, 4, 6, 3), bottleneck=True)
        resnet(arguments.folder / "resnet50-fp16", 50, (3, 4, 6, 3), bottleneck=True, half=True)
        resnet(arguments.folder / "resnet50-fixed", 50, (3, 4, 6, 3), bottleneck=True, rows=1)
    else:
        resnet(arguments.folder / "resnet18", 18, (2, 2, 2, 2))
        encoder(arguments.folder / "encoder")
        big(arguments.folder / "big")
    stamp.touch()


class Graph:
    """Nodes and weights in the making; methods add a node and give the name of its output."""

    def __init__(self, seed, dtype=np.float32):
        self.nodes, self.weights, self.dtype = [], [], dtype
        self.random = np.random.default_rng(seed)

    def weight(self, array):
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def normal(self, *shape, scale):
        return self.weight((self.random.standard_normal(shape, dtype=np.float32) * np.float32(scale)).astype(self.dtype))

    def add(self, operator, *inputs, output=None, **attributes):
        name = output or f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [name], **attributes))
        return name

    def save(self, folder, inputs, outputs):
        graph = helper.make_graph(self.nodes, folder.name, inputs, outputs, self.weights)
        opsets = [helper.make_opsetid("", 17)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=8, producer_name="ortus-bench")
        onnx.checker.check_model(model)
        path = folder / "1" / "model.onnx"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(model.SerializeToString(deterministic=True))
        return path


def value(name, dtype, *shape):
    return helper.make_tensor_value_info(name, dtype, list(shape))


def session_of(path):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def resnet(folder, seed, blocks, *, bottleneck=False, half=False, rows="N"):
    """`blocks` a stage; a bottleneck's three convolutions end four times as wide. `half`: all of it, inputs and outputs too, in 16 bits."""
    graph, number = Graph(seed, np.float16 if half else np.float32), T.FLOAT16 if half else T.FLOAT

    def conv(source, inner, outer, size, stride):
        scale = np.sqrt(2 / (inner * size * size))
        weight, bias = graph.normal(outer, inner, size, size, scale=scale), graph.normal(outer, scale=0.01)
        return graph.add(
            "Conv", source, weight, bias, kernel_shape=[size, size], strides=[stride, stride], pads=[size // 2] * 4
        )

    def relu(source):
        return graph.add("Relu", source)

    last = relu(conv("input", 3, 64, 7, 2))
    last = graph.add("MaxPool", last, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    inner = 64
    for stage, count in enumerate(blocks):
        width = 64 << stage
        outer = width * 4 if bottleneck else width
        for block in range(count):
            stride = 2 if stage and not block else 1
            skip = conv(last, inner, outer, 1, stride) if outer != inner else last
            if bottleneck:
                middle = relu(conv(relu(conv(last, inner, width, 1, 1)), width, width, 3, stride))
                end = conv(middle, width, outer, 1, 1)
            else:
                end = conv(relu(conv(last, inner, width, 3, stride)), width, outer, 3, 1)
            last, inner = relu(graph.add("Add", end, skip)), outer
    last = graph.add("Flatten", graph.add("GlobalAveragePool", last))
    graph.add("Gemm", last, graph.normal(1000, inner, scale=0.04), graph.normal(1000, scale=0.01), output="logits", transB=1)
    path = graph.save(folder, [value("input", number, rows, 3, 224, 224)], [value("logits", number, rows, 1000)])
    count = 2 if rows == "N" else rows
    pictures = graph.random.random((count, 3, 224, 224), dtype=np.float32).astype(graph.dtype)
    logits = session_of(path).run(None, {"input": pictures})[0]
    if logits.shape != (count, 1000) or not np.isfinite(logits).all():
        sys.exit(f"make_bench_models: {folder.name} does not give 1000 finite numbers")


def encoder(folder):
    graph = Graph(6)
    axes = {axis: graph.weight(np.array([axis], dtype=np.int64)) for axis in (0, 1, 2)}

    def dense(source, inner, outer):
        product = graph.add("MatMul", source, graph.normal(inner, outer, scale=0.05))
        return graph.add("Add", product, graph.normal(outer, scale=0.02))

    def normalised(source):
        # Opset 17 has it as one operator; so do the graphs that exporters write today.
        scale, bias = graph.weight(np.ones(HIDDEN, np.float32)), graph.weight(np.zeros(HIDDEN, np.float32))
        return graph.add("LayerNormalization", source, scale, bias, axis=-1, epsilon=1e-12)

    # As exporters have it: all positions, cut to the length.
    length = graph.add("Shape", "input_ids", start=1, end=2)
    positions = graph.weight(np.arange(POSITIONS, dtype=np.int64)[None])
    positions = graph.add("Slice", positions, axes[0], length, axes[1])
    words = graph.add("Gather", graph.normal(VOCABULARY, HIDDEN, scale=0.05), "input_ids")
    places = graph.add("Gather", graph.normal(POSITIONS, HIDDEN, scale=0.05), positions)
    kinds = graph.add("Gather", graph.normal(2, HIDDEN, scale=0.05), "token_type_ids")
    last = normalised(graph.add("Add", graph.add("Add", words, kinds), places))

    # 0 where a token counts, the smallest number where it is padding: [batch, 1, 1, sequence].
    mask = graph.add("Unsqueeze", graph.add("Unsqueeze", "attention_mask", axes[1]), axes[2])
    mask = graph.add("Sub", graph.weight(np.float32(1)), graph.add("Cast", mask, to=T.FLOAT))
    mask = graph.add("Mul", mask, graph.weight(np.float32(np.finfo(np.float32).min)))

    size = HIDDEN // HEADS
    split = graph.weight(np.array([0, 0, HEADS, size], dtype=np.int64))
    joined = graph.weight(np.array([0, 0, HIDDEN], dtype=np.int64))
    scale = graph.weight(np.float32(np.sqrt(size)))
    half, root, unit = (graph.weight(np.float32(number)) for number in (0.5, np.sqrt(2), 1))
    for layer in range(LAYERS):
        def heads(order):
            return graph.add("Transpose", graph.add("Reshape", dense(last, HIDDEN, HIDDEN), split), perm=order)

        query, key, content = heads([0, 2, 1, 3]), heads([0, 2, 3, 1]), heads([0, 2, 1, 3])
        scores = graph.add("Add", graph.add("Div", graph.add("MatMul", query, key), scale), mask)
        mixed = graph.add("MatMul", graph.add("Softmax", scores, axis=-1), content)
        mixed = graph.add("Reshape", graph.add("Transpose", mixed, perm=[0, 2, 1, 3]), joined)
        last = normalised(graph.add("Add", dense(mixed, HIDDEN, HIDDEN), last))
        wide = dense(last, HIDDEN, INNER)
        # Gelu as exporters write it before opset 20; ONNX Runtime makes one operator of it.
        curve = graph.add("Add", graph.add("Erf", graph.add("Div", wide, root)), unit)
        wide = graph.add("Mul", graph.add("Mul", wide, curve), half)
        out = graph.add("Add", dense(wide, INNER, HIDDEN), last)
        last = normalised(out)
    graph.add("Identity", last, output="last_hidden_state")
    names = ("input_ids", "attention_mask", "token_type_ids")
    inputs = [value(name, T.INT64, "batch", "sequence") for name in names]
    path = graph.save(folder, inputs, [value("last_hidden_state", T.FLOAT, "batch", "sequence", HIDDEN)])
    put(folder / "1" / "config.json", {
        "architectures": ["BertModel"], "model_type": "bert", "vocab_size": VOCABULARY, "pad_token_id": SPECIAL["[PAD]"],
        "type_vocab_size": 2, "hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
        "intermediate_size": INNER, "max_position_embeddings": POSITIONS,
    })
    sentences(folder)

    session, ids = session_of(path), graph.random.integers(1000, VOCABULARY, (1, 20))
    alone = session.run(None, {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)})[0]
    padded = np.pad(ids, ((0, 0), (0, 30)))
    beside = np.concatenate([padded, graph.random.integers(1000, VOCABULARY, (1, 50))])
    mask = (beside > 0).astype(np.int64)
    together = session.run(None, {"input_ids": beside, "attention_mask": mask, "token_type_ids": np.zeros_like(beside)})[0]
    drift = np.abs(together[:1, :20] - alone).max()
    if not drift < 1e-4:
        sys.exit(f"make_bench_models: padding changes the encoder's result by {drift}")


def put(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")


def sentences(folder):
    """What makes the encoder one of texts, in the version's folder, and the texts beside it."""
    # A generator of its own: the graph's weights do not depend on the words.
    random = np.random.default_rng(30522)
    others, words = vocabulary(random)
    version = folder / "1"
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    first, last = ({"SpecialToken": {"id": token, "type_id": 0}} for token in ("[CLS]", "[SEP]"))
    one, other = ({"Sequence": {"id": name, "type_id": kind}} for kind, name in enumerate("AB"))
    put(version / "tokenizer.json", {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [{"id": index, "content": token, **special} for token, index in SPECIAL.items()],
        "normalizer": {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None, "lowercase": True},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [first, one, last],
            "pair": [first, one, last, other, {"SpecialToken": {"id": "[SEP]", "type_id": 1}}],
            "special_tokens": {token: {"id": token, "ids": [SPECIAL[token]], "tokens": [token]} for token in ("[CLS]", "[SEP]")},
        },
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100,
            "vocab": {token: index for index, token in enumerate(others + words)},
        },
    })
    put(version / "tokenizer_config.json", {
        "tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": POSITIONS,
        **{f"{token[1:-1].lower()}_token": token for token in SPECIAL},
    })
    classes = [("", "Transformer"), ("1_Pooling", "Pooling")]
    put(version / "modules.json", [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{name}"}
        for index, (path, name) in enumerate(classes)
    ])
    put(version / "1_Pooling" / "config.json", {
        "word_embedding_dimension": HIDDEN, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True,
        "pooling_mode_max_tokens": False, "pooling_mode_mean_sqrt_len_tokens": False,
    })
    put(version / "sentence_bert_config.json", {"max_seq_length": LONGEST, "do_lower_case": False})

    lines = []
    for length in random.integers(SHORTEST, LONGEST, TEXTS, endpoint=True):
        chosen = random.integers(len(words), size=length - 2).tolist()
        ids = [SPECIAL["[CLS]"], *(len(others) + word for word in chosen), SPECIAL["[SEP]"]]
        lines.append(json.dumps({"text": " ".join(words[word] for word in chosen), "ids": ids}))
    (folder / "texts.json").write_text("[\n" + ",\n".join(lines) + "\n]\n")


def vocabulary(random):
    """As many tokens as BERT has, by id: unused ones, special ones and characters; then made-up words of some syllables."""
    others = [f"[unused{index}]" for index in range(999 - len(SPECIAL))]
    for token, index in SPECIAL.items():
        others.insert(index, token)
    # So that no word of plain letters is unknown.
    letters = string.ascii_lowercase + string.digits
    others += [*string.punctuation, *letters, *(f"##{letter}" for letter in letters)]
    syllables = [consonant + vowel for consonant in "bdfghklmnprstvz" for vowel in "aeiou"]
    words = {}
    while len(others) + len(words) < VOCABULARY:
        parts = random.integers(len(syllables), size=random.integers(2, 4, endpoint=True))
        words["".join(syllables[part] for part in parts)] = None
    return others, list(words)


def big(folder):
    graph = Graph(100)
    graph.add("MatMul", "x", graph.normal(5120, 5120, scale=0.01), output="y")
    graph.save(folder, [value("x", T.FLOAT, "N", 5120)], [value("y", T.FLOAT, "N", 5120)])


if __name__ == "__main__":
    main()
