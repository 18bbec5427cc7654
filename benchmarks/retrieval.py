"""Recall of a sentence encoder, of BM25 and of both: xquad's questions as queries, its paragraphs as documents.

    TFZOO_DATA=DATA .venv/bin/python benchmarks/retrieval.py --model_dir=all-MiniLM-L6-v2 [--sets=xquad/xquad.en.json]

Each set is a file in SQuAD's form under TFZOO_DATA. It is indexed and searched as python -m tfzoo.index and
python -m tfzoo.query do. Without --model_dir, only BM25 is measured, and TensorFlow is not imported.
"""

import argparse
import json
import os
import pathlib
import sys
import tempfile

from side_by_side import ROOT, markdown

sys.path.insert(0, str(ROOT))

SETS = "xquad/xquad.en.json,xquad/xquad.de.json,xquad/xquad.zh.json"
COLUMNS = ("recall@1", "recall@5", "MRR", "nDCG@10")


def read(path: pathlib.Path) -> tuple[list[str], list[str], list[str]]:
    """Returns (paragraphs, questions, the id of the paragraph of each question, which is its line in a .jsonl file)."""
    paragraphs: list[str] = []
    questions: list[str] = []
    answers: list[str] = []
    for article in json.loads(path.read_text(encoding="utf-8"))["data"]:
        for paragraph in article["paragraphs"]:
            paragraphs.append(paragraph["context"])
            questions += (entry["question"] for entry in paragraph["qas"])
            answers += [str(len(paragraphs))] * len(paragraph["qas"])
    return paragraphs, questions, answers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_dir", default="")
    parser.add_argument("--sets", default=SETS, help="paths under TFZOO_DATA, separated by commas")
    flags = parser.parse_args()
    if "TFZOO_DATA" not in os.environ:
        sys.exit("TFZOO_DATA is not set: set it to the folder of the data sets")

    import tfzoo
    from tfzoo import cli, index
    from tfzoo.retrieval import fusion, measures, search

    rows = []
    for name in flags.sets.split(","):
        path = pathlib.Path(os.environ["TFZOO_DATA"], name)
        paragraphs, questions, answers = read(path)
        with tempfile.TemporaryDirectory() as folder:
            texts = pathlib.Path(folder, "texts.jsonl")
            texts.write_text("".join(json.dumps({"text": text}) + "\n" for text in paragraphs), encoding="utf-8")
            argv = [f"--input={texts}", f"--output_dir={folder}/index"]
            argv += [f"--model_dir={flags.model_dir}"] if flags.model_dir else []
            if cli.run(index.main, index.define_flags, argv):
                sys.exit(1)
            opened = tfzoo.open_index(f"{folder}/index")
            ways = [(method, method, fusion.WEIGHTED) for method in reversed(opened.methods)]
            if search.HYBRID in opened.methods:
                ways.append((f"{search.HYBRID}, {fusion.RRF}", search.HYBRID, fusion.RRF))
            for way, method, fused in ways:
                results = opened.search(questions, top=measures.DEPTH, method=method, fusion=fused)
                found = [[result.id for result in listed] for listed in results]
                figures = measures.figures(found, [[answer] for answer in answers])
                rows.append([path.stem, way, *(f"{figures[column]:.4f}" for column in COLUMNS)])
    print(markdown(["set", "method", *COLUMNS], rows))


if __name__ == "__main__":
    main()
