"""Chat templates for models that have none: `--chat_template=chatml` or `--chat_template=plain`."""

from tfzoo import files
from tfzoo.errors import UserError, suggest

CHATML, PLAIN = "chatml", "plain"

# <|im_start|>user
# What a day<|im_end|>
_CHATML = """\
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' + message.content | trim + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}
"""
# User: What a day
# Assistant: It is.</s>
_PLAIN = """\
{%- if eos_token is not defined %}{{ raise_exception('the tokenizer has no end-of-text token') }}{% endif %}
{%- for message in messages %}
{%- set end = eos_token if message.role == 'assistant' else '' %}
{{- message.role | capitalize + ': ' + message.content | trim + end + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}
"""

# Name -> the template, and the special tokens that it requires.
BUILT_IN: dict[str, tuple[str, tuple[str, ...]]] = {
    CHATML: (_CHATML, ("<|im_start|>", "<|im_end|>")),
    PLAIN: (_PLAIN, ()),
}


def read(flag: str, value: str) -> tuple[str, tuple[str, ...]]:
    """Returns the template that a flag specifies, and the special tokens that a tokenizer must have for it.

    Args:
      flag: the name of the flag.
      value: one of BUILT_IN, or a file.

    Raises:
      UserError: the file does not exist, or cannot be read.
    """
    if value in BUILT_IN:
        return BUILT_IN[value]
    try:
        with files.open_file(value) as file:
            return file.read().decode(), ()
    except (OSError, ValueError) as error:
        names = ", ".join(BUILT_IN)
        near = suggest(value, BUILT_IN)
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"--{flag}={value}: is neither one of {names}{near} nor a file that can be read ({reason.lower()}); "
            "specify one of them"
        ) from None
