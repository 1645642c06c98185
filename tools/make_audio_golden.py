"""Writes what the tests of sounds compare with.

tests/golden/mel.json: log-mel spectrograms of a signal that the test computes too, by Whisper's formula written out in
numpy here and checked against transformers' WhisperFeatureExtractor.
tests/golden/fbank.json: the same for Kaldi's filter banks and transformers' ASTFeatureExtractor, whose `spectrogram` is
called as it does.
tests/golden/speech.json: answers of transformers' speech recognition in parts and with times, on the shared model
tiny-wav2vec2-ctc. transformers needs PyTorch for its pipeline, so its own functions for cutting, cutting off and decoding
are called around ONNX Runtime.
tests/fixtures/sounds/: a tone as MP3, OGG Vorbis and FLAC.

    pip install numpy soundfile onnxruntime transformers==4.57.6
    python tools/make_audio_golden.py ../shared/models
"""

import json
import pathlib
import sys

import numpy as np
import onnxruntime
import soundfile
import transformers
from transformers.audio_utils import mel_filter_bank, spectrogram, window_function
from transformers.pipelines.automatic_speech_recognition import chunk_iter, rescale_stride

ROOT = pathlib.Path(__file__).resolve().parent.parent
MADE_BY = (
    f"tools/make_audio_golden.py: transformers {transformers.__version__}, numpy {np.__version__}, "
    f"onnxruntime {onnxruntime.__version__} CPU"
)


def signal(samples: int) -> np.ndarray:
    """A rising tone that fades, in float32; the test computes the same."""
    t = np.arange(samples, dtype=np.float64) / 16000.0
    return (0.5 * np.sin(2 * np.pi * (200.0 + 900.0 * t) * t) * np.exp(-t)).astype(np.float32)


def log_mel(samples: np.ndarray, window=400, hop=160, mels=80, length=480000, rate=16000) -> np.ndarray:
    padded = np.zeros(length, dtype=np.float64)
    padded[: min(len(samples), length)] = samples[:length]
    padded = np.pad(padded, window // 2, mode="reflect")
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
    frames = np.stack([padded[at * hop : at * hop + window] * hann for at in range(length // hop)])
    power = np.abs(np.fft.rfft(frames, axis=1)) ** 2

    to_hertz = lambda mel: np.where(mel < 15, mel * 200 / 3, 1000 * np.exp((mel - 15) * np.log(6.4) / 27))
    top = 15 + 27 * np.log(rate / 2 / 1000) / np.log(6.4)
    points = to_hertz(np.linspace(0, top, mels + 2))
    bins = np.arange(window // 2 + 1) * rate / window
    low, middle, high = points[:-2, None], points[1:-1, None], points[2:, None]
    triangles = np.maximum(0, np.minimum((bins - low) / (middle - low), (high - bins) / (high - middle)))
    filters = triangles * 2 / (high - low)

    spectrogram = np.log10(np.maximum(power @ filters.T, 1e-10)).T
    spectrogram = np.maximum(spectrogram, spectrogram.max() - 8)
    return (spectrogram + 4) / 4


def write_mel() -> None:
    cases = []
    for samples, mels in [(20000, 80), (480000, 80), (700, 128)]:
        values = log_mel(signal(samples), mels=mels)
        extractor = transformers.WhisperFeatureExtractor(feature_size=mels)
        theirs = extractor(signal(samples), sampling_rate=16000, return_tensors="np")["input_features"][0]
        difference = float(np.abs(theirs - values).max())
        assert theirs.shape == values.shape and difference < 1e-4, difference
        print(f"log-mel of {samples} samples: {difference:.2e} from WhisperFeatureExtractor")
        spots = [(mel, frame) for mel in range(0, mels, 9) for frame in (0, 1, 2, 17, 99, 124, 125, 126, 1500, 2999)]
        cases.append(
            {
                "samples": samples,
                "mels": mels,
                "mean": float(values.mean()),
                "spots": [[mel, frame, float(f"{values[mel, frame]:.9g}")] for mel, frame in spots],
            }
        )
    write("mel.json", {"made_by": MADE_BY, "atol": 1e-5, "cases": cases})


def fbank(samples: np.ndarray, mels=128, rate=16000) -> np.ndarray:
    samples = samples.astype(np.float64)
    frames = np.stack([samples[at : at + 400] for at in range(0, len(samples) - 399, 160)])
    frames = frames - frames.mean(axis=1, keepdims=True)
    frames = frames - 0.97 * np.concatenate([frames[:, :1], frames[:, :-1]], axis=1)
    frames = frames * (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 399))
    power = np.abs(np.fft.rfft(frames, n=512, axis=1)) ** 2
    to_mel = lambda hertz: 1127 * np.log(1 + hertz / 700)
    points = np.linspace(to_mel(20), to_mel(rate / 2), mels + 2)
    bins = to_mel(np.arange(257) * rate / 512)
    step = points[1] - points[0]
    filters = np.maximum(0, 1 - np.abs(bins - points[1:-1, None]) / step)
    return np.log(np.maximum(power @ filters.T, np.finfo(np.float32).eps))


def write_fbank() -> None:
    cases = []
    for samples in [20000, 170000, 400]:
        values = fbank(signal(samples))
        filters = mel_filter_bank(257, 128, 20, 8000, 16000, None, "kaldi", triangularize_in_mel_space=True)
        theirs = spectrogram(
            signal(samples),
            window_function(400, "hann", periodic=False),
            frame_length=400,
            hop_length=160,
            fft_length=512,
            power=2.0,
            center=False,
            preemphasis=0.97,
            mel_filters=filters,
            log_mel="log",
            mel_floor=1.192092955078125e-07,
            remove_dc_offset=True,
        ).T
        difference = float(np.abs(theirs - values).max())
        assert theirs.shape == values.shape and difference < 1e-2, difference
        print(f"filter bank of {samples} samples: {difference:.2e} from ASTFeatureExtractor's")
        whole = np.zeros((1024, 128))
        whole[: min(len(values), 1024)] = values[:1024]
        whole = (whole + 4.2677393) / (2 * 4.5689974)
        spots = [(mel, frame) for mel in range(0, 128, 9) for frame in (0, 1, 2, 17, 99, 122, 123, 500, 1023)]
        cases.append(
            {
                "samples": samples,
                "mean": float(whole.mean()),
                "spots": [[mel, frame, float(f"{whole[frame, mel]:.9g}")] for mel, frame in spots],
            }
        )
    write("fbank.json", {"made_by": MADE_BY, "atol": 1e-5, "cases": cases})


class Extractor:
    """transformers' extractor, asked for numpy instead of PyTorch."""

    def __init__(self, folder: pathlib.Path):
        self.inner = transformers.Wav2Vec2FeatureExtractor.from_pretrained(folder)
        self.sampling_rate = self.inner.sampling_rate

    def __call__(self, samples, **options):
        options["return_tensors"] = "np"
        return self.inner(samples, **options)


def recognize(folder: pathlib.Path, samples: np.ndarray, parameters: dict) -> dict:
    extractor = Extractor(folder)
    tokenizer = transformers.Wav2Vec2CTCTokenizer.from_pretrained(folder)
    config = transformers.Wav2Vec2Config.from_pretrained(folder)
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    ratio, rate = config.inputs_to_logits_ratio, extractor.sampling_rate
    length = parameters.get("chunk_length_s", 0)
    if length:
        strides = parameters.get("stride_length_s", length / 6)
        strides = strides if isinstance(strides, list) else [strides, strides]
        whole = [int(round(seconds * rate / ratio) * ratio) for seconds in [length, *strides]]
        parts = list(chunk_iter(samples, extractor, *whole))
    else:
        parts = [extractor(samples, sampling_rate=rate)]
    ids = []
    for part in parts:
        part_ids = session.run(None, {"input_values": part["input_values"]})[0].argmax(-1)[0]
        if "stride" in part:
            total, left, right = rescale_stride([part["stride"]], 1 / ratio)[0]
            part_ids = part_ids[left : total - right]
        ids.extend(int(token) for token in part_ids)
    times = parameters.get("return_timestamps")
    decoded = tokenizer.decode(ids, skip_special_tokens=False, output_char_offsets=True)
    answer = {"text": decoded["text"]}
    if times:
        offsets = decoded["char_offsets"]
        if times == "word":
            offsets = tokenizer._get_word_offsets(offsets, tokenizer.replace_word_delimiter_char)
        answer["chunks"] = [
            {
                "text": offset[times],
                "timestamp": [int(offset["start_offset"]) * ratio / rate, int(offset["end_offset"]) * ratio / rate],
            }
            for offset in offsets
        ]
    return answer


def write_speech(shared: pathlib.Path) -> None:
    samples, _ = soundfile.read(shared / "inputs/audio/speech_16k.wav", dtype="float32")
    folder = shared / "store/tiny-wav2vec2-ctc"
    cases = [
        {"parameters": parameters, "prediction": recognize(folder, samples, parameters)}
        for parameters in [
            {},
            {"return_timestamps": "word"},
            {"return_timestamps": "char"},
            {"chunk_length_s": 3},
            {"chunk_length_s": 2.5, "stride_length_s": 0.5},
            {"chunk_length_s": 1.01, "stride_length_s": [0.3, 0.11], "return_timestamps": "word"},
            {"chunk_length_s": 30, "return_timestamps": "word"},
            {"chunk_length_s": 2, "stride_length_s": 0},
        ]
    ]
    write("speech.json", {"made_by": MADE_BY, "sound": "audio/speech_16k.wav", "cases": cases})


def write(name: str, golden: dict) -> None:
    cases = ",\n  ".join(json.dumps(case, ensure_ascii=False) for case in golden.pop("cases"))
    head = json.dumps(golden, ensure_ascii=False)[:-1]
    (ROOT / "tests/golden" / name).write_text(f'{head}, "cases": [\n  {cases}\n]}}\n')


def write_sounds() -> None:
    folder = ROOT / "tests/fixtures/sounds"
    folder.mkdir(exist_ok=True)
    t = np.arange(11025) / 22050.0
    left, right = 0.5 * np.sin(2 * np.pi * 440 * t), 0.25 * np.sin(2 * np.pi * 440 * t)
    both = np.stack([left, right], axis=1)
    soundfile.write(folder / "tone.flac", both, 22050, format="FLAC", subtype="PCM_16")
    soundfile.write(folder / "tone-24.flac", left, 22050, format="FLAC", subtype="PCM_24")
    soundfile.write(folder / "tone.ogg", both, 22050, format="OGG", subtype="VORBIS")
    soundfile.write(folder / "tone.mp3", both, 22050, format="MP3", subtype="MPEG_LAYER_III")


if __name__ == "__main__":
    write_mel()
    write_fbank()
    write_speech(pathlib.Path(sys.argv[1]))
    write_sounds()
