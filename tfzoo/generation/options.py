"""Decoding options. Names, defaults and meanings are those of Hugging Face's GenerationConfig, if it has the option."""

import dataclasses
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tfzoo.errors import UserError, suggest

# Options that may differ between rows, as tensors [B]: their dtype, and the value that has no effect.
ROWS: dict[str, tuple[Any, Any]] = {
    "max_new_tokens": (np.int32, None),
    "min_new_tokens": (np.int32, 0),
    "temperature": (np.float32, 1.0),
    "top_k": (np.int32, 0),
    "top_p": (np.float32, 1.0),
    "min_p": (np.float32, 0.0),
    "typical_p": (np.float32, 1.0),
    "epsilon_cutoff": (np.float32, 0.0),
    "eta_cutoff": (np.float32, 0.0),
    "repetition_penalty": (np.float32, 1.0),
    "presence_penalty": (np.float32, 0.0),
    "seed": (np.int32, None),
}
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")
_FLOAT_MAX = float(np.finfo(np.float32).max)


@dataclasses.dataclass(frozen=True)
class Bounds:
    """The allowed values of an option: from `low`, excluding `low` itself unless `reached`, to `high`; never NaN.

    The same rule applies to arrays, from a caller, and to tensors, inside a graph.
    """

    low: float
    high: float
    reached: bool = True

    def hold(self, values):
        """Returns bools, whether each number of an array or tensor is allowed."""
        return (values >= self.low if self.reached else values > self.low) & (values <= self.high)

    def __str__(self) -> str:
        low = [] if self.low == -_FLOAT_MAX else [f"{'at least' if self.reached else 'above'} {self.low}"]
        return f"must be {' and '.join([*low, 'finite' if self.high == _FLOAT_MAX else f'at most {self.high}'])}"


BOUNDS = {
    "max_new_tokens": Bounds(1, 2**31 - 1),
    "min_new_tokens": Bounds(0, 2**31 - 1),
    "temperature": Bounds(0, _FLOAT_MAX),
    "top_k": Bounds(0, 2**31 - 1),
    "top_p": Bounds(0, 1, reached=False),
    "min_p": Bounds(0, 1),
    "typical_p": Bounds(0, 1, reached=False),
    "epsilon_cutoff": Bounds(0, 1),
    "eta_cutoff": Bounds(0, 1),
    "repetition_penalty": Bounds(0, _FLOAT_MAX, reached=False),
    "presence_penalty": Bounds(-_FLOAT_MAX, _FLOAT_MAX),
    "seed": Bounds(-(2**31), 2**31 - 1),
}
_LISTS = ("eos_token_id", "forced_bos_token_id", "forced_eos_token_id", "suppress_tokens", "begin_suppress_tokens")
# {type of an option: (the types of its values, including NumPy's, and their description in messages)}.
_KINDS: dict[Any, tuple[Any, str]] = {
    bool: ((bool, np.bool_), "true or false"),
    int: (numbers.Integral, "a whole number"),
    float: (numbers.Real, "a finite number"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """The options that are the same for all rows and fixed when a graph is built. Those in ROWS are passed as tensors.

    Raises:
      UserError: a value is out of bounds, or options contradict each other.
    """

    do_sample: bool = False
    num_beams: int = 1
    num_beam_groups: int = 1
    diversity_penalty: float = 0.0
    length_penalty: float = 1.0
    early_stopping: bool | str = False  # True, False or "never".
    num_return_sequences: int = 1
    penalty_alpha: float = 0.0  # Above 0: contrastive search among the top_k likeliest.
    candidates: int = 0  # Contrastive search's top_k.
    prompt_lookup_num_tokens: int = 0
    max_matching_ngram_size: int = 2
    num_assistant_tokens: int = 5
    no_repeat_ngram_size: int = 0
    # These two refer to the encoder's input, or to the prompt of a decoder.
    encoder_repetition_penalty: float = 1.0  # Above 1 makes its tokens likelier.
    encoder_no_repeat_ngram_size: int = 0  # No n-gram of this many tokens of it occurs in the text.
    bad_words_ids: tuple[tuple[int, ...], ...] = ()
    sequence_bias: tuple[tuple[tuple[int, ...], float], ...] = ()  # Added to the logits of tokens that complete each.
    suppress_tokens: tuple[int, ...] = ()
    begin_suppress_tokens: tuple[int, ...] = ()  # Forbidden as the first token, or as the first after the forced ones.
    # (number of tokens, factor): after that many tokens, the logits of end tokens grow by the factor at each token.
    exponential_decay_length_penalty: tuple[int, float] | None = None
    renormalize_logits: bool = False  # Beams are ranked by probabilities that are normalised over the allowed tokens.
    forced_bos_token_id: tuple[int, ...] = ()  # The first tokens; usually one.
    forced_eos_token_id: tuple[int, ...] = ()  # One of them is the last token.
    eos_token_id: tuple[int, ...] = ()
    pad_token_id: int = 0
    decoder_start_token_id: int | None = None
    logits_processor: tuple[Callable, ...] = ()
    return_scores: bool = False
    prefill_chunk: int = 0  # Number of prompt tokens to read at a time; 0 reads all in one pass.
    jit_compile: bool = False  # Whether to compile with XLA.

    def __post_init__(self):
        for field in dataclasses.fields(self):
            if field.type in _KINDS:
                kind, words = _KINDS[field.type]
                value = getattr(self, field.name)
                good = isinstance(value, kind) and (field.type is bool or not isinstance(value, bool))
                self._require(good and np.isfinite(value), field.name, f"must be {words}")
        positive = ("num_beams", "num_beam_groups", "num_return_sequences", "max_matching_ngram_size")
        for name in (*positive, "num_assistant_tokens"):
            self._require(getattr(self, name) >= 1, name, "must be at least 1")
        sizes = ("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "prompt_lookup_num_tokens", "prefill_chunk")
        for name in (*sizes, "diversity_penalty"):
            self._require(getattr(self, name) >= 0, name, "must be at least 0")
        name = "encoder_repetition_penalty"
        self._require(getattr(self, name) > 0, name, "must be above 0")
        self._require(0 <= self.penalty_alpha <= 1, "penalty_alpha", "must be from 0 to 1")
        self._require(self.early_stopping in (True, False, "never"), "early_stopping", 'must be True, False or "never"')
        self._require(all(self.bad_words_ids), "bad_words_ids", "contains a word without tokens; remove it")
        self._require(
            all(ids for ids, _ in self.sequence_bias), "sequence_bias", "contains a bias without tokens; remove it"
        )
        if self.num_beams > 1:
            self._require(
                self.num_return_sequences <= self.num_beams,
                "num_return_sequences",
                f"must be at most num_beams ({self.num_beams})",
            )
            self._require(
                self.num_beams % self.num_beam_groups == 0,
                "num_beam_groups",
                f"must divide num_beams ({self.num_beams})",
            )
            self._require(
                self.num_beam_groups == 1 or not self.do_sample,
                "num_beam_groups",
                "contradicts do_sample; beam groups do not sample",
            )
            self._require(
                self.num_beam_groups > 1 or not self.diversity_penalty,
                "diversity_penalty",
                "applies between beam groups: set num_beam_groups above 1",
            )
        else:
            for name, usual in (("num_beam_groups", 1), ("diversity_penalty", 0), ("early_stopping", False)):
                self._require(getattr(self, name) == usual, name, "applies only to beam search: set num_beams above 1")
            self._require(
                self.num_return_sequences == 1 or self.do_sample,
                "num_return_sequences",
                "would return identical texts: set do_sample, or set num_beams at least as high",
            )
        for name in ("penalty_alpha", "prompt_lookup_num_tokens"):
            if getattr(self, name):
                self._require(self.num_beams == 1, name, f"contradicts num_beams ({self.num_beams}); set it to 1")
        if self.penalty_alpha:
            self._require(
                not self.do_sample, "penalty_alpha", "contradicts do_sample; contrastive search does not sample"
            )
            self._require(
                not self.prompt_lookup_num_tokens, "penalty_alpha", "contradicts prompt_lookup_num_tokens; choose one"
            )
            self._require(self.candidates >= 1, "penalty_alpha", "requires top_k, the number of candidates")

    def _require(self, holds: bool, name: str, remedy: str) -> None:
        if not holds:
            raise UserError(f"{name} ({getattr(self, name)!r}) {remedy}")


def read_options(**values) -> tuple[Options, dict[str, Any]]:
    """Checks and converts options as a caller writes them.

    Args:
      **values: fields of Options, and parameters of ROWS as a number or a list [B]. None leaves an option at its
        default; ids may be a single number or a list.

    Returns:
      (Options, {name of ROWS: scalar or array [B]}), the latter without parameters that have no effect.

    Raises:
      UserError: a name is unknown, a value is out of bounds, or options contradict each other.
    """
    names = {field.name for field in dataclasses.fields(Options)} - {"candidates"} | set(ROWS)
    for name in values:
        if name not in names:
            raise UserError(
                f"{name}: unknown decoding option{suggest(name, names)}; choose from {', '.join(sorted(names))}"
            )
    values = {name: value for name, value in values.items() if value is not None}
    rows = {}
    for name, (dtype, nothing) in ROWS.items():
        if name in values:
            value = _row_value(name, values.pop(name), dtype)
            if nothing is None or np.any(value != nothing):
                rows[name] = value
    for name in _LISTS:
        if name in values:
            values[name] = _ids(name, values[name])
    if "bad_words_ids" in values:
        values["bad_words_ids"] = tuple(_ids("bad_words_ids", word) for word in values["bad_words_ids"])
    if "sequence_bias" in values:
        values["sequence_bias"] = _biases(values["sequence_bias"])
    if "exponential_decay_length_penalty" in values:
        values["exponential_decay_length_penalty"] = _decay(values["exponential_decay_length_penalty"])
    if "logits_processor" in values:
        processors = values["logits_processor"]
        values["logits_processor"] = tuple(processors) if isinstance(processors, Sequence) else (processors,)
    if values.get("penalty_alpha"):
        candidates = rows.pop("top_k", np.int32(0))
        if np.ndim(candidates):
            raise UserError("top_k: contrastive search uses the same value for all rows; give a single number")
        values["candidates"] = int(candidates)
    options = Options(**values)
    if not options.do_sample:
        for name in SAMPLING:
            if name in rows:
                raise UserError(f"{name} ({_shown(rows[name])}) applies only to sampling: set do_sample")
    if options.num_beams > 1 and not np.all(rows.get("temperature", 1)):
        raise UserError("temperature (0) leaves nothing to sample beams from; raise it, or set num_beams to 1")
    return options, rows


def _ids(name: str, value) -> tuple[int, ...]:
    """Converts one id or a list of ids."""
    ids = value if isinstance(value, Sequence | np.ndarray) and not isinstance(value, str) else [value]
    if any(isinstance(i, bool) or not isinstance(i, numbers.Integral) or i < 0 for i in ids):
        raise UserError(f"{name} ({value!r}) must be token ids: whole numbers of at least 0")
    return tuple(int(i) for i in ids)


def _biases(value) -> tuple[tuple[tuple[int, ...], float], ...]:
    """Converts {ids: bias} or [[ids, bias], ...]; of several biases for the same ids the last one counts."""
    pairs = value.items() if isinstance(value, Mapping) else value
    try:
        biases = {_ids("sequence_bias", ids): float(bias) for ids, bias in pairs}
    except (TypeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"sequence_bias ({value!r}) must consist of pairs of token ids and a number") from None
    if any(np.isnan(bias) or bias == np.inf for bias in biases.values()):
        raise UserError(f"sequence_bias ({value!r}) must contain only biases below infinity")
    return tuple(biases.items())


def _decay(value) -> tuple[int, float]:
    try:
        (start,), factor = _ids("exponential_decay_length_penalty", value[0]), float(value[1])
    except (TypeError, ValueError, IndexError):
        start, factor = 0, np.nan
    if not 0 < factor < np.inf or len(value) != 2:
        raise UserError(f"exponential_decay_length_penalty ({value!r}) must be a number of tokens and a factor above 0")
    return start, factor


def _row_value(name: str, value, dtype):
    try:
        array = np.asarray(value)
        if isinstance(value, list | tuple) and any(isinstance(each, bool) for each in value):
            raise TypeError  # NumPy treats True among numbers as 1.
        if array.dtype.kind not in "iuf" or (np.issubdtype(dtype, np.integer) and array.dtype.kind == "f"):
            raise TypeError
    except (TypeError, ValueError):
        kind = "a whole number" if np.issubdtype(dtype, np.integer) else "a number"
        raise UserError(f"{name} ({value!r}) must be {kind} for all rows, or one per row") from None
    with np.errstate(over="ignore"):  # Floating-point numbers are checked in the precision of the computation.
        rounded = array.astype(dtype) if np.issubdtype(dtype, np.floating) else array
    if array.ndim > 1 or not np.all(BOUNDS[name].hold(rounded)):
        raise UserError(f"{name} ({_shown(array)}) {BOUNDS[name]}; give one number for all rows or one per row")
    return array.astype(dtype)


def _shown(value) -> str:
    return str(np.asarray(value).tolist())
