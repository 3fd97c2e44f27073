"""Renders the templates of `cases.py` as transformers does and writes `cases.json`: what each one prints, or the error it ends in.

Needs transformers 5.23 with jinja2 3.1 (`python make.py`).
"""

import json
import pathlib
import re

from transformers.utils.chat_template_utils import _compile_jinja_template

from cases import CONTEXT, EXPRESSIONS, TEMPLATES

HERE = pathlib.Path(__file__).parent


def render(template):
    """The text, or the error's message."""
    try:
        text = _compile_jinja_template(template).render(**CONTEXT)
        if re.search(r" at 0x|<class|<function|<p>|jinja2\.", text):
            return {"error": "prints what is another text in each run"}
        return {"text": text}
    except Exception as e:
        return {"error": f"{type(e).__name__}: {e}"}


# Each expression of a line by itself, so that an error hides none.
single = [e for line in EXPRESSIONS for e in re.findall(r"\{\{.*?\}\}(?=[ |{]|$)", line, re.S)]
cases = [{"template": t, **render(t)} for t in dict.fromkeys(single + TEMPLATES)]
lines = ",\n".join(json.dumps(c, ensure_ascii=False) for c in cases)
text = f'{{"context": {json.dumps(CONTEXT, ensure_ascii=False)},\n"cases": [\n{lines}\n]}}\n'
(HERE / "cases.json").write_text(text, encoding="utf-8")
errors = sum("error" in c for c in cases)
print(f"{len(cases)} cases, {errors} of them errors")
