"""Chats of several turns with a model that thinks, as transformers renders them: writes `cases.json`.

The tokenizer is nano's with two tokens renamed to Gemma 4's marks of a channel; the template is nano's with the rule of Gemma 4's
that a turn's history holds what stands outside of channels. Needs transformers 5.23 (`python make.py`).
"""

import json
import pathlib
import shutil
import tempfile

from transformers import AutoTokenizer

HERE = pathlib.Path(__file__).parent
NANO = HERE.parents[2] / "fixtures" / "nano"
RENAME = {"<|channel>": 405, "<channel|>": 792}
STOP = 106

STRIP = """\
{%- macro answer_of(text) -%}
    {%- set kept = namespace(text='') -%}
    {%- for piece in text.split('<channel|>') -%}
        {%- set kept.text = kept.text + piece.split('<|channel>')[0] -%}
    {%- endfor -%}
    {{- kept.text | trim -}}
{%- endmacro -%}
"""


def tokenizer(folder):
    """nano's tokenizer with the marks of a channel."""
    j = json.loads((NANO / "tokenizer.json").read_text())
    vocab = j["model"]["vocab"]
    by_id = {i: t for t, i in vocab.items()}
    for new, i in RENAME.items():
        old = by_id[i]
        del vocab[old]
        vocab[new] = i
        pairs = [m if isinstance(m, list) else m.split(" ") for m in j["model"]["merges"]]
        j["model"]["merges"] = [p for p in pairs if old not in (*p, "".join(p))]
        j["added_tokens"].append({"id": i, "content": new, "single_word": False, "lstrip": False, "rstrip": False,
                                  "normalized": False, "special": True})
    j["added_tokens"].sort(key=lambda t: t["id"])
    (folder / "tokenizer.json").write_text(json.dumps(j, ensure_ascii=False))
    shutil.copy(NANO / "tokenizer_config.json", folder)
    return AutoTokenizer.from_pretrained(folder)


def template():
    """nano's template; what the model said goes through the macro."""
    text = (NANO / "chat_template.jinja").read_text()
    said = "text_of(message['content'])"
    assert said in text
    return STRIP + text.replace(said, f"(answer_of({said}) if role == 'model' else {said})")


with tempfile.TemporaryDirectory() as folder:
    tok = tokenizer(pathlib.Path(folder))
    tok.chat_template = template()
    O, C = RENAME["<|channel>"], RENAME["<channel|>"]

    def ids(text):
        return tok.encode(text, add_special_tokens=False)

    def byte(*bs):
        return [tok.convert_tokens_to_ids(f"<0x{b:02X}>") for b in bs]

    thought, newline = ids("thought"), ids("\n")
    chats = {
        "a thought and an answer": [[O, *thought, *newline, *ids("Zoe is a girl."), C, *ids(" Zoe had a dog.")]],
        "an empty channel": [[O, *thought, *newline, C, *ids("Tom is sad.")]],
        "a name alone": [[O, *thought, C, *ids("Tom is sad.")]],
        "several channels": [[*ids("One "), O, *thought, *newline, *ids("a"), C, *ids("two "), O, *ids("b"), C, *ids(" three")]],
        "cut off in a thought": [[*ids("Well."), O, *thought, *newline, *ids("The dog was")]],
        "cut off in the name": [[*ids("Well."), O, *thought[:1]]],
        "no answer": [[O, *thought, *newline, *ids("nothing to say"), C]],
        "a mark within a channel": [[O, *thought, *newline, *ids("a"), O, *ids("b"), C, *ids(" answer")]],
        "a mark that closes nothing": [[*ids("The dog"), C, *ids(" went home.")]],
        "no channel": [[*ids("Tom and the dog went home.")]],
        "spaces and lines around": [[O, *thought, *newline, *ids(" x "), C, *newline, *ids("  The end.  "), *newline]],
        "a character of bytes behind a thought": [[O, *byte(0xF0, 0x9F), C, *byte(0xF0, 0x9F, 0x99, 0x82), *ids(" a"), *byte(0xC3)]],
        "an answer that begins with thought": [[*thought, *newline, *ids("Zoe")]],
        "three turns": [[O, *thought, *newline, *ids("first"), C, *ids("Yes.")], [*ids("No.")], [O, *ids("third"), C, *ids("Tom.")]],
    }
    questions = ["Who is Zoe?", "And who is Tom?", "Where is the dog?", "Is Tom sad?"]
    cases = []
    for name, replies in chats.items():
        messages = [{"role": "user", "content": questions[0]}]
        prompts = []
        for question, reply in zip(questions[1:], replies):
            raw = tok.decode(reply, skip_special_tokens=False)
            messages += [{"role": "assistant", "content": raw}, {"role": "user", "content": question}]
            prompts.append(tok.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False))
        cases.append({"name": name, "replies": [[*r, STOP] for r in replies], "prompts": prompts})
    out = {"rename": RENAME, "template": tok.chat_template, "questions": questions, "cases": cases}
    lines = ",\n".join(json.dumps(c) for c in out.pop("cases"))
    head = json.dumps(out)[:-1]
    (HERE / "cases.json").write_text(f'{head}, "cases": [\n{lines}\n]}}\n')
    print(len(cases), "chats")
