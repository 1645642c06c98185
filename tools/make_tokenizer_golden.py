#!/usr/bin/env python3
"""Writes tests/golden/tokens.json: what Python's `tokenizers` makes of 1,000 lines of many scripts, emoji and oddities.

Needs `pip install tokenizers`. For each tokenizer and each line it keeps an FNV-1a hash (64 bits, hex) of the token ids and
of their places in characters, so that the file stays small; for long lines also of the parts that question answering reads
(`only_second` with a stride), and of pairs of which only the first is cut. The lines are drawn with a fixed seed. The
tokenizers are those of the fixtures, of the shared models where these are there, and a unigram one that is trained here.
"""

import json
import pathlib
import random

import tokenizers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

ROOT = pathlib.Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared" / "models" / "store"
LINES, PARTS = 1000, 40

PHRASES = """The quick brown fox jumps over the lazy dog.
Größe, Straße und Füße: überall Äpfel!
Où est-il allé ? L'été, à Noël, ça c'est sûr.
El niño comió piñas; ¿dónde está la cigüeña?
Zażółć gęślą jaźń — Łódź, Kraków.
Příliš žluťoučký kůň úpěl ďábelské ódy.
Árvíztűrő tükörfúrógép.
İstanbul'da ılık bir gün; IĞDIR, iğne.
Þetta er ágætt, ævi og öl.
Съешь же ещё этих мягких французских булок, да выпей чаю.
Ґанок, їжак, єнот і щука.
Ξεσκεπάζω την ψυχοφθόρα σας βδελυγμία· ΣΊΣΥΦΟΣ.
שלום עולם, מה שלומך? בְּרֵאשִׁית
السلام عليكم ورحمة الله، كيف حالك؟
پنج گوی طلایی، می‌خواهم
नमस्ते दुनिया, क्षत्रिय ज्ञान।
আমার সোনার বাংলা, কেমন আছো?
தமிழ் மொழி அழகானது
తెలుగు భాష చాలా మధురం
ಕನ್ನಡ ನಾಡು ಸುಂದರ
മലയാളം സംസാരിക്കാമോ
ગુજરાતી ભાષા
ਪੰਜਾਬੀ ਬੋਲੀ
සිංහල භාෂාව
ภาษาไทยไม่มีช่องว่างระหว่างคำ
ພາສາລາວ
မြန်မာဘာသာ
ភាសាខ្មែរ
བོད་སྐད་ཡིག
ქართული ენა მშვენიერია
Հայերեն լեզու
አማርኛ ቋንቋ ሰላም
東京は日本の首都です。カタカナとﾊﾝｶｸ、ひらがな。
中华人民共和国，北京欢迎你！繁體字：臺灣。
한국어 문장입니다. 각 글자 ㅎㅏㄴ
Tiếng Việt có dấu: được, nghĩa, Việt.
ᏣᎳᎩ ᎦᏬᏂᎯᏍᏗ
ᠮᠣᠩᠭᠣᠯ ᠬᠡᠯᠡ
ⴰⵎⴰⵣⵉⵖ
𐍅𐌿𐌻𐍆𐌹𐌻𐌰 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𝟙𝟚𝟛
fn main() { println!("{:?}", x_1); } // a+b != c->d
https://example.org/a?b=1&c=%20#d user@example.com
[CLS] the [MASK] is [SEP] <s> <mask> </s> [UNK]
can't won't I'm it's they've rock'n'roll
1,234.56 $9.99 €20 ½ ² ³ № ™ © 10⁻⁶ 3×4÷5""".split("\n")
EMOJI = ["🙂", "👩‍👩‍👧‍👦", "🏳️‍🌈", "👍🏽", "🇩🇪🇯🇵", "❤️", "🫠", "🧑🏿‍🚀", "1️⃣", "☃", "🤷‍♀️", "🐍🦀"]
ODD = [
    " ", "  ", "\t", "\u00a0", "\u3000", "\u200b", "\u200d", "\ufeff", "\u00ad", "\u2028", "\u0000", "\u0007", "\u001c", "\ufffd",
    "e\u0301", "A\u030a", "\u0301", "ﬁ", "Ǆ", "ß", "ŉ", "Å", "Ω", "…", "—", "“”", "‘’", "«»", "、", "।", "؟", "\U000e0041", "\ue000", "\u202e",
    "a" * 120, "x\u0335\u0321y", "0" * 30, "_-_", "...", "\r\n", "²", "Ⅷ", "①", "㍿", "가", "\u1100\u1161",
]
RANGES = [(0x21, 0x7E), (0xA1, 0x24F), (0x370, 0x3FF), (0x400, 0x4FF), (0x900, 0x97F), (0x3040, 0x30FF), (0x4E00, 0x9FFF), (0x1F300, 0x1F64F), (0x20000, 0x200FF)]


def lines():
    """1,000 different lines: each phrase whole, then pieces of them with emoji, oddities and characters of any script."""
    draw = random.Random(20_240_901)
    made = list(PHRASES) + ["", " ", "\n"] + EMOJI + ODD
    while len(made) < LINES:
        parts = []
        for _ in range(draw.randint(1, 5)):
            kind = draw.random()
            if kind < 0.6:
                words = draw.choice(PHRASES).split(" ")
                start = draw.randrange(len(words))
                parts.append(" ".join(words[start:start + draw.randint(1, 4)]))
            elif kind < 0.75:
                parts.append(draw.choice(EMOJI))
            elif kind < 0.9:
                parts.append(draw.choice(ODD))
            else:
                parts.append("".join(chr(draw.randint(*draw.choice(RANGES))) for _ in range(draw.randint(1, 4))))
        made.append(draw.choice(["", " ", " ", " "]).join(parts))
    assert len(made) == LINES
    return made


def fnv(numbers):
    """FNV-1a over the numbers' 4 bytes, lowest first."""
    value = 0xCBF29CE484222325
    for number in numbers:
        for byte in int(number).to_bytes(4, "little"):
            value = (value ^ byte) * 0x100000001B3 % 2**64
    return f"{value:016x}"


def places(encodings):
    return [place for one in encodings for start, end in one.offsets for place in (start, end)]


def words(encodings):
    return [0 if word is None else word + 1 for one in encodings for word in one.word_ids]


def unigram(texts):
    """As XLM-RoBERTa's: spaces are a character, and no word is marked."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace("\t", " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer.train_from_iterator(texts, trainers.UnigramTrainer(vocab_size=1500, special_tokens=special, unk_token="<unk>", show_progress=False))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return json.loads(tokenizer.to_str())


def golden(tokenizer, texts):
    tokenizer.no_padding()
    tokenizer.no_truncation()
    encodings = [tokenizer.encode(text) for text in texts]
    made = {
        "ids": [fnv(one.ids) for one in encodings],
        "places": [fnv(places([one])) for one in encodings],
        "decoded": [fnv(tokenizer.decode(one.ids, skip_special_tokens=True).encode()) for one in encodings[::10]],
    }
    parts, firsts = [], []
    for index in range(PARTS):
        context = " ".join(texts[index * 20:index * 20 + 8])
        # Room for the question, the special tokens and one more at least.
        tokenizer.enable_truncation(64, stride=16, strategy="only_second")
        one = tokenizer.encode("who is it?", context)
        spans = [one, *one.overflowing]
        parts.append([len(spans), fnv(id for span in spans for id in span.ids), fnv(places(spans)), fnv(words(spans))])
        tokenizer.enable_truncation(64, stride=0, strategy="only_first")
        firsts.append(fnv(tokenizer.encode(context, "This is it.").ids))
    return {**made, "parts": parts, "firsts": firsts}


def main():
    texts = lines()
    own = unigram(PHRASES)
    found = {"unigram": golden(Tokenizer.from_str(json.dumps(own)), texts)}
    for path in ["tests/fixtures/store/embedder", "tests/fixtures/store/token-features"]:
        found[path] = golden(Tokenizer.from_file(str(ROOT / path / "tokenizer.json")), texts)
    for name in ["all-MiniLM-L6-v2", "minilm-mini-ner", "tiny-bert-qa"]:
        if (SHARED / name).is_dir():
            found[f"shared/{name}"] = golden(Tokenizer.from_file(str(SHARED / name / "tokenizer.json")), texts)
    path = ROOT / "tests" / "golden" / "tokens.json"
    made_by = f"tools/make_tokenizer_golden.py: tokenizers {tokenizers.__version__}"
    content = {"made_by": made_by, "lines": texts, "unigram": own, "found": found}
    path.write_text(json.dumps(content, ensure_ascii=True, separators=(",", ":")) + "\n", encoding="utf-8")
    print(f"{path.relative_to(ROOT)}: {path.stat().st_size} bytes, {len(texts)} lines, {', '.join(found)}")


if __name__ == "__main__":
    main()
