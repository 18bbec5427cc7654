"""Prompts in, texts out with an exported decoder or encoder-decoder: what tfzoo.generation.texts does with a model."""

import os
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from tfzoo.errors import UserError
from tfzoo.generation.defaults import NEW_TOKENS, completed
from tfzoo.generation.options import Options, read_options
from tfzoo.generation.written import Answer, Growing, added_text, check_not_empty, check_one_text
from tfzoo.onnx_decoding.beam import beam_search
from tfzoo.onnx_decoding.graphs import Graphs, Reading, open_graphs
from tfzoo.onnx_decoding.sample import sample
from tfzoo.onnx_decoding.tokens import Tokens

# Options of tfzoo.generation that change how TensorFlow computes, or that need a search which exists only there.
UNSUPPORTED = ("jit_compile", "prefill_chunk", "penalty_alpha", "prompt_lookup_num_tokens")
_ROW_BY_ROW = ("int8",)  # Variants whose activations share one scale, so that a row's text depends on the others.
_GOLDEN = 0x3C6EF372  # Distance of the seeds of a prompt's texts, as in tfzoo.generation.decode.


class OnnxWriter:
    """Writes texts with an ONNX artifact.

    Args:
      folder: the artifact.
      manifest: the content of its manifest.json.
      variant: one of its variants; None runs the float32 graphs.

    Attributes:
      tokenizer: the Tokens.
      is_encoder_decoder: whether the model answers texts, rather than continuing them.
      assists: False: no other model drafts tokens.
      length: the maximum number of tokens of a prompt, and for a decoder of what follows, too.

    Raises:
      UserError: the artifact does not write text, its tokenizer cannot be read, or it lacks the variant.
    """

    assists = False

    def __init__(self, folder: str | os.PathLike, manifest: Mapping[str, Any], variant: str | None = None):
        folder = pathlib.Path(folder)
        self._graphs: Graphs = open_graphs(folder, manifest, variant)
        self.tokenizer = Tokens(folder, manifest)
        self.is_encoder_decoder = self._graphs.start is not None
        options, self._config = manifest["options"], manifest["model"]["config"]
        self.length: int = options["sequence_length"]
        self._search, self._new_tokens = options.get("search", {}), options.get("max_new_tokens", NEW_TOKENS)
        self._ids = manifest["generation"]
        self._one_by_one = variant in _ROW_BY_ROW

    def encode(self, texts: Sequence[str], special: Sequence[str] = ()) -> list[list[int]]:
        """Returns the ids of each text, without added special tokens; those in `special` are recognised."""
        return self.tokenizer.encode(texts, special)

    def decode_text(self, token_ids: Sequence[int], before: Sequence[int] = (), skip_special: bool = True) -> str:
        """Returns the text that token_ids add to the text of `before`."""
        names = self.tokenizer.special_names()
        return added_text(self.tokenizer.detokenize, names, token_ids, before, skip_special)

    def generate_text(self, prompts: Sequence[str], *, special: Sequence[str] = (), **how: Any) -> list[Answer]:
        """Continues texts, or answers them; `how` are the other arguments of `generate_from`.

        Raises:
          UserError: a prompt is empty; or as `generate_from`.
        """
        rows = self.encode(prompts, special)
        check_not_empty(prompts, rows)
        return self.generate_from([self.tokenizer.framed(ids) for ids in rows], **how)

    def generate_from(
        self,
        prompt_ids: Sequence[Sequence[int]],
        *,
        skip_special_tokens: bool = True,
        on_text: Callable[[str], None] | None = None,
        stop_strings: Sequence[str] = (),
        **options: Any,
    ) -> list[Answer]:
        """Continues prompts that are token ids already.

        Args:
          prompt_ids: the ids of each prompt.
          skip_special_tokens: whether special tokens are omitted from the texts.
          on_text: a function called with each new part of the single text, in whole characters; a beam search calls it
            with the complete text.
          stop_strings: a text ends with the token that completes one of these strings.
          **options: fields of tfzoo.generation.Options and parameters of ROWS, except UNSUPPORTED. Unspecified options
            are those with which the artifact was exported.

        Returns:
          The texts; with num_return_sequences R, the R texts of a prompt are consecutive.

        Raises:
          UserError: an option is not supported, options contradict each other, or a prompt is too long.
          CheckFailed: the graph's logits are not finite.
        """
        if not prompt_ids:
            return []
        for name in UNSUPPORTED:
            if options.pop(name, None):
                raise UserError(f"--{name}: --engine=onnx does not support it; omit it")
        if on_text is not None:
            check_one_text(len(prompt_ids), options)
        given = {name: value for name, value in options.items() if value is not None}
        counts = [1 if self.is_encoder_decoder else len(ids) for ids in prompt_ids]
        given = completed(given, self._search, counts, self._room(), self._new_tokens)
        static, rows = read_options(**(self._ids | given))
        each = {name: np.array(np.broadcast_to(value, len(prompt_ids))) for name, value in rows.items()}
        self._check(static, prompt_ids, each["max_new_tokens"])
        if static.do_sample and "seed" not in each:
            each["seed"] = np.frombuffer(os.urandom(4 * len(prompt_ids)), np.int32)
        strings = (stop_strings,) if isinstance(stop_strings, str) else tuple(stop_strings)
        size = 1 if self._one_by_one else len(prompt_ids)
        answers: list[Answer] = []
        for begin in range(0, len(prompt_ids), size):
            batch = slice(begin, begin + size)
            parameters = {name: values[batch] for name, values in each.items()}
            how = strings, skip_special_tokens, on_text
            answers += self._written(prompt_ids[batch], static, parameters, *how)
        return answers

    def _room(self) -> int:
        """Returns the maximum number of tokens of a decoder's text."""
        if not self.is_encoder_decoder:
            return self.length
        return 2**31 - 1 if self._config["positions"] in ("relative", "none") else self._config["max_positions"]

    def _check(self, options: Options, prompt_ids: Sequence[Sequence[int]], max_new_tokens: np.ndarray) -> None:
        size = self._config["vocab_size"]
        if options.num_beams == 1 and options.candidates > size:
            raise UserError(f"top_k ({options.candidates}) exceeds the model's {size} tokens; choose fewer candidates")
        for row, (ids, most) in enumerate(zip(prompt_ids, max_new_tokens.tolist(), strict=True)):
            if not ids:
                raise UserError(f"token_ids: row {row} is an empty prompt; give it at least one token")
            if wrong := [i for i in ids if not 0 <= i < size]:
                raise UserError(f"prompt {row}: contains {wrong[0]}, but the model's token ids are 0 to {size - 1}")
            if self.is_encoder_decoder and len(ids) > self.length:
                raise UserError(f"prompt {row} has {len(ids)} tokens, but the artifact reads {self.length}; shorten it")
            used = 1 if self.is_encoder_decoder else len(ids)
            if used + most > self._room():
                raise UserError(
                    f"max_new_tokens ({most}) after a prompt of {used} tokens (row {row}) exceeds the artifact's "
                    f"length ({self._room()}); choose at most {max(0, self._room() - used)}"
                )

    def _written(
        self,
        prompt_ids: Sequence[Sequence[int]],
        options: Options,
        rows: dict[str, np.ndarray],
        strings: tuple[str, ...],
        skip_special: bool,
        on_text: Callable[[str], None] | None,
    ) -> list[Answer]:
        """Returns the texts of one batch."""
        reading = self._graphs.read(prompt_ids, int(rows["max_new_tokens"].max()))
        rows["source"] = reading.source
        ends = ends_of(options.eos_token_id, strings, self.tokenizer.following)

        def text_of(row: int, ids: Sequence[int]) -> str:
            return self.decode_text(ids, () if self.is_encoder_decoder else prompt_ids[row], skip_special)

        growing = None if on_text is None else Growing(lambda ids: text_of(0, ids), on_text)
        times = options.num_return_sequences
        if options.num_beams > 1:
            found: Iterable[tuple] = beam_search(reading, options, rows, ends)
        else:
            found = self._sampled(reading, options, rows, ends, None if growing is None else growing.feed)
        answers = [Answer(text_of(i // times, ids), ids, scores, total) for i, (ids, scores, total) in enumerate(found)]
        if growing is not None:
            growing.end(answers[0].text)
        return answers

    def _sampled(
        self,
        reading: Reading,
        options: Options,
        rows: dict[str, np.ndarray],
        ends: Callable[[Sequence[int]], bool],
        feed: Callable[[int], None] | None,
    ) -> list[tuple[list[int], list[float], float]]:
        times = options.num_return_sequences
        if times > 1:
            reading.take(np.repeat(np.arange(len(reading.logits)), times))
            rows = {name: np.repeat(values, times, axis=0) for name, values in rows.items()}
            rows["seed"] = rows["seed"] + np.arange(len(rows["seed"])) % times * _GOLDEN
        texts: list[tuple[list[int], list[float]]] = [([], []) for _ in reading.logits]
        for step in sample(reading, options, rows, ends):
            for row in np.flatnonzero(step.active):
                texts[row][0].append(int(step.tokens[row]))
                texts[row][1].append(float(step.scores[row]))
            if feed is not None:
                feed(int(step.tokens[0]))
        return [(ids, scores, float(sum(scores))) for ids, scores in texts]


def ends_of(
    eos_token_id: Sequence[int], strings: Sequence[str], text_of: Callable[[Sequence[int]], str]
) -> Callable[[Sequence[int]], bool]:
    """Returns a function from the new tokens of a text to whether it ends with the last of them: an end token, or the
    one that completes one of `strings` in their text."""

    def ends(ids: Sequence[int]) -> bool:
        if ids[-1] in eos_token_id:
            return True
        return bool(strings) and any(string in text for text in [text_of(ids)] for string in strings)

    return ends
