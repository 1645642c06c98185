#!/usr/bin/env python3
"""Writes tests/fixtures/store/{spectrogram,whisper,letters} and tests/golden/sound_models.json.

Usage: python tools/make_sound_models.py   (after tools/make_fixtures.py, which clears the store)

Tiny models of transformers with random weights, exported with the files that `save_pretrained` writes, and what the
pipelines of transformers give for a sound that the tests compute too: an Audio Spectrogram Transformer and Whisper's encoder
with classes, and wav2vec2 with characters, whose head is scaled so that many characters are said.

    pip install torch transformers==4.57.6 onnx onnxscript onnxruntime
"""

import json
import pathlib
import tempfile

import numpy as np
import onnx
import onnxruntime
import torch
import transformers

ROOT = pathlib.Path(__file__).resolve().parent.parent
STORE = ROOT / "tests/fixtures/store"
RATE = 16000
LABELS = dict(enumerate(["rain", "wind", "sea", "birds", "steps", "music", "voice"]))


def main():
    torch.manual_seed(5)
    models = [spectrogram(), whisper(), letters()]
    made_by = f"tools/make_sound_models.py: transformers {transformers.__version__}, torch {torch.__version__}"
    lines = ",\n".join("  " + json.dumps(one) for one in models)
    (ROOT / "tests/golden/sound_models.json").write_text(f'{{"made_by": {json.dumps(made_by)}, "atol": 1e-4, "models": [\n{lines}\n]}}\n')


def sound(seconds):
    """A tone that rises and trembles; the tests compute the same."""
    t = np.arange(int(seconds * RATE)) / RATE
    return (0.4 * np.sin(2 * np.pi * (200 + 450 * t) * t) * (1 + 0.5 * np.sin(2 * np.pi * 3 * t))).astype(np.float32)


def spectrogram():
    config = transformers.ASTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, patch_size=16,
        frequency_stride=10, time_stride=10, max_length=300, num_mel_bins=64, initializer_range=0.3, id2label=LABELS,
    )
    model = transformers.ASTForAudioClassification(config)
    extractor = transformers.ASTFeatureExtractor(num_mel_bins=64, max_length=300, mean=-5.1, std=3.9)
    return classifier("spectrogram", model, extractor, [2.3, 4.0, 0.2])


def whisper():
    config = transformers.WhisperConfig(
        vocab_size=40, d_model=32, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=64, decoder_layers=1,
        decoder_attention_heads=2, decoder_ffn_dim=64, max_source_positions=250, num_mel_bins=80, classifier_proj_size=24,
        use_weighted_layer_sum=True, init_std=0.3, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1, id2label=LABELS,
        # Which the pipeline for sounds does not look at.
        problem_type="multi_label_classification",
    )
    model = transformers.WhisperForAudioClassification(config)
    extractor = transformers.WhisperFeatureExtractor(feature_size=80, chunk_length=5)
    return classifier("whisper", model, extractor, [3.1, 6.0, 0.4])


def classifier(name, model, extractor, lengths):
    model.eval()
    key = extractor.model_input_names[0]
    example = extractor(sound(1.0), sampling_rate=RATE, return_tensors="pt")[key]
    folder = export(name, model, {key: example}, {key: {0: "batch"}})
    extractor.save_pretrained(folder)
    pipeline = transformers.pipeline("audio-classification", model=model, feature_extractor=extractor)
    cases = []
    # Without top_k the pipeline gives all labels, although it means to give five.
    for seconds, parameters in [
        (length, parameters) for length in lengths
        for parameters in ({"top_k": 5}, {"top_k": 9}, {"top_k": 2, "function_to_apply": "sigmoid"}, {"top_k": 7, "function_to_apply": "none"})
    ]:
        answer = pipeline({"raw": sound(seconds), "sampling_rate": RATE}, **parameters)
        cases.append({"seconds": seconds, "parameters": parameters, "prediction": answer})
    print(name, cases[0]["prediction"][:3], cases[-3]["prediction"][:3])
    return {"model": name, "task": "audio-classification", "cases": cases}


def letters():
    config = transformers.Wav2Vec2Config(
        vocab_size=13, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, conv_dim=[16] * 7,
        num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4, feat_extract_norm="layer", do_stable_layer_norm=True,
        conv_bias=True, pad_token_id=0,
    )
    model = transformers.Wav2Vec2ForCTC(config).eval()
    extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True)
    tokens = ["<pad>", "<s>", "</s>", "<unk>", "|", *"ABCDEFGH"]
    with tempfile.TemporaryDirectory() as folder:
        vocabulary = pathlib.Path(folder) / "vocab.json"
        vocabulary.write_text(json.dumps({token: place for place, token in enumerate(tokens)}))
        tokenizer = transformers.Wav2Vec2CTCTokenizer(vocabulary)
    with torch.no_grad():
        given = extractor(sound(6.0), sampling_rate=RATE, return_tensors="pt")
        logits = model(**given).logits[0]
        # Each class about as often as another, blanks and ends of words a little more often, special ones never.
        scale = 3 / logits.std(dim=0)
        model.lm_head.weight.mul_(scale[:, None])
        model.lm_head.bias.copy_(-logits.mean(dim=0) * scale)
        model.lm_head.bias[0] += 2
        model.lm_head.bias[4] += 1
        model.lm_head.bias[1:4] -= 100
    given = extractor(sound(1.0), sampling_rate=RATE, return_tensors="pt")
    axes = {0: "batch", 1: "samples"}
    folder = export("letters", model, dict(given), {"input_values": axes, "attention_mask": axes})
    extractor.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    pipeline = transformers.pipeline("automatic-speech-recognition", model=model, feature_extractor=extractor, tokenizer=tokenizer)
    cases = []
    for seconds, parameters in [
        (6.0, {}),
        (6.0, {"return_timestamps": "word"}),
        (6.0, {"return_timestamps": "char"}),
        (6.0, {"chunk_length_s": 2}),
        (6.0, {"chunk_length_s": 2, "return_timestamps": "word"}),
        (6.0, {"chunk_length_s": 1.5, "stride_length_s": 0.3, "return_timestamps": "char"}),
        (5.3, {"chunk_length_s": 2.01, "stride_length_s": [0.4, 0.21], "return_timestamps": "word"}),
        (5.3, {"chunk_length_s": 1, "stride_length_s": [0, 0], "return_timestamps": "word"}),
        (0.5, {"chunk_length_s": 30, "return_timestamps": "word"}),
    ]:
        answer = pipeline({"raw": sound(seconds), "sampling_rate": RATE}, **parameters)
        for chunk in answer.get("chunks", []):
            chunk["timestamp"] = [float(time) for time in chunk["timestamp"]]
        cases.append({"seconds": seconds, "parameters": parameters, "prediction": answer})
        print("letters", parameters, answer["text"])
    return {"model": "letters", "task": "automatic-speech-recognition", "cases": cases}


def export(name, model, example, axes):
    folder = STORE / name
    folder.mkdir(exist_ok=True)
    names = list(example)

    class Logits(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, *values):
            return self.model(**dict(zip(names, values))).logits

    path = folder / "model.onnx"
    shapes = tuple({axis: torch.export.Dim.DYNAMIC for axis in axes[one]} for one in names)
    # Two rows, since one would be taken for a constant.
    values = tuple(torch.cat([example[one]] * 2) for one in names)
    torch.onnx.export(
        Logits().eval(), values, path, input_names=names, output_names=["logits"], dynamic_shapes=(shapes,), dynamo=True,
        external_data=False, verbose=False,
    )
    graph = onnx.load(path)
    # What the exporter notes of the source is larger than the weights.
    for node in graph.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in [*graph.graph.value_info, *graph.graph.input, *graph.graph.output]:
        del value.metadata_props[:]
    del graph.graph.value_info[:], graph.metadata_props[:], graph.graph.metadata_props[:]
    for one in graph.graph.initializer:
        del one.metadata_props[:]
    onnx.save(graph, path)
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    with torch.no_grad():
        expected = model(**example).logits.numpy()
    got = session.run(["logits"], {one: example[one].numpy() for one in names})[0]
    print(f"{name}: {path.stat().st_size} bytes, exported logits differ by {np.abs(got - expected).max():.2g}, inputs "
          f"{[(one.name, one.shape) for one in session.get_inputs()]}, output {session.get_outputs()[0].shape}")
    return folder


if __name__ == "__main__":
    main()
