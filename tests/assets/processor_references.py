"""Record what Hugging Face's logits processors make of random scores, one option at a time and all together.

    python tests/assets/processor_references.py --output=tests/assets/golden_generation/processors.json

Needs torch and transformers; does not import tfzoo. Each case has options by GenerationConfig's names, the ids that the
encoder reads ("source"; of a decoder the prompt), the ids so far with the prompt or the start token ("ids"), how many
of them are new ("step"), scores, and "expected", what the processors that `generate` would use leave of them; null is
minus infinity. tests/generation_test.py compares.
"""

import argparse
import json
import pathlib
import types

import numpy as np
import torch
import transformers
from transformers import GenerationConfig
from transformers.generation.utils import GenerationMixin

VOCAB, ENDS, MOST = 23, [3, 7], 6
SINGLE: list[dict] = [
    dict(sequence_bias=[[[5], 2.5], [[4, 6], -3.0], [[8, 4, 6], 7.5], [[9], -1.5]]),
    dict(encoder_repetition_penalty=1.7),
    dict(encoder_repetition_penalty=0.6),
    dict(repetition_penalty=1.4),
    dict(no_repeat_ngram_size=2),
    dict(encoder_no_repeat_ngram_size=1),
    dict(encoder_no_repeat_ngram_size=2),
    dict(encoder_no_repeat_ngram_size=3),
    dict(bad_words_ids=[[5], [4, 6], [8, 4, 9], [3]]),
    dict(min_new_tokens=2),
    dict(forced_eos_token_id=11),
    dict(forced_eos_token_id=[11, 12]),
    dict(exponential_decay_length_penalty=[1, 1.3]),
    dict(exponential_decay_length_penalty=[4, 2.0]),
    dict(suppress_tokens=[1, 7, 9]),
    dict(begin_suppress_tokens=[2, 3]),
]
DRAWING: list[dict] = [
    dict(epsilon_cutoff=0.05),
    dict(eta_cutoff=0.1),
    dict(temperature=0.7, top_k=12, top_p=0.9, min_p=0.01, typical_p=0.95, epsilon_cutoff=0.01, eta_cutoff=0.02),
]
ALL = dict(
    sequence_bias=[[[5], 2.5], [[4, 6], -3.0]],
    encoder_repetition_penalty=1.7,
    repetition_penalty=1.4,
    no_repeat_ngram_size=3,
    encoder_no_repeat_ngram_size=3,
    bad_words_ids=[[10], [4, 9]],
    min_new_tokens=1,
    exponential_decay_length_penalty=[1, 1.3],
    suppress_tokens=[1, 9],
    begin_suppress_tokens=[2, 3],
)


class Decoder(GenerationMixin):
    def __init__(self, is_encoder_decoder: bool):
        self.config = types.SimpleNamespace(is_encoder_decoder=is_encoder_decoder)


def expected(options, encoder_decoder, source, ids, step, scores):
    config = GenerationConfig(**{"top_k": 0} | options)
    config._eos_token_tensor = torch.tensor(ENDS)
    config.max_length = len(ids) - step + MOST
    if config.min_new_tokens:
        config.min_length = len(ids) - step + config.min_new_tokens
    processors = Decoder(encoder_decoder)._get_logits_processor(
        config, input_ids_seq_length=len(ids) - step, encoder_input_ids=torch.tensor([source]), device="cpu"
    )
    found = processors(torch.tensor([ids]), torch.tensor([scores], dtype=torch.float32))
    return [None if value == -np.inf else round(value, 6) for value in found[0].tolist()]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=pathlib.Path, required=True)
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    random, cases = np.random.default_rng(1), []
    wanted = [(options, both, step) for options in SINGLE for both in (False, True) for step in (0, 2, 5)]
    wanted += [(dict(forced_bos_token_id=6, begin_suppress_tokens=[2, 3]), True, step) for step in (0, 1, 2)]
    wanted += [(options | {"do_sample": True}, False, 3) for options in DRAWING]
    wanted += [(ALL | more, both, step) for more in ({}, {"do_sample": True, "top_k": 9, "top_p": 0.9})
               for both in (False, True) for step in (0, 1, 4, 5)]  # fmt: skip
    for options, both, step in wanted:
        # Few tokens, so that groups come again; the last ones are what biases and bad words begin with.
        source = random.choice([4, 5, 6, 8, 9, 12], 6).tolist() + [8, 4, 6, 4, 9]
        new = random.choice([4, 5, 6, 8, 9, 12], step).tolist()
        new[-2:] = [8, 4][-len(new[-2:]) :] if step else []
        ids = ([0] if both else source[:-3]) + new
        source = source if both else source[:-3]
        scores = random.normal(0, 2, VOCAB).round(4).tolist()
        found = expected(options, both, source, ids, step, scores)
        cases.append(dict(options=options, encoder_decoder=both, source=source, ids=ids, step=step, scores=scores)
                     | dict(expected=found))  # fmt: skip
    for options in SINGLE:
        if all(case["scores"] == case["expected"] for case in cases if case["options"] == options):
            raise SystemExit(f"{options} changes nothing")
    record = dict(vocab_size=VOCAB, eos_token_id=ENDS, max_new_tokens=MOST, cases=cases)
    args.output.write_text(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
