"""What transformers makes of nano's tokenizer under other settings: writes `cases.json`.

Each case changes fields of `tokenizer.json`, replaces `tokenizer_config.json`, or adds files beside them; the reference is
`AutoTokenizer` of that folder. Needs transformers 5.23 (`python make.py`).
"""

import json
import pathlib
import random
import tempfile

from transformers import AutoTokenizer

HERE = pathlib.Path(__file__).parent
NANO = HERE.parents[2] / "fixtures" / "nano"
CONFIG = json.loads((NANO / "tokenizer_config.json").read_text())
TEXTS = ["Once there was", "<bos>Once there was", "a dog <unused60><unused61> <unused62><unused63><new> girl", "Hello , world ! é🙂\n", "",
         "Once there was a girl named Zoe. Zoe had a dog and a red bell."]


def special(text, i):
    return {"id": i, "content": text, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}


def processor(*after):
    names = {"<bos>": 2, "<eos>": 1}
    one = [{"SpecialToken": {"id": "<bos>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    one += [{"SpecialToken": {"id": t, "type_id": 0}} for t in after]
    pair = [*one, {"Sequence": {"id": "B", "type_id": 1}}]
    return {"type": "TemplateProcessing", "single": one, "pair": pair,
            "special_tokens": {t: {"id": t, "ids": [i], "tokens": [t]} for t, i in names.items()}}


def without(*names, **more):
    return {**{k: v for k, v in CONFIG.items() if k not in names}, **more}


FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
TRUNCATION = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
PADDING = {"strategy": {"Fixed": 64}, "direction": "Left", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0, "pad_token": "<pad>"}
replace = {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}
strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
DECODERS = {
    "none": None,
    "byte fallback": {"type": "Sequence", "decoders": [replace, {"type": "ByteFallback"}, {"type": "Fuse"}]},
    "llama's": {"type": "Sequence", "decoders": [replace, {"type": "ByteFallback"}, {"type": "Fuse"}, strip]},
    "both ends": {"type": "Sequence", "decoders": [replace, {"type": "ByteFallback"}, {"type": "Fuse"}, {**strip, "stop": 1}]},
    "each token": {"type": "Sequence", "decoders": [replace, strip, {"type": "ByteFallback"}]},
    "metaspace": {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True},
    "metaspace never": {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "never", "split": False},
    "bytes": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
    "replaced at the end": {"type": "Sequence", "decoders": [{"type": "Fuse"}, {"type": "Replace", "pattern": {"String": "a\u2581"}, "content": "_"}]},
    "wordpiece": {"type": "WordPiece", "prefix": "\u2581", "cleanup": True},
    "bpe": {"type": "BPEDecoder", "suffix": "e"},
}
CASES = {
    "as it is": {},
    "truncation": {"json": {"truncation": TRUNCATION}},
    "padding": {"json": {"padding": PADDING}},
    "both": {"json": {"truncation": TRUNCATION, "padding": PADDING, "post_processor": processor()}},
    "post-processor": {"json": {"post_processor": processor()}},
    "post-processor with an end": {"json": {"post_processor": processor("<eos>")}},
    "post-processor, add_bos_token false": {"json": {"post_processor": processor()}, "config": without(add_bos_token=False)},
    "post-processor, bos_token null": {"json": {"post_processor": processor()}, "config": without(bos_token=None)},
    "add_bos_token false": {"config": without(add_bos_token=False)},
    "bos_token null": {"config": without(bos_token=None)},
    "no tokenizer_config.json, post-processor": {"json": {"post_processor": processor()}, "config": None},
    "GemmaTokenizer": {"config": without(tokenizer_class="GemmaTokenizer")},
    "clean_up_tokenization_spaces": {"config": without(clean_up_tokenization_spaces=True)},
    "added_tokens_decoder": {"config": without(added_tokens_decoder={"60": {"content": "<unused60>", "special": True, **FLAGS},
                                                                     "61": {"content": "<unused61>", "special": False, **FLAGS, "lstrip": True}})},
    "added_tokens.json": {"files": {"added_tokens.json": {"<unused61>": 61, "<new>": 992}}},
    "extra_special_tokens, a list": {"config": without(extra_special_tokens=["<unused62>", "dog"])},
    "extra_special_tokens, an object": {"config": without(extra_special_tokens={"x_token": "<unused62>", "y": "girl"})},
    "additional_special_tokens": {"config": without("extra_special_tokens", additional_special_tokens=["<unused62>", "dog"])},
    "special_tokens_map.json": {"config": without("bos_token"), "files": {"special_tokens_map.json": {
        "bos_token": {"content": "<unused63>", **FLAGS}, "additional_special_tokens": ["<unused62>"]}}},
    **{f"decoder: {name}": {"json": {"decoder": d}} for name, d in DECODERS.items()},
}


def write(folder, case):
    j = json.loads((NANO / "tokenizer.json").read_text())
    j.update(case.get("json", {}))
    (folder / "tokenizer.json").write_text(json.dumps(j, ensure_ascii=False))
    config = case.get("config", CONFIG)
    if config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    for name, value in case.get("files", {}).items():
        (folder / name).write_text(json.dumps(value))


rng = random.Random(3)
cases = []
for name, case in CASES.items():
    with tempfile.TemporaryDirectory() as folder:
        write(pathlib.Path(folder), case)
        tok = AutoTokenizer.from_pretrained(folder)
        ids = {"texts": TEXTS, "ids": [tok(t)["input_ids"] for t in TEXTS],
               "plain_ids": [tok(t, add_special_tokens=False)["input_ids"] for t in TEXTS]}
        decoded = []
        if name.startswith("decoder") or name.startswith("clean"):
            for _ in range(12):
                # Bytes, among them whole characters and broken ones, words, special tokens.
                run = []
                for _ in range(rng.randrange(1, 8)):
                    kind = rng.randrange(5)
                    if kind == 0:
                        run += [107 + b for b in rng.choice(["é", "🙂", "日"]).encode()]
                    elif kind == 1:
                        run.append(107 + rng.randrange(256))
                    elif kind == 2:
                        run.append(rng.choice([0, 1, 2, 105, 106, 50]))
                    else:
                        run += [rng.randrange(363, 992) for _ in range(rng.randrange(1, 4))]
                decoded.append({"ids": run, "text": tok.decode(run, skip_special_tokens=True)})
        cases.append({"name": name, **case, **ids, "decoded": decoded})
lines = ",\n".join(json.dumps(c, ensure_ascii=False) for c in cases)
(HERE / "cases.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")
print(len(cases), "cases")
