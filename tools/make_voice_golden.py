#!/usr/bin/env python3
"""Writes tests/fixtures/store/voice, tests/fixtures/sounds/bursts.* and tests/golden/voice.json.

Usage: python tools/make_voice_golden.py ../shared/models   (after tools/make_fixtures.py, which clears the store)

The model `voice` has the inputs and outputs of Silero's voice activity detector around a smoothed loudness: it remembers,
and the rate counts. The golden file has what documented steps give, run by ONNX Runtime in Python: windows with the end of
the one before them in front, the memory fed back, then the rules of silero-vad's `get_speech_timestamps`, written out here
in another way and checked against that package. Sounds are `bursts`, which the tests compute too, and those of the shared
models. Segments are in samples of the model's rate: start, end, mean probability of the windows between them.

    pip install numpy onnx onnxruntime soundfile silero-vad
"""

import json
import math
import pathlib
import sys

import numpy as np
import onnx
import onnxruntime
import soundfile
from onnx import TensorProto as T
from onnx import helper, numpy_helper
from silero_vad.utils_vad import get_speech_timestamps_from_probs

ROOT = pathlib.Path(__file__).resolve().parent.parent
STORE = ROOT / "tests/fixtures/store"
SOUNDS = ROOT / "tests/fixtures/sounds"
# Start, end (s), amplitude; silence between them.
BURSTS = [(0.25, 0.9, 0.5), (1.0, 1.5, 0.4), (1.9, 2.0, 0.5), (2.3, 2.7, 0.45), (2.7, 3.0, 0.245), (3.1, 3.9, 0.5)]
SECONDS = 4.1


def main(shared):
    make_model()
    write_sounds()
    cases = [
        case("voice", "bursts", bursts(rate), rate, parameters)
        for rate, parameters in [
            (16000, {}),
            (8000, {}),
            (16000, {"threshold": 0.4, "neg_threshold": 0.1}),
            (16000, {"min_silence_duration_ms": 500, "speech_pad_ms": 0}),
            (16000, {"min_speech_duration_ms": 30, "min_silence_duration_ms": 0, "speech_pad_ms": 200}),
            (16000, {"min_silence_duration_ms": 600, "max_speech_duration_s": 1.2}),
            (16000, {"max_speech_duration_s": 0.4}),
        ]
    ]
    for file in ["speech_16k.wav", "speech_16k_stereo.wav", "speech_16k_f32.wav"]:
        samples, rate = soundfile.read(shared / "inputs/audio" / file, dtype="float32", always_2d=True)
        assert rate == 16000
        cases.append(case("silero-vad", f"audio/{file}", samples.mean(axis=1, dtype=np.float32), rate, {}, shared))
    samples, rate = soundfile.read(shared / "inputs/audio/speech_8k.wav", dtype="float32")
    cases.append(case("silero-vad", "audio/speech_8k.wav", samples, rate, {}, shared))
    samples, rate = soundfile.read(shared / "inputs/audio/speech_16k.wav", dtype="float32")
    for parameters in [
        {"threshold": 0.9},
        {"min_silence_duration_ms": 30, "speech_pad_ms": 100},
        {"min_speech_duration_ms": 2000},
        {"min_silence_duration_ms": 2000, "max_speech_duration_s": 2.5},
    ]:
        cases.append(case("silero-vad", "audio/speech_16k.wav", samples, rate, parameters, shared))
    made_by = f"tools/make_voice_golden.py: onnxruntime {onnxruntime.__version__} CPU, numpy {np.__version__}"
    lines, rules = (",\n".join("  " + json.dumps(one) for one in several) for several in (cases, map(rule_case, range(40))))
    golden = f'{{"made_by": {json.dumps(made_by)}, "atol": 1e-4, "cases": [\n{lines}\n], "rules": [\n{rules}\n]}}\n'
    (ROOT / "tests/golden/voice.json").write_text(golden)


def rule_case(seed):
    """Probabilities in whole percent that go up and down at random, and rules that cut them often."""
    dice = np.random.default_rng(seed)
    walk = np.cumsum(dice.normal(0, 25, 70)) + 40
    percent = [int(round(50 - 50 * math.cos(one / 100 * math.pi))) for one in walk]
    parameters = {
        "threshold": float(dice.choice([0.5, 0.3, 0.8])),
        "min_speech_duration_ms": int(dice.integers(0, 300)),
        "min_silence_duration_ms": int(dice.choice([0, 50, 100, 200, 1000])),
        "speech_pad_ms": int(dice.integers(0, 150)),
        "max_speech_duration_s": float(dice.choice([1000.0, 0.6, 1.0])),
    }
    length = len(percent) * 512 - int(dice.integers(0, 512))
    # Never just at a threshold, where the width of a float decides.
    given = [(one + 0.5) / 101 for one in percent]
    found = segments(given, length, 16000, **parameters)
    theirs = get_speech_timestamps_from_probs(given, sampling_rate=16000, audio_length_samples=length, **parameters)
    assert [(one["start"], one["end"]) for one in theirs] == [one[:2] for one in found], (seed, theirs, found)
    return {"percent": percent, "length": length, "parameters": parameters, "segments": [list(one[:2]) for one in found]}


def case(model, sound, samples, rate, parameters, shared=None):
    folder = STORE / model if shared is None else shared / "store" / model / "1"
    given = probabilities(folder / "model.onnx", samples, rate)
    found = segments(given, len(samples), rate, **parameters)
    theirs = get_speech_timestamps_from_probs(
        [float(one) for one in given], sampling_rate=rate, audio_length_samples=len(samples), **parameters
    )
    assert [(one["start"], one["end"]) for one in theirs] == [one[:2] for one in found], (theirs, found)
    print(f"{model} {sound} {rate} {parameters}: {[(start, end) for start, end, _ in found]}")
    return {
        "model": model, "sound": sound, "rate": rate, "parameters": parameters,
        "segments": [[start, end, float(f"{score:.6g}")] for start, end, score in found],
        # Those of the other cases are these or those of expected.json.
        **({"probabilities": [float(f"{one:.6g}") for one in given]} if shared is None and not parameters else {}),
    }


def probabilities(path, samples, rate):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    window = 512 * rate // 16000
    context, state = np.zeros(window // 8, np.float32), np.zeros((2, 1, 128), np.float32)
    given = []
    for start in range(0, len(samples), window):
        chunk = np.zeros(window, np.float32)
        chunk[: len(samples[start : start + window])] = samples[start : start + window]
        inputs = {"input": np.concatenate([context, chunk])[None], "state": state, "sr": np.array(rate, np.int64)}
        output, state = session.run(["output", "stateN"], inputs)
        context = chunk[-len(context) :]
        given.append(float(output[0, 0]))
    return given


def segments(given, length, rate, threshold=0.5, neg_threshold=None, min_speech_duration_ms=250, min_silence_duration_ms=100,
             speech_pad_ms=30, max_speech_duration_s=math.inf):
    """Looks ahead from each beginning for the end, instead of walking with a state."""
    neg_threshold = max(threshold - 0.15, 0.01) if neg_threshold is None else neg_threshold
    window = 512 * rate // 16000
    in_samples = lambda ms: ms * rate / 1000
    pad, min_silence = in_samples(speech_pad_ms), in_samples(min_silence_duration_ms)
    longest = max_speech_duration_s * rate - window - 2 * pad
    loud = [place for place, one in enumerate(given) if one >= threshold]
    quiet = [place for place, one in enumerate(given) if one < neg_threshold]
    after = lambda places, least: next((place for place in places if place >= least), None)

    def silences(since):
        """(first quiet window, next loud window or None), of what follows window `since`."""
        at = after(quiet, since)
        while at is not None:
            resumed = after(loud, at)
            yield at, resumed
            at = None if resumed is None else after(quiet, resumed)

    found, start, since = [], after(loud, 0), None
    while start is not None:
        since = start + 1 if since is None else since
        over = next((place for place in range(since, len(given)) if (place - start) * window > longest), None)
        ends = (
            (at, done) for at, resumed in silences(since)
            if (done := next((place for place in quiet if place >= at and (place - at) * window >= min_silence
                              and (resumed is None or place < resumed)), None)) is not None
        )
        end, done = next(ends, (None, None))
        if over is not None and (done is None or over <= done):
            pauses = [(resumed - at, -at, resumed) for at, resumed in silences(since)
                      if resumed is not None and resumed <= over and (resumed - at) * window > in_samples(98)]
            if pauses:
                _, at, resumed = max(pauses)
                found.append((start * window, -at * window))
                start, since = resumed, over
                continue
            found.append((start * window, over * window))
            start, since = after(loud, over + 1), None
            continue
        first, last = start * window, length if end is None else end * window
        if last - first > in_samples(min_speech_duration_ms):
            found.append((first, last))
        start, since = (None if done is None else after(loud, done + 1)), None

    means = [float(np.mean([float(np.float32(one)) for one in given[first // window : -(-last // window)]])) for first, last in found]
    wide = [[first - pad, last + pad] for first, last in found]
    for (_, last), (first, _), left, right in zip(found, found[1:], wide, wide[1:]):
        if first - last < 2 * pad:
            left[1], right[0] = last + (first - last) // 2, first - (first - last) // 2
    return [(int(max(0, first)), int(min(length, last)), mean) for (first, last), mean in zip(wide, means)]


def bursts(rate):
    """Hums of 300 Hz and twice that; the tests compute the same."""
    t = np.arange(round(SECONDS * rate)) / rate
    hum = 0.75 * np.sin(2 * np.pi * 300 * t) + 0.25 * np.sin(2 * np.pi * 600 * t)
    loudness = np.zeros_like(t)
    for start, end, amplitude in BURSTS:
        loudness[(t >= start) & (t < end)] = amplitude
    return (loudness * hum).astype(np.float32)


def write_sounds():
    for name, rate, kind, subtype in [("bursts.flac", 16000, "FLAC", "PCM_16"), ("bursts.ogg", 44100, "OGG", "VORBIS"), ("bursts.mp3", 44100, "MP3", "MPEG_LAYER_III")]:
        both = np.stack([bursts(rate)] * 2, axis=1) if name != "bursts.flac" else bursts(rate)
        soundfile.write(SOUNDS / name, both, rate, format=kind, subtype=subtype)


def make_model():
    constants = {
        "full_rate": np.array(16000, np.float32), "both": np.array(32000, np.float32), "gain": np.array(3.4, np.float32), "half": np.array(0.5, np.float32),
        "steepness": np.array(10, np.float32), "axis": np.array([1], np.int64), "zeros": np.array([0, 0], np.int64),
        "ones": np.array([1, 1], np.int64), "layer_and_number": np.array([0, 2], np.int64), "one_layer": np.array([1, -1, 1], np.int64),
        "one_column": np.array([-1, 1], np.int64),
    }
    nodes = [
        helper.make_node("Abs", ["input"], ["size"]),
        helper.make_node("ReduceMean", ["size", "axis"], ["mean"], keepdims=1),
        helper.make_node("Cast", ["sr"], ["rate"], to=T.FLOAT),
        helper.make_node("Add", ["rate", "full_rate"], ["rates"]),
        helper.make_node("Div", ["rates", "both"], ["share"]),
        helper.make_node("Mul", ["mean", "share"], ["of_rate"]),
        helper.make_node("Mul", ["of_rate", "gain"], ["level"]),
        helper.make_node("Slice", ["state", "zeros", "ones", "layer_and_number"], ["remembered"]),
        helper.make_node("Reshape", ["remembered", "one_column"], ["before"]),
        helper.make_node("Add", ["before", "level"], ["sum"]),
        helper.make_node("Mul", ["sum", "half"], ["smooth"]),
        helper.make_node("Sub", ["smooth", "half"], ["above"]),
        helper.make_node("Mul", ["above", "steepness"], ["logit"]),
        helper.make_node("Sigmoid", ["logit"], ["output"]),
        helper.make_node("Shape", ["state"], ["sizes"]),
        helper.make_node("Reshape", ["smooth", "one_layer"], ["row"]),
        helper.make_node("Expand", ["row", "sizes"], ["stateN"]),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "voice",
        [value("input", T.FLOAT, [None, None]), value("state", T.FLOAT, [2, None, 128]), value("sr", T.INT64, [])],
        [value("output", T.FLOAT, [None, 1]), value("stateN", T.FLOAT, [None, None, None])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10, producer_name="ortus-fixtures")
    onnx.checker.check_model(model, full_check=True)
    folder = STORE / "voice"
    folder.mkdir(exist_ok=True)
    onnx.save(model, folder / "model.onnx")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
