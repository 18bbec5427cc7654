"""Compares decoding strategies: how diverse the texts of a model are, and how likely another model finds them.

    .venv/bin/python benchmarks/strategies.py --model_dir=runs/gpt --judge_dir=runs/judge [--prompts=64]

Prompts are taken from the held-out text of the run (or from --texts, .jsonl with {"text": ...}); the last row of the
table is the real continuation of the prompts. The judge is a model of the same language, with any tokenizer; without
one the column is omitted.

    words, distinct-1, -2   words per text; fraction of distinct words and word pairs among those of all texts
    self-BLEU               each text against the others: 100 if all are alike
    repeated                fraction of the 4-grams of a text that occurred earlier in it
    perplexity              of the tokens under the model itself; under the judge, given the prompt
"""

import argparse
import json
import math
import pathlib
import sys

from side_by_side import ROOT, markdown

sys.path.insert(0, str(ROOT))

STRATEGIES: dict[str, dict] = {
    "greedy": {},
    "beam search, 4 beams": dict(num_beams=4),
    "beam search, 4 beams, no repeated 3-gram": dict(num_beams=4, no_repeat_ngram_size=3),
    "contrastive, alpha 0.6, 4 candidates": dict(penalty_alpha=0.6, top_k=4),
    "temperature 0.7": dict(do_sample=True, temperature=0.7),
    "top-k 40": dict(do_sample=True, top_k=40),
    "top-p 0.9": dict(do_sample=True, top_p=0.9),
    "min-p 0.1": dict(do_sample=True, min_p=0.1),
    "typical 0.9": dict(do_sample=True, typical_p=0.9),
    "sampling": dict(do_sample=True),
}


def held_out(model_dir: pathlib.Path) -> list[str]:
    """Returns the held-out texts of a run."""
    from tfzoo.training import TrainConfig, inputs

    corpus = inputs.read_text(TrainConfig.read(model_dir / "flags.cfg", str(model_dir)))
    return [document.separator.join(document.sentences) for document in corpus.held_out]


def pieces(tokenizer, texts: list[str], count: int, before: int, after: int) -> tuple[list[str], list[str]]:
    """Returns `count` prompts of `before` tokens, spread over the texts, and the `after` tokens that follow each."""
    from tfzoo.generation.texts import decode_text, encode

    rows = []
    for ids in encode(tokenizer, texts):
        rows += [ids[i : i + before + after] for i in range(0, len(ids) - before - after + 1, before + after)]
    rows = [rows[i * len(rows) // count] for i in range(min(count, len(rows)))]
    return (
        [decode_text(tokenizer, ids[:before]) for ids in rows],
        [decode_text(tokenizer, ids[before:], ids[:before]) for ids in rows],
    )


def perplexity(scores: list[float]) -> str:
    return f"{math.exp(-sum(scores) / len(scores)):,.1f}" if scores else "-"


def likelihoods(model, tokenizer, prompts: list[str], texts: list[str]) -> list[float]:
    """Returns the log-probabilities of the tokens of all texts after their prompts; an empty text has none."""
    from tfzoo.evaluation.likelihood import score_continuations

    some = [(prompt, text) for prompt, text in zip(prompts, texts, strict=True) if text.strip()]
    found = score_continuations(model, [prompt for prompt, _ in some], [text for _, text in some], tokenizer)
    return [score for one in found for score in one.scores]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_dir", type=pathlib.Path, required=True)
    parser.add_argument("--checkpoint")
    parser.add_argument("--judge_dir")
    parser.add_argument("--texts")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--prompt_tokens", type=int, default=16)
    parser.add_argument("--new_tokens", type=int, default=48)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", help=".jsonl file to write the texts to")
    flags = parser.parse_args()

    from tfzoo.evaluation import diversity
    from tfzoo.generation.texts import Answer, generate_text
    from tfzoo.training import runs

    model, tokenizer = runs.load(flags.model_dir, flags.checkpoint)
    judge = runs.load(flags.judge_dir) if flags.judge_dir else None
    if flags.texts:
        lines = pathlib.Path(flags.texts).read_text(encoding="utf-8").splitlines()
        texts = [json.loads(line)["text"] for line in lines]
    else:
        texts = held_out(flags.model_dir)
    prompts, real = pieces(tokenizer, texts, flags.prompts, flags.prompt_tokens, flags.new_tokens)
    found: dict[str, tuple[list[str], list[float]]] = {}
    for name, options in STRATEGIES.items():
        if options.get("do_sample"):  # Each prompt has its own seed.
            options = options | {"seed": list(range(flags.seed, flags.seed + len(prompts)))}
        how = options | {"max_new_tokens": flags.new_tokens}
        answers: list[Answer] = generate_text(model, prompts, tokenizer, return_scores=True, **how)
        found[name] = [one.text for one in answers], [score for one in answers for score in one.scores]
    found["the real continuation"] = real, likelihoods(model, tokenizer, prompts, real)
    rows, records = [], []
    for name, (written, scores) in found.items():
        words = [diversity.words(text) for text in written]
        row = [
            name,
            f"{sum(map(len, words)) / len(words):.1f}",
            f"{diversity.distinct(words, 1):.3f}",
            f"{diversity.distinct(words, 2):.3f}",
            f"{100 * diversity.self_bleu(words):.1f}",
            f"{100 * diversity.repetition(words, 4):.1f}%",
            perplexity(scores),
        ]
        if judge:
            row.append(perplexity(likelihoods(judge[0], judge[1], prompts, written)))
        rows.append(row)
        records += [{"strategy": name, "prompt": p, "text": t} for p, t in zip(prompts, written, strict=True)]
    heads = ["strategy", "words", "distinct-1", "distinct-2", "self-BLEU", "repeated", "perplexity"]
    print(f"{len(prompts)} prompts of {flags.prompt_tokens} tokens, at most {flags.new_tokens} new tokens\n")
    print(markdown(heads + (["judge's perplexity"] if judge else []), rows))
    if flags.output:
        lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
        pathlib.Path(flags.output).write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
