"""Compares the outputs of a model whose weights are stored as bfloat16 or int8 with those in float32.

    .venv/bin/python benchmarks/weights.py --model_dir=runs/gpt [--prompts=48]

The texts are pieces of the held-out text of the run. A decoder reads each piece, and continues its beginning.

    MB            of all variables
    perplexity    of the pieces
    difference    of the logits from float32: the root mean square and the maximum, without the mean of a row, on which
                  no probability depends
    same arg-max  fraction of tokens with the same most likely token as float32
    diverged      texts with a token different from float32 within --new_tokens, and after how many tokens (median)
"""

import argparse
import pathlib
import statistics
import sys

from side_by_side import ROOT, markdown
from strategies import held_out

sys.path.insert(0, str(ROOT))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_dir", type=pathlib.Path, required=True)
    parser.add_argument("--prompts", type=int, default=48)
    parser.add_argument("--prompt_tokens", type=int, default=16)
    parser.add_argument("--new_tokens", type=int, default=48)
    flags = parser.parse_args()

    import numpy as np

    from tfzoo import generation, nn
    from tfzoo.generation.texts import encode
    from tfzoo.training import runs

    length = flags.prompt_tokens + flags.new_tokens
    before = None
    rows = []
    for dtype in nn.stored.DTYPES:
        model, tokenizer = runs.load(flags.model_dir)
        nn.store_weights(model, dtype)
        if before is None:
            start = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
            texts = [ids for ids in encode(tokenizer, held_out(flags.model_dir)) if len(ids) >= length]
            texts = [texts[i * len(texts) // flags.prompts] for i in range(min(flags.prompts, len(texts)))]
            pieces = np.array([[*start, *ids[:length]] for ids in texts], np.int32)
        logits = np.concatenate([model({"token_ids": piece[None]})["logits"].numpy() for piece in pieces])[:, :-1]
        logits -= logits.mean(-1, keepdims=True)
        logs = logits - np.log(np.exp(logits.astype(np.float64)).sum(-1, keepdims=True))
        chosen = np.take_along_axis(logs, pieces[:, 1:, None], -1)
        prompts = pieces[:, : len(start) + flags.prompt_tokens]
        written = generation.generate_ids(model, prompts, max_new_tokens=flags.new_tokens, eos_token_id=()).numpy()
        size = sum(variable.numpy().nbytes for variable in model.variables)
        row = [dtype, f"{size / 1e6:.1f}", f"{np.exp(-chosen.mean()):.2f}"]
        if before is None:
            before = logits, written
            rows.append([*row, "", "", ""])
            continue
        difference = np.abs(logits - before[0])
        same = np.mean(logits.argmax(-1) == before[0].argmax(-1))
        diverged = [int(np.argmax(a != b)) for a, b in zip(written, before[1], strict=True) if np.any(a != b)]
        median = f", after {statistics.median(diverged):g}" if diverged else ""
        row += [f"{np.sqrt(np.mean(difference**2)):.4f}, {difference.max():.3f}", f"{100 * same:.2f}%"]
        rows.append([*row, f"{len(diverged)} of {len(pieces)}{median}"])
    print(f"{len(pieces)} pieces of {length} tokens, {flags.new_tokens} new tokens after {flags.prompt_tokens}\n")
    print(markdown(["weights", "MB", "perplexity", "difference", "same arg-max", "diverged"], rows))


if __name__ == "__main__":
    main()
