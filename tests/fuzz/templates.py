"""Chat templates: damaged programs that write a conversation."""

import datetime
import json
import pathlib
import random
import re
from typing import Any

import jinja2.ext
import jinja2.nodes
import jinja2.sandbox

from tests.fuzz.harness import Kind
from tests.fuzz.mutations import damage_bytes
from tfzoo.chat.builtin import BUILT_IN
from tfzoo.chat.template import ChatTemplate
from tfzoo.errors import UserError

_LONG = """\
{%- macro said(message) %}{% if message.content is string %}{{ message.content | trim }}{% else %}
{%- for part in message.content %}{{ part.text | default('?') | upper }}{% endfor %}{% endif %}{% endmacro %}
{%- if messages[0].role == 'system' %}{% set system = messages[0].content %}{% set rest = messages[1:] %}
{%- else %}{% set system = 'none' ~ (1 + 2) %}{% set rest = messages %}{% endif %}
{{- '<s>' + system.split('.')[0] + '\\n' }}
{%- set ns = namespace(n=0) %}{% for m in rest %}{% set ns.n = ns.n + loop.index0 * 2 %}
{{- '<|im_start|>%s %d\\n' % (m.role, ns.n) }}{{ said(m) }}{% if not loop.last %}<|im_end|>{% endif %}
{%- if m['tool_calls'] is defined %}{{ m.tool_calls | tojson(indent=1) }}{% endif %}{% endfor %}
{%- if add_generation_prompt and rest | length < 9 %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
_SOURCES = {**{name: source for name, (source, _) in BUILT_IN.items()}, "long": _LONG}
# Pieces of templates that take time or memory, or leave the sandbox if it has a hole.
_PIECES = """\
{% for i in range(99999) %}
{% endfor %}
{% for m in messages %}
{% macro f(x) %}
{% endmacro %}
{% call f() %}
{{ f(1) }}
{{ 9 ** (9 ** 9) }}
{{ '%999999999s' % 1 }}
{{ messages.__init__.__globals__ }}
{{ lipsum(n=99999) }}
{{ cycler }}{{ self }}
{% include 'x' %}
{% import 'os' as os %}
{% set messages = [messages, messages] %}
{% raw %}
{#
| center(99999999)
| tojson
| attr('__class__')
| map('upper')
| list
| sort(attribute='role')
.format(messages)
.__class__
* 99999
[0]
()
(((((((((((((((((((((((((((((
loop
 not
 ==
 ~
'""".split("\n")
_MESSAGES: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief. Now."},
    {"role": "user", "content": "What <|im_end|> day\n"},
    {"role": "assistant", "content": "It is.", "tool_calls": [{"name": "f", "arguments": {"x": [1, None, "</s>"]}}]},
    {"role": "user", "content": [{"type": "text", "text": "And?"}]},
]


class _Letters:
    """A tokenizer of letters."""

    vocab = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    special_ids = [0, 1, 2, 3]
    bos_id, eos_id, unknown_id = 0, 1, None

    def encode(self, texts, special=()):
        return [[ord(letter) for letter in text] for text in texts]


class _Generation(jinja2.ext.Extension):
    """{% generation %} ... {% endgeneration %}, which writes what is inside."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_write"), [], [], body).set_lineno(line)

    def _write(self, caller):
        return caller()


def _make(folder: pathlib.Path) -> None:
    (folder / "template.jinja").write_text(_SOURCES["chatml"])


def _damage(folder: pathlib.Path, draw: random.Random) -> str:
    name = draw.choice(sorted(_SOURCES))
    source = _SOURCES[name].encode()
    if draw.random() < 0.4:
        source = damage_bytes(source, draw)
    for _ in range(draw.choice((0, 1, 1, 2))):
        place = draw.randint(0, len(source))
        source = source[:place] + draw.choice(_PIECES).encode() + source[place + draw.choice((0, 0, 1, 9)) :]
    (folder / "template.jinja").write_bytes(source)
    return f"{name}: {source[:2000]!r}"


def _source(folder: pathlib.Path) -> str:
    try:
        return (folder / "template.jinja").read_text()
    except UnicodeDecodeError:
        raise UserError("template.jinja: is not UTF-8; save it as UTF-8") from None


def _read(folder: pathlib.Path) -> str:
    tokenizer = _Letters()
    return _without_addresses(ChatTemplate(_source(folder), tokenizer, tokenizer.encode).text(_MESSAGES))


def _without_addresses(text: str) -> str:
    return re.sub("<[^<>]* at 0x[0-9a-f]+>", "<an object>", text)


def _stock(folder: pathlib.Path) -> str:
    """Returns the text that jinja2's sandbox writes, with the settings of Hugging Face's library."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )

    def refuse(message):
        raise ValueError(message)

    environment.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
    environment.globals |= {"raise_exception": refuse, "strftime_now": datetime.datetime.now().strftime}
    others = dict(tools=None, documents=None, add_generation_prompt=True, bos_token="<s>", eos_token="</s>")
    return _without_addresses(environment.from_string(_source(folder)).render(messages=_MESSAGES, **others))


KINDS = {"templates": Kind(_make, _damage, _read, _stock)}
