"""Record the ids that transformers' apply_chat_template makes of conversations.

    python tests/assets/chat_references.py --output=tests/assets/golden_chat

Needs tokenizers, jinja2 and transformers, and nothing of tfzoo. The vocabulary is special tokens and the bytes, without
a merge; the templates use what those of released models use: white space control, loops with continue, trim, tojson,
namespace, raise_exception, {% generation %} and the names of special tokens.
"""

import argparse
import json
import pathlib
import tempfile

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

SPECIALS = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]
TEMPLATES = {
    "turns": """{%- for m in messages %}
    {%- if loop.first and m['role'] != 'system' %}
        {{- '<|im_start|>system\\nNothing was said.<|im_end|>\\n' }}
    {%- endif %}
    {{- '<|im_start|>' + m.role + '\\n' + m.content | trim + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
""",
    "brackets": """{{ bos_token }}{% for m in messages %}
{% if m['role'] == 'system' %}{% continue %}{% endif %}
    {% if m['role'] == 'user' %}
{{ '(ask) ' + m['content'].strip() + ' (answer)' }}
    {% elif m['role'] == 'assistant' %}{% generation %}{{ m['content'] + eos_token }}{% endgeneration %}

    {% else %}{{ raise_exception('who is ' + m['role']) }}{% endif %}
{% endfor %}
""",
    "json": """{% set seen = namespace(count=0) %}{% for m in messages %}{{ m | tojson }}
{% set seen.count = seen.count + m.content | length %}{% endfor %}{{ seen.count }}{% if tools %} tools{% endif %}""",
}
CONVERSATIONS = [
    [{"role": "user", "content": "hello  there "}],
    [
        {"role": "system", "content": "be 你好 <b>'brief'</b>"},
        {"role": "user", "content": "  why 🙂\n"},
        {"role": "assistant", "content": "so"},
        {"role": "user", "content": "and\nthen?"},
    ],
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=pathlib.Path, required=True)
    output = parser.parse_args().output
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE({token: i for i, token in enumerate([*SPECIALS, *letters])}, []))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    inner.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIALS])
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "tokenizer.json")
        inner.save(str(path))
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(path), bos_token="<s>", eos_token="</s>")
    cases = []
    for name, template in TEMPLATES.items():
        for messages in CONVERSATIONS:
            for prompt in (True, False):
                how = dict(chat_template=template, add_generation_prompt=prompt, tokenize=True, return_dict=False)
                ids = tokenizer.apply_chat_template(messages, **how)
                cases.append({"template": name, "messages": messages, "add_generation_prompt": prompt, "ids": ids})
    output.mkdir(parents=True, exist_ok=True)
    record = {"special": SPECIALS, "letters": letters, "templates": TEMPLATES, "cases": cases}
    (output / "golden.json").write_text(json.dumps(record, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
