#!/usr/bin/env python3
"""Writes tests/fixtures/store/{clip,clip-towers,siglip,siglip-towers} and tests/golden/zero_shot_image.json.

Usage: python tools/make_zero_shot_image.py   (or make zero-shot-fixtures)

Needs torch, transformers (4.57), tokenizers, onnx, onnxscript and pillow; none of them is needed to run the tests.

A CLIP and a SigLIP of two layers with random weights, each with a small tokenizer of its kind, exported twice: as one graph
(`model.onnx`: token ids and pictures to logits, as Optimum does) and as a pair of towers (`onnx/vision_model.onnx` and
`onnx/text_model.onnx`, as transformers.js has them). The weights are larger than a fresh model's, so that scores lie apart.
The golden file has what transformers' ZeroShotImageClassificationPipeline answers for pictures of tests/fixtures/images.
"""

import collections
import json
import pathlib
import shutil
import tempfile
import warnings

import onnx
import torch
import transformers
from PIL import Image, ImageOps
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
    ZeroShotImageClassificationPipeline,
)

ROOT = pathlib.Path(__file__).resolve().parent.parent
STORE = ROOT / "tests/fixtures/store"
PICTURES = ROOT / "tests/fixtures/images"
GOLDEN = ROOT / "tests/golden/zero_shot_image.json"
INPUTS = ["rgb.png", "rgba.png", "rotated.png", "grey.png", "rgb.jpg", "full_chroma.jpg"]
LABELS = [
    {"candidate_labels": ["a cat", "two dogs", "a red square", "an old photograph of the sea"]},
    {"candidate_labels": ["Cat", "DOG", "café", "snow, ice"], "hypothesis_template": "{} on a table"},
    {"candidate_labels": ["one"], "hypothesis_template": "{}"},
]
CORPUS = [
    "this is a photo of a cat", "two dogs on a table", "a red square", "an old photograph of the sea", "snow and ice", "a café in paris",
    "the quick brown fox jumps over the lazy dog", "one photo of a green field with many flowers", "a picture of a person on a horse",
]
SIDE, HIDDEN, INNER, HEADS, LAYERS, SCALE = 32, 32, 64, 4, 2, 10.0
BIAS = -0.5


def main():
    warnings.filterwarnings("ignore")
    torch.manual_seed(7)
    cases = [*clip(), *siglip()]
    made_by = f"tools/make_zero_shot_image.py: transformers {transformers.__version__}, torch {torch.__version__} CPU"
    lines = ",\n".join("  " + json.dumps(case, ensure_ascii=False) for case in cases)
    GOLDEN.write_text(f'{{"made_by": {json.dumps(made_by)}, "tolerance": {{"png": 1e-3, "full_chroma.jpg": 1e-3, "rgb.jpg": 5e-3}}, "cases": [\n{lines}\n]}}\n')


# --- tokenizers -----------------------------------------------------------------------------------


def merges_of(words, count):
    """Pairs of pieces in the order in which they are merged: the most frequent first, of equals the first by name. The trainers
    of `tokenizers` choose among equals by chance, and then no run of this script would give the files of another."""
    pieces = [[*word[:-1], word[-1] + "</w>"] for word in words]
    merges = []
    for _ in range(count):
        pairs = collections.Counter(pair for word in pieces for pair in zip(word, word[1:]))
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        for word in pieces:
            for place in reversed(range(len(word) - 1)):
                if place + 1 < len(word) and (word[place], word[place + 1]) == best:
                    word[place:place + 2] = ["".join(best)]
    return merges


def clip_tokenizer(most):
    """Bytes, merged within words that end in </w>, between two special tokens."""
    special = ["<|startoftext|>", "<|endoftext|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    split = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    merges = merges_of([split.pre_tokenize_str(word)[0][0] for line in CORPUS for word in line.split()], 60)
    pieces = [*special, *alphabet, *[byte + "</w>" for byte in alphabet if byte.isascii() or byte in "ÃĤ©ł"], *["".join(pair) for pair in merges]]
    vocabulary = {piece: place for place, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, continuing_subword_prefix="", end_of_word_suffix="</w>",
                                     unk_token=special[1]))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()])
    words = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    split = pre_tokenizers.Split(Regex(words), behavior="removed", invert=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special])
    start, end = (tokenizer.token_to_id(token) for token in special)
    tokenizer.post_processor = processors.RobertaProcessing(sep=(special[1], end), cls=(special[0], start), trim_offsets=False,
                                                            add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=special[0], eos_token=special[1], unk_token=special[1],
                                   pad_token=special[1], model_max_length=most, model_input_names=["input_ids", "attention_mask"])


def siglip_tokenizer(most):
    """Pieces of lower-cased text without punctuation, and one special token at the end, which is also the padding."""
    words = sorted({"▁" + word for line in CORPUS for word in line.split()})
    letters = sorted({letter for word in words for letter in word})
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces = [*special, *[(letter, -8.0) for letter in letters], *[(word, -4.0) for word in words if len(word) > 2]]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2, byte_fallback=False))
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token, _ in special])
    punctuation = Regex(r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.Replace(punctuation, ""),
                                                 normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    end = tokenizer.token_to_id("</s>")
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", pair="$A $B </s>", special_tokens=[("</s>", end)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>", pad_token="</s>",
                                   model_max_length=most, model_input_names=["input_ids"])


# --- models ---------------------------------------------------------------------------------------


def parts(vocabulary, most, **text):
    size = {"hidden_size": HIDDEN, "intermediate_size": INNER, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
    return {"text_config": {**size, "vocab_size": vocabulary, "max_position_embeddings": most, **text},
            "vision_config": {**size, "image_size": SIDE, "patch_size": 8}}


def enlarge(model):
    """Random weights as large as keep a signal's size, and some more for what tells one word or place from another."""
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if weights.dim() > 1:
                fan_in = weights[0].numel()
                weights.normal_(0, 1.0 if "embedding.weight" in name else 1.2 / fan_in**0.5)
        model.logit_scale.fill_(torch.tensor(SCALE).log())
        if hasattr(model, "logit_bias"):
            model.logit_bias.fill_(BIAS)


def clip():
    tokenizer = clip_tokenizer(24)
    special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = CLIPConfig(**parts(len(tokenizer), 24, **special), projection_dim=24)
    config._attn_implementation = "eager"
    model = CLIPModel(config).eval()
    enlarge(model)
    processor = CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    names = ["input_ids", "pixel_values", "attention_mask"]
    whole = lambda ids, pixels, mask: picked(model(ids, pixels, mask), "logits_per_image", "logits_per_text", "text_embeds", "image_embeds")
    projected = lambda project, output: (project(output.pooler_output), output.last_hidden_state)
    text = lambda ids, mask: projected(model.text_projection, model.text_model(ids, mask))
    vision = lambda pixels: projected(model.visual_projection, model.vision_model(pixels))
    exported("clip", model, tokenizer, processor, whole, names)
    towers("clip-towers", model, tokenizer, processor, (vision, ["image_embeds", "last_hidden_state"]),
           (text, ["text_embeds", "last_hidden_state"]), ["input_ids", "attention_mask"], f"[pipeline]\nlogit_scale = {SCALE}\n")
    return answers(["clip", "clip-towers"], model, tokenizer, processor)


def siglip():
    tokenizer = siglip_tokenizer(64)
    special = {"bos_token_id": tokenizer.eos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = SiglipConfig(**parts(len(tokenizer), 64, **special))
    config._attn_implementation = "eager"
    model = SiglipModel(config).eval()
    enlarge(model)
    processor = SiglipImageProcessor(size={"height": SIDE, "width": SIDE}, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    names = ["input_ids", "pixel_values"]
    whole = lambda ids, pixels: picked(model(ids, pixels), "logits_per_image", "logits_per_text", "text_embeds", "image_embeds")
    text = lambda ids: picked(model.text_model(ids), "last_hidden_state", "pooler_output")
    vision = lambda pixels: picked(model.vision_model(pixels), "last_hidden_state", "pooler_output")
    pooled = ["last_hidden_state", "pooler_output"]
    exported("siglip", model, tokenizer, processor, whole, names)
    towers("siglip-towers", model, tokenizer, processor, (vision, pooled), (text, pooled), ["input_ids"],
           f"[pipeline]\nlogit_scale = {SCALE}\nlogit_bias = {BIAS}\n")
    return answers(["siglip", "siglip-towers"], model, tokenizer, processor)


# --- files ----------------------------------------------------------------------------------------


def picked(output, *names):
    return tuple(getattr(output, name) for name in names)


class Graph(torch.nn.Module):
    """What is exported: a model, and which of its parts are run."""

    def __init__(self, model, run):
        super().__init__()
        self.model, self.run = model, run

    def forward(self, *inputs):
        return self.run(*inputs)


AXES = {"input_ids": {0: "text_batch_size", 1: "sequence_length"}, "attention_mask": {0: "text_batch_size", 1: "sequence_length"},
        "pixel_values": {0: "image_batch_size"}, "logits_per_image": {0: "image_batch_size", 1: "text_batch_size"},
        "logits_per_text": {0: "text_batch_size", 1: "image_batch_size"}, "text_embeds": {0: "text_batch_size"},
        "image_embeds": {0: "image_batch_size"}}


def export(model, run, inputs, outputs, file, axes=AXES):
    length = model.config.text_config.max_position_embeddings
    samples = {"input_ids": torch.randint(3, 50, (2, length)), "attention_mask": torch.ones(2, length, dtype=torch.int64),
               "pixel_values": torch.rand(3, 3, SIDE, SIDE)}
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        made = pathlib.Path(scratch) / "model.onnx"
        torch.onnx.export(Graph(model, run), tuple(samples[name] for name in inputs), str(made), input_names=inputs, output_names=outputs,
                          dynamic_axes={name: axes[name] for name in [*inputs, *outputs] if name in axes}, opset_version=17, dynamo=False)
        graph = onnx.load(made)
    onnx.checker.check_model(graph)
    for node in graph.graph.node:
        node.ClearField("doc_string")
    file.write_bytes(graph.SerializeToString(deterministic=True))


def folder_of(name, model, tokenizer, processor):
    folder = STORE / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    processor.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def exported(name, model, tokenizer, processor, run, inputs):
    folder = folder_of(name, model, tokenizer, processor)
    export(model, run, inputs, ["logits_per_image", "logits_per_text", "text_embeds", "image_embeds"], folder / "model.onnx")


def towers(name, model, tokenizer, processor, vision, text, text_inputs, manifest):
    folder = folder_of(name, model, tokenizer, processor)
    (folder / "model.toml").write_text(manifest)
    batch = {0: "batch_size"}
    axes = {"input_ids": {0: "batch_size", 1: "sequence_length"}, "attention_mask": {0: "batch_size", 1: "sequence_length"},
            **{key: batch for key in ["pixel_values", "text_embeds", "image_embeds", "pooler_output"]}}
    export(model, vision[0], ["pixel_values"], vision[1], folder / "onnx/vision_model.onnx", {**axes, "last_hidden_state": batch})
    export(model, text[0], text_inputs, text[1], folder / "onnx/text_model.onnx",
           {**axes, "last_hidden_state": {0: "batch_size", 1: "sequence_length"}})


def answers(names, model, tokenizer, processor):
    pipeline = ZeroShotImageClassificationPipeline(model=model, tokenizer=tokenizer, image_processor=processor, framework="pt", device="cpu")
    cases = []
    for file in INPUTS:
        for parameters in LABELS:
            picture = ImageOps.exif_transpose(Image.open(PICTURES / file)).convert("RGB")
            given = pipeline(picture, **parameters)
            cases.append({"models": names, "file": file, "parameters": parameters, "predictions": given})
    spread = [round(one["score"], 3) for case in cases for one in case["predictions"]]
    print(names[0], spread)
    return cases


if __name__ == "__main__":
    main()
