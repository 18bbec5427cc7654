"""Make tiny random models and record what transformers' generate continues ten prompts with.

    python tests/assets/generation_references.py --output=tests/assets/golden_generation
    python tests/assets/generation_references.py --output=tests/assets/golden_generation --folders --models=gpt2,bart

Needs torch and transformers; does not import tfzoo. FOLDER/NAME/ holds the model as save_pretrained writes it and
golden.json: prompts of one to ten tokens, the id that ends a text, and, for each case, the options and the new tokens
of each prompt, without what was given and without padding. Each prompt is decoded alone, so that padding can play no
part; the plain cases are decoded once more as one batch, with the same tokens. A model is drawn again until float64
gives the same tokens as float32: no choice then hangs on rounding.

The second reads the models that are there, and records in folders.json what they continue the prompts with where
their generation_config.json has options, which --folders draws for each.

Diverse groups of beams and contrastive search are not here: transformers 5 has neither.
"""

import argparse
import json
import pathlib
import shutil

import numpy as np
import torch
import transformers

VOCAB, PAD, NEW = 61, 0, 12
NOISE = 0.35  # Enough that texts differ.
LIVELY = ("gpt2", "llama")  # Models whose texts do so without more.
BEAM = dict(num_beams=3, return_dict_in_generate=True, output_scores=True)
CASES: dict[str, dict] = {
    "greedy": {},
    "greedy_end": dict(eos=True),
    "greedy_min_new_tokens": dict(eos=True, min_new_tokens=7),
    "greedy_repetition_penalty": dict(repetition_penalty=1.7),
    "greedy_no_repeat_ngram": dict(no_repeat_ngram_size=2),
    "greedy_bad_words": dict(bad_words=True),
    "beam": BEAM,
    "beam_end": BEAM | dict(eos=True),
    "beam_several": BEAM | dict(eos=True, num_return_sequences=3),
    "beam_long": BEAM | dict(eos=True, length_penalty=3.0, num_beams=4),
    "beam_short": BEAM | dict(eos=True, length_penalty=-2.0),
    "beam_early": BEAM | dict(eos=True, early_stopping=True, num_return_sequences=2),
    "beam_never": BEAM | dict(eos=True, early_stopping="never"),
    "beam_min_new_tokens": BEAM | dict(eos=True, min_new_tokens=6),
    "beam_constraints": BEAM
    | dict(eos=True, repetition_penalty=1.3, no_repeat_ngram_size=2, bad_words=True, num_beams=5),
}
ENCODER_DECODER = {"greedy_forced": dict(forced_bos_token_id=9, forced_eos_token_id=11)}
SIZES = dict(
    gpt2=dict(n_embd=16, n_layer=2, n_head=2, n_positions=32, bos_token_id=None, eos_token_id=None),
    llama=dict(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=24,
        max_position_embeddings=32,
        bos_token_id=None,
        eos_token_id=None,
    ),
    t5=dict(
        d_model=16,
        d_kv=6,
        num_heads=2,
        num_layers=2,
        num_decoder_layers=2,
        d_ff=24,
        relative_attention_num_buckets=8,
        relative_attention_max_distance=10,
        decoder_start_token_id=0,
        eos_token_id=None,
    ),
    bart=dict(
        d_model=16,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=24,
        decoder_ffn_dim=24,
        max_position_embeddings=32,
        decoder_start_token_id=2,
        bos_token_id=None,
        eos_token_id=None,
        forced_eos_token_id=None,
    ),
)
KINDS = dict(
    gpt2=transformers.GPT2LMHeadModel,
    llama=transformers.LlamaForCausalLM,
    t5=transformers.T5ForConditionalGeneration,
    bart=transformers.BartForConditionalGeneration,
)


def make_model(name: str, seed: int, folder: pathlib.Path):
    torch.manual_seed(seed)
    kind = KINDS[name]
    model = kind(kind.config_class(vocab_size=VOCAB, pad_token_id=PAD, **SIZES[name]))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape), alpha=NOISE if parameter.ndim > 1 or name in LIVELY else 0.1)
        # Where the output is the embeddings, a token would be followed by itself: weaker ones let the layers decide,
        # and a last norm of either sign turns them.
        if name not in LIVELY:
            model.get_input_embeddings().weight.mul_(0.3)
        if name == "bart":
            last = model.model.decoder.layers[-1].final_layer_norm.weight
            last.copy_(torch.randn(last.shape))
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    return [kind.from_pretrained(folder, dtype=dtype).eval() for dtype in (torch.float32, torch.float64)]


def decode(model, prompts, options):
    """The new tokens of each prompt, several for one where asked for, and a beam search's scores."""
    rows, scores = [], []
    width = max(len(prompt) for prompt in prompts)
    left = 0 if model.config.is_encoder_decoder else 1
    pad = [[PAD] * (width - len(prompt)) for prompt in prompts]
    ids = [padding * left + prompt + padding * (1 - left) for padding, prompt in zip(pad, prompts)]
    mask = [
        [0] * len(padding) * left + [1] * len(prompt) + [0] * len(padding) * (1 - left)
        for padding, prompt in zip(pad, prompts)
    ]
    skip = 1 if model.config.is_encoder_decoder else width
    with torch.no_grad():
        found = model.generate(
            torch.tensor(ids), attention_mask=torch.tensor(mask), max_new_tokens=NEW, pad_token_id=PAD, **options
        )
    sequences = found if isinstance(found, torch.Tensor) else found.sequences
    scores = [] if isinstance(found, torch.Tensor) else found.sequences_scores.tolist()
    ends = options.get("eos_token_id")
    for row in sequences[:, skip:].tolist():
        stop = next((i + 1 for i, token in enumerate(row) if token == ends), len(row))
        rows.append(row[:stop])
    return rows, scores


def record(models, prompts, options, alone=True):
    texts = []
    for model in models:
        parts = [decode(model, [prompt], options) for prompt in prompts] if alone else [decode(model, prompts, options)]
        texts.append(([row for rows, _ in parts for row in rows], [score for _, each in parts for score in each]))
    if texts[0][0] != texts[1][0]:
        raise ValueError("float32 and float64 differ")
    return texts[0]


def make(name: str, folder: pathlib.Path, seed: int) -> dict:
    models = make_model(name, seed, folder)
    random = np.random.default_rng(seed)
    lengths = [4, 1, 7, 2, 10, 3, 5, 9, 6, 8]
    prompts = [random.integers(1, VOCAB, length).tolist() for length in lengths]
    plain, _ = record(models, prompts, {})
    if len(set(map(tuple, plain))) < 8 or np.mean([len(set(row)) for row in plain]) < 3:
        raise ValueError("the texts are too much alike")
    # The token that ends texts is one that about half of them come to, early and late.
    places = [[row.index(token) for row in plain if token in row] for token in range(1, VOCAB)]
    end = 1 + max(range(VOCAB - 1), key=lambda i: (len(set(places[i])) if len(places[i]) < 8 else 0, -i))
    followed = [pair for row in plain for pair in zip(row, row[1:])]
    bad_words = [[plain[0][0]], list(followed[3]), list(followed[17]), plain[4][5:8], [end]]
    cases = {}
    for case, values in (CASES | (ENCODER_DECODER if models[0].config.is_encoder_decoder else {})).items():
        options = {key: value for key, value in values.items() if key not in ("eos", "bad_words")}
        if values.get("eos"):
            options["eos_token_id"] = end
        if values.get("bad_words"):
            options["bad_words_ids"] = bad_words
        rows, scores = record(models, prompts, options)
        if case in ("greedy", "greedy_end", "beam", "beam_end", "greedy_bad_words"):
            if record(models, prompts, options, alone=False)[0] != rows:
                raise ValueError(f"{case}: a batch gives other tokens")
        ours = {k: v for k, v in options.items() if k not in ("return_dict_in_generate", "output_scores")}
        cases[case] = dict(options=ours, token_ids=rows) | (
            dict(scores=[round(x, 6) for x in scores]) if scores else {}
        )
        if any(rows == cases[other]["token_ids"] for other in {"greedy", "greedy_end"} & set(cases) - {case}):
            raise ValueError(f"{case} changes nothing")
    return dict(prompts=prompts, max_new_tokens=NEW, cases=cases)


def options_of_folders(golden: dict, random) -> dict[str, dict]:
    """What generation_config.json says in each case. Its ids are of tokens that the model writes."""
    rows = golden["cases"]["greedy"]["token_ids"]
    end = golden["cases"]["greedy_end"]["options"]["eos_token_id"]
    some = [int(i) for i in random.permutation(sorted({i for row in rows for i in row} - {end, PAD}))]
    pairs = [list(pair) for row in rows for pair in zip(row, row[1:])]
    common = dict(
        eos_token_id=end,
        pad_token_id=PAD,
        max_new_tokens=NEW,
        encoder_repetition_penalty=1.3,
        encoder_no_repeat_ngram_size=2,
        sequence_bias=[[[some[0]], 0.8], [pairs[2], -2.0], [pairs[30], 1.5]],
        suppress_tokens=some[1:4],
        begin_suppress_tokens=[rows[0][0], rows[1][0]],
        exponential_decay_length_penalty=[4, 1.15],
    )
    beams = dict(num_beams=3, renormalize_logits=True, bad_words_ids=[[some[4]], pairs[12]])
    ends = dict(forced_eos_token_id=end, min_length=5)
    return {
        "greedy": common | ends,
        "beams": common | beams,
        "renormalized": dict(eos_token_id=end, pad_token_id=PAD, max_new_tokens=NEW)
        | beams
        | {"suppress_tokens": some[1:8]},
    }


def folders(name: str, folder: pathlib.Path) -> dict:
    models = [KINDS[name].from_pretrained(folder, dtype=dtype).eval() for dtype in (torch.float32, torch.float64)]
    golden, cases = json.loads((folder / "golden.json").read_text()), {}
    for seed in range(50):
        for case, options in options_of_folders(golden, np.random.default_rng(seed)).items():
            given = {key: value for key, value in options.items() if key not in ("max_new_tokens", "pad_token_id")}
            try:
                rows, _ = record(models, golden["prompts"], given)
            except ValueError:
                continue
            plain = {key: given[key] for key in ("eos_token_id", "num_beams") if key in given}
            if case not in cases and rows != record(models, golden["prompts"], plain)[0]:
                cases[case] = dict(generation_config=options, token_ids=rows)
        if len(cases) == 3:
            return cases
    raise SystemExit(f"{name}: no seed does")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=pathlib.Path, required=True)
    parser.add_argument("--models", default=",".join(KINDS))
    parser.add_argument("--folders", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    for name in args.models.split(","):
        if args.folders:
            path = args.output / name / "folders.json"
            path.write_text(json.dumps(folders(name, args.output / name)) + "\n")
            continue
        for seed in range(100):
            try:
                golden = make(name, args.output / name, seed)
            except ValueError as error:
                print(f"{name}: seed {seed}: {error}")
                continue
            break
        else:
            raise SystemExit(f"{name}: no seed does")
        (args.output / name / "golden.json").write_text(json.dumps(golden) + "\n")
        print(f"{name}: seed {seed}, {len(golden['cases'])} cases")


if __name__ == "__main__":
    main()
