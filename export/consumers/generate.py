"""Continues a prompt with an exported ONNX decoder: python generate.py ARTIFACT PROMPT [--temperature=0.8 --top_k=40]

ARTIFACT is exports/onnx/NAME/VERSION with a tokenizer/tokenizer.json. Requires numpy, onnxruntime and tokenizers. The
graph reads the prompt in one pass; after that each step reads one token and the keys and values of those before it.
"""

import argparse
import json
import pathlib

import numpy as np
import onnxruntime
import tokenizers


def continued(session, ids, most, ends, choose):
    """Returns the token ids [N] that follow `ids`: at most `most` of them, and none after one of `ends`."""
    inputs, outputs = session.get_inputs(), [value.name for value in session.get_outputs()]
    past = {x.name: np.zeros((1, x.shape[1], 0, x.shape[3]), np.float32) for x in inputs if x.name.startswith("past")}
    seen, new = 0, list(ids)
    written: list[int] = []
    while len(written) < most and not (written and written[-1] in ends):
        seen += len(new)
        feeds = {
            "input_ids": np.array([new], np.int64),
            "attention_mask": np.ones((1, seen), np.int64),
            "position_ids": np.arange(seen - len(new), seen)[None],
        }
        used = {x.name: feeds[x.name] for x in inputs if x.name in feeds}
        values = dict(zip(outputs, session.run(outputs, used | past)))
        past = {name: values[name.replace("past_key_values", "present")] for name in past}
        new = [choose(values["logits"][0, -1])]
        written += new
    return written


def chooser(temperature, top_k, seed):
    """Returns a function logits [V] -> a token id: the likeliest, or with a temperature one sampled from the `top_k`
    likeliest (0: all)."""
    random = np.random.default_rng(seed)

    def choose(logits):
        if not temperature:
            return int(logits.argmax())
        likeliest = np.argsort(-logits, kind="stable")[: top_k or None]
        chances = np.exp((logits[likeliest] - logits.max()).astype(np.float64) / temperature)
        return int(random.choice(likeliest, p=chances / chances.sum()))

    return choose


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("artifact", type=pathlib.Path)
    parser.add_argument("prompt")
    parser.add_argument("--max_new_tokens", type=int, default=64)
    parser.add_argument("--temperature", type=float, default=0, help="0 chooses the likeliest token")
    parser.add_argument("--top_k", type=int, default=0, help="sample from this many of the likeliest tokens; 0: all")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--ids", action="store_true", help="print the new tokens' ids instead of the text")
    flags = parser.parse_args()

    path = flags.artifact / "manifest.json"
    manifest = json.loads(path.read_text() if path.is_file() else "{}")
    if manifest.get("kind") != "onnx" or "generation" not in manifest or not (flags.artifact / "model.onnx").is_file():
        parser.error(f"{flags.artifact} is not an ONNX artifact of a decoder; specify exports/onnx/NAME/VERSION")
    if not (flags.artifact / "tokenizer" / "tokenizer.json").is_file():
        parser.error(f"{flags.artifact} has no tokenizer/tokenizer.json, which this program needs")
    tokenizer = tokenizers.Tokenizer.from_file(str(flags.artifact / "tokenizer" / "tokenizer.json"))
    session = onnxruntime.InferenceSession(str(flags.artifact / "model.onnx"), providers=["CPUExecutionProvider"])
    ids = tokenizer.encode(flags.prompt).ids
    most = min(flags.max_new_tokens, manifest["options"]["sequence_length"] - len(ids))
    if not ids or most < 1:
        parser.error(f"a prompt of {len(ids)} tokens cannot be continued")
    ends = np.atleast_1d(manifest["generation"].get("eos_token_id", []))  # One, several or none.
    new = continued(session, ids, most, ends, chooser(flags.temperature, flags.top_k, flags.seed))
    print(*new) if flags.ids else print(tokenizer.decode(ids + new))


if __name__ == "__main__":
    main()
