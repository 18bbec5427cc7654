"""Generation from text to text: prompts framed as in training, options from the model's folder, streaming output."""

import functools
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfzoo.errors import UserError
from tfzoo.generation.decode import generate_ids
from tfzoo.generation.defaults import completed
from tfzoo.generation.folder import folder_options, special_ids
from tfzoo.generation.written import Answer, Growing, added_text, check_not_empty, check_one_text
from tfzoo.text import framing

_END_OF_TEXT = "<|endoftext|>"


def generate_text(
    model,
    prompts: str | Sequence[str],
    tokenizer,
    *,
    special: Sequence[str] = (),
    skip_special_tokens: bool = True,
    return_scores: bool = False,
    on_text: Callable[[str], None] | None = None,
    **options,
) -> list:
    """Continues texts, or answers them if the model is an encoder-decoder.

    Args:
      model, tokenizer: as returned by tfzoo.load.
      prompts: one text or several. They are framed with special tokens as in training; special tokens written in them
        are plain text.
      special: special tokens, such as "<extra_id_0>", that are nevertheless recognised in prompts.
      skip_special_tokens: whether special tokens are omitted from the texts.
      return_scores: whether to return Answers instead of strings.
      on_text: a function called with each new part of the single text as soon as it is known, in whole characters. If
        the search does not generate one token after another, or XLA compiles it, it is called with the complete text.
      **options: those of generate_ids. Unspecified options are taken from generation_config.json in the model's folder,
        and those that it does not contain have no effect. A folder that specifies only do_sample samples from the 50
        likeliest tokens, as in transformers.

    Returns:
      The texts without their prompts, as str or Answer. With num_return_sequences R, the R texts of a prompt are
      consecutive.

    Raises:
      UserError: a prompt is empty, options contradict each other or the model, or max_new_tokens leaves no room.
      CheckFailed: the model's logits are not finite.
    """
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    ids = encode_prompts(model, tokenizer, texts, special)
    return generate_from(
        model,
        ids,
        tokenizer,
        skip_special_tokens=skip_special_tokens,
        on_text=on_text,
        answers=return_scores,
        **options,
    )


def generate_from(
    model,
    prompt_ids: Sequence[Sequence[int]],
    tokenizer,
    *,
    skip_special_tokens: bool = True,
    on_text: Callable[[str], None] | None = None,
    answers: bool = False,
    **options,
) -> list:
    """Continues prompts that are token ids already; no special tokens are added to them.

    Args:
      model, tokenizer: as returned by tfzoo.load.
      prompt_ids: the ids of each prompt.
      skip_special_tokens, on_text, **options: see `generate_text`.
      answers: whether to return Answers instead of strings.

    Returns:
      See `generate_text`.

    Raises:
      UserError, CheckFailed: see `generate_text`.
    """
    options = {name: value for name, value in options.items() if value is not None}
    if not prompt_ids:
        return []
    counts = [1 if model.is_encoder_decoder else len(row) for row in prompt_ids]
    options = _with_defaults(model, tokenizer, counts, options)
    if options.get("stop_strings"):
        options["tokenizer"] = tokenizer
    stream = None
    if on_text is not None:
        check_one_text(len(prompt_ids), options)
    if on_text is not None and _grows(options):
        stream = model.__dict__.setdefault("_tfzoo_stream", _Stream())
        options["logits_processor"] = (*_tuple(options.get("logits_processor")), stream)

    def text_of(row: int, ids: Sequence[int]) -> str:
        before = () if model.is_encoder_decoder else prompt_ids[row]
        return decode_text(tokenizer, ids, before, skip_special_tokens)

    growing = Growing(lambda ids: text_of(0, ids), on_text or str)
    batch = tf.ragged.constant([list(row) for row in prompt_ids], dtype=tf.int32, ragged_rank=1)
    if stream is None:
        result = generate_ids(model, batch, **options, return_scores=True)
    else:
        with stream.heard_by(growing.feed):
            result = generate_ids(model, batch, **options, return_scores=True)
    token_ids, scores, lengths, totals = (np.asarray(x) for x in result)
    times = len(token_ids) // len(prompt_ids)
    generated = []
    for i, length in enumerate(lengths):
        row = token_ids[i, :length].tolist()
        generated.append(Answer(text_of(i // times, row), row, scores[i, :length].tolist(), float(totals[i])))
    if on_text is not None:
        growing.end(generated[0].text)
    return generated if answers else [answer.text for answer in generated]


class ModelWriter:
    """Writes texts with a model; OnnxWriter of tfzoo.onnx_decoding has the same methods.

    Args:
      model, tokenizer: as returned by tfzoo.load.

    Attributes:
      assists: True: another model may draft tokens.

    Raises:
      UserError: the model has no tokenizer.
    """

    assists = True

    def __init__(self, model, tokenizer):
        prompt_frame(model, tokenizer)
        self.model, self.tokenizer, self.is_encoder_decoder = model, tokenizer, model.is_encoder_decoder

    def encode(self, texts: Sequence[str], special: Sequence[str] = ()) -> list[list[int]]:
        """See the function of this name."""
        return encode(self.tokenizer, texts, special)

    def decode_text(self, token_ids: Sequence[int], before: Sequence[int] = (), skip_special: bool = True) -> str:
        """See the function of this name."""
        return decode_text(self.tokenizer, token_ids, before, skip_special)

    def generate_text(self, prompts: Sequence[str], **how: Any) -> list[Answer]:
        """See the function of this name."""
        return generate_text(self.model, prompts, self.tokenizer, return_scores=True, **how)

    def generate_from(self, prompt_ids: Sequence[Sequence[int]], **how: Any) -> list[Answer]:
        """See the function of this name."""
        return generate_from(self.model, prompt_ids, self.tokenizer, answers=True, **how)


def prompt_frame(model, tokenizer) -> tuple[list[int], list[int]]:
    """Returns the ids of the special tokens before and after a prompt.

    For a model from a Hugging Face folder they are those with which the checkpoints of its family were trained, and
    otherwise those that tfzoo's objectives put around a document.

    Raises:
      UserError: the model has no tokenizer.
    """
    if tokenizer is None:
        raise UserError(
            f"model {model.name!r} has no tokenizer that tfzoo can read; put the tokenizer's files into its folder"
        )
    before: Sequence[int | str | None]
    after: Sequence[int | str | None]
    if model.record is not None:
        parts = list(framing.frame(model.LAYOUT, tokenizer).parts)
        place = parts.index(framing.TEXT)
        before, after = parts[:place], parts[place + 1 :]
    elif model.is_encoder_decoder:
        _, begin, end = framing.encoder_decoder_ends(tokenizer)
        before, after = [begin], [end]
    else:
        before, after = [tokenizer.bos_id], []
    return [i for i in before if isinstance(i, int)], [i for i in after if isinstance(i, int)]


def encode_prompts(model, tokenizer, texts: Sequence[str], special: Sequence[str] = ()) -> list[list[int]]:
    """Returns the ids of each text, framed with special tokens.

    Raises:
      UserError: a text is empty or has characters that are not in the vocabulary.
    """
    before, after = prompt_frame(model, tokenizer)
    rows = encode(tokenizer, texts, special)
    check_not_empty(texts, rows)
    return [[*before, *ids, *after] for ids in rows]


def encode(tokenizer, texts: Sequence[str], special: Sequence[str] = ()) -> list[list[int]]:
    """Returns the ids of each text, without added special tokens; those in `special` are recognised in the texts.

    Raises:
      UserError: a text has characters that are not in the vocabulary.
    """
    if not texts:
        return []
    try:
        return tokenizer.tokenize(tf.constant([text.encode(errors="replace") for text in texts]), special).to_list()
    except tf.errors.InvalidArgumentError as error:
        words = str(error.message).split("\n")[0][:200]
        raise UserError(f"the tokenizer cannot encode a text: {words}; remove that character") from None


def decode_text(tokenizer, token_ids: Sequence[int], before: Sequence[int] = (), skip_special: bool = True) -> str:
    """Returns the text that token_ids add to the text of `before`."""
    special = {} if skip_special else {i: tokenizer.vocab[i] for i in tokenizer.special_ids}
    return added_text(functools.partial(_detokenize, tokenizer), special, token_ids, before, skip_special)


def _detokenize(tokenizer, ids: Sequence[int]) -> str:
    return tokenizer.detokenize(tf.constant([list(ids)], tf.int32))[0].numpy().decode(errors="replace") if ids else ""


class _Stream:
    """A logits processor that does not change the logits but passes the newest token of each step to a listener."""

    def __init__(self):
        self._lock = threading.Lock()
        self._listener: Callable[[int], Any] = str
        self._begun, self._error = False, None

    def __call__(self, history, logits):
        # The logits depend on the call, so that no step continues before it.
        heard = tf.py_function(self._hear, [history[0, -1]], [])
        with tf.control_dependencies([heard]):
            return tf.identity(logits)

    def _hear(self, token) -> None:
        try:
            if self._begun:  # At the first step the newest token belongs to the prompt.
                self._listener(int(token))
            self._begun = True
        except BaseException as error:
            self._error = error
            raise

    def heard_by(self, listener: Callable[[int], Any]):
        """Returns a context manager within which `listener` is called with each new token."""
        return _Hearing(self, listener)


class _Hearing:
    """The context in which a stream has a listener; the listener's exceptions are re-raised at the end."""

    def __init__(self, stream: _Stream, listener):
        self._stream, self._listener = stream, listener

    def __enter__(self):
        self._stream._lock.acquire()
        self._stream._listener, self._stream._begun, self._stream._error = self._listener, False, None

    def __exit__(self, *_):
        error, self._stream._listener = self._stream._error, str
        self._stream._lock.release()
        if error is not None:
            raise error


def _grows(options: Mapping[str, Any]) -> bool:
    """Returns whether the search generates one token after another."""
    others = ("prompt_lookup_num_tokens", "assistant_model", "jit_compile")
    return options.get("num_beams", 1) == 1 and not any(options.get(name) for name in others)


def _with_defaults(model, tokenizer, counts: Sequence[int], explicit: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `explicit`, completed with options from the model's folder and the tokenizer.

    Args:
      model, tokenizer: as returned by tfzoo.load.
      counts: the number of tokens in each prompt, or 1 for a start token.
      explicit: the options of the caller.
    """
    options = completed(explicit, folder_options(model), counts, model.config.max_positions)
    return _own_ids(model, tokenizer) | options


def _own_ids(model, tokenizer) -> dict[str, Any]:
    """Returns the tokenizer's ids of special tokens, by the names of the options, where the model's folder has none."""
    folder_ids = special_ids(model)
    eos, pad = tokenizer.eos_id, tokenizer.pad_id
    if eos is None and _END_OF_TEXT in tokenizer.vocab:
        eos = tokenizer.vocab.index(_END_OF_TEXT)
    start = pad
    if model.is_encoder_decoder and model.record is None:  # As in training.
        start, _, end = framing.encoder_decoder_ends(tokenizer)
        eos = eos if end is None else end
    ids = {"eos_token_id": eos, "pad_token_id": eos if pad is None else pad}
    if model.is_encoder_decoder:
        ids["decoder_start_token_id"] = start
    return {name: value for name, value in ids.items() if value is not None and name not in folder_ids}


def _tuple(value) -> tuple:
    return () if value is None else tuple(value) if isinstance(value, Sequence) else (value,)
