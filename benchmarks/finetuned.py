"""Fine-tunes on public data sets and writes the scores into docs/results.md: `make results`, or

    TFZOO_DATA=... .venv/bin/python benchmarks/finetuned.py [--only=trec,sst2] [--from=scratch,english]

Each English set of an encoder has three rows: from scratch, from the encoder of configs/english.cfg, and from a real
sentence encoder, whose folder TFZOO_ENCODER names. Chinese sets have two: from scratch, and from the encoder of
configs/chinese.cfg. Sets in which a model writes texts have one, from scratch. A row that is
recorded in docs/finetuned.json is not repeated, unless its flags have changed; runs are kept in runs/results/, and an
interrupted one resumes. Hyperparameters were chosen on validation rows; test files are scored once.
"""

import argparse
import hashlib
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import time
import zlib

import recipes
from recipes import ROOT, RUNS, write_between

RECORDS = ROOT / "docs/finetuned.json"
BEGIN, END = "<!-- fine-tuning: written by `make results` -->\n", "<!-- end of fine-tuning -->\n"
DATA = pathlib.Path(os.environ.get("TFZOO_DATA", ""))

# Set -> its flags, its training, validation and test files (relative to TFZOO_DATA) and its main figure.
SETS = {
    "sst2": (["--task=classify"], "sst2/train.tsv", "sst2/dev.tsv", "sst2/test.tsv", "accuracy"),
    "trec": (["--task=classify"], "trec/TREC.train", None, "trec/TREC.test", "accuracy"),
    "banking77": (["--task=classify"], "banking77/train.csv", None, "banking77/test.csv", "accuracy"),
    "chnsenticorp": (
        ["--task=classify", "--sequence_length=160"],
        "chnsenticorp/train.tsv",
        "chnsenticorp/dev.tsv",
        "chnsenticorp/test.tsv",
        "accuracy",
    ),
    "stsb-en": (
        ["--task=similarity", "--similarity_loss=mse", "--sequence_length=64"],
        "stsb-multi/stsb-en-train.csv",
        "stsb-multi/stsb-en-dev.csv",
        "stsb-multi/stsb-en-test.csv",
        "pearson",
    ),
    "semeval2010-8": (
        ["--task=relation"],
        "semeval2010-8/TRAIN_FILE.TXT",
        None,
        "semeval2010-8/TEST_FILE_FULL.TXT",
        "macro_f1",
    ),
    "wnut17": (
        ["--task=tag"],
        "wnut17/wnut17train.conll",
        "wnut17/emerging.dev.conll",
        "wnut17/emerging.test.annotated",
        "f1",
    ),
    # The training files of drcd and cmrc2018 are not among the data sets: their smaller parts take their place.
    "drcd": (["--task=answer", "--sequence_length=320"], "drcd/DRCD_dev.json", None, "drcd/DRCD_test.json", "f1"),
    "cmrc": (
        ["--task=answer", "--sequence_length=320", "--bad_rows=skip"],
        "cmrc2018/cmrc2018_trial.json",
        None,
        "cmrc2018/cmrc2018_dev.json",
        "f1",
    ),
    # Trained on both, with DRCD converted to simplified characters, in which CMRC is written.
    "cmrc-drcd": (
        ["--task=answer", "--sequence_length=320", "--bad_rows=skip"],
        "drcd/DRCD_dev.json+cmrc2018/cmrc2018_trial.json",
        None,
        "cmrc2018/cmrc2018_dev.json",
        "f1",
    ),
    # Three quarters of the articles of xquad.en.json, and every fourth one.
    "xquad": (["--task=answer"], "xquad/train.en.json", None, "xquad/test.en.json", "f1"),
}
# Sets in which an encoder-decoder writes texts; the form is that of SETS. In the CPU time of 280 updates of AdamW with
# 64 pairs of multi30k, Muon makes 100 with 128 pairs: the validation losses are 3.82 and 4.00.
_WRITER = ["--model=transformer_base", "--overrides=hidden_size=256,num_heads=4,intermediate_size=1024,norm_first=true"]
_WRITER += ["--overrides=initializer_range=0.0625,attention_dropout=0", "--tokenizer=sentencepiece"]
# The positions and the epsilon of Pegasus, the pre-norm form of Marian: Hugging Face transformers reads such runs.
_WRITER += ["--overrides=positions=sinusoidal_concat,norm_epsilon=1e-5"]
_WRITER += ["--vocab_size=8192", "--batch_size=64", "--optimizer=adamw", "--learning_rate=1e-3", "--beta_2=0.98"]
_WRITER += ["--schedule=trapezoidal", "--warmup_steps=300", "--log_every=50"]
WRITING = {
    "multi30k": (
        ["--task=translate", "--sequence_length=96", "--decoded_rows=250", "--epochs=9", "--decay_steps=2000"]
        + ["--max_new_tokens=64"]
        + ["--overrides=num_layers=3,num_decoder_layers=3,max_positions=128,dropout=0.2"],
        "multi30k/train.en.gz+multi30k/train.de.gz",
        "multi30k/val.en.gz+multi30k/val.de.gz",
        "multi30k/test_2016_flickr.en.gz+multi30k/test_2016_flickr.de.gz",
        "bleu",
    ),
    "tatoeba": (
        ["--task=translate", "--sequence_length=64", "--decoded_rows=250", "--epochs=15", "--decay_steps=2000"]
        + ["--overrides=num_layers=3,num_decoder_layers=3,max_positions=64,dropout=0.3"],
        "tatoeba/train",
        "tatoeba/dev",
        "tatoeba/test",
        "bleu",
    ),
    # Before, the model learns to find the words with the highest TF-IDF of the same e-mails ("first" below).
    "aeslc": (
        ["--task=summarise", "--sequence_length=160", "--target_length=24", "--decoded_rows=250", "--num_beams=2"]
        + ["--overrides=num_layers=2,num_decoder_layers=2,max_positions=160,dropout=0.2"]
        + ["--overrides=attention_initializer=cross_alike", "--learning_rate=5e-4", "--epochs=6", "--decay_steps=700"],
        "aeslc/train.jsonl",
        "aeslc/dev.jsonl",
        "aeslc/test.jsonl",
        "rouge_l",
    ),
}
# Set -> the flags of a run from which it starts, instead of its own, and its training file.
FIRST = {
    "aeslc": (
        ["--task=text_to_text", "--best_metric=validation_loss", "--decoded_rows=1", "--learning_rate=1e-3"]
        + ["--epochs=3", "--decay_steps=300"],
        "aeslc/words",
    )
}
# Sets in Chinese, of which English vocabularies lack the characters.
CHINESE = {"chnsenticorp", "drcd", "cmrc", "cmrc-drcd"}
_SMALL = ["--overrides=num_layers=2,hidden_size=128,num_heads=2,intermediate_size=256,norm_first=true"]
_SMALL += ["--overrides=initializer_range=0.07,dropout=0.2", "--learning_rate=1e-3", "--epochs=8", "--batch_size=32"]
SOURCES = {
    "scratch": ("from scratch", _SMALL),
    "english": ("configs/english.cfg", ["--learning_rate=3e-4", "--epochs=6", "--overrides=dropout=0.1"]),
    "chinese": ("configs/chinese.cfg", ["--learning_rate=3e-4", "--epochs=6", "--overrides=dropout=0.1"]),
    "encoder": ("all-MiniLM-L6-v2", ["--learning_rate=1e-4", "--epochs=4"]),
    "writer": ("from scratch, a Transformer", _WRITER),
}
RECIPES = ("english", "chinese")  # The sources that are runs of recipes.
# (set, source) -> flags that replace those of the source.
OTHERS: dict[tuple[str, str], list[str]] = {
    ("trec", "encoder"): ["--epochs=6"],
    ("banking77", "encoder"): ["--learning_rate=2e-4", "--epochs=6"],
    ("banking77", "english"): ["--learning_rate=6e-4", "--epochs=12"],
    ("banking77", "scratch"): ["--epochs=15"],
    ("stsb-en", "encoder"): ["--learning_rate=5e-5", "--epochs=2"],
    ("semeval2010-8", "encoder"): ["--learning_rate=2e-4", "--epochs=5", "--sequence_length=96"],
    ("wnut17", "encoder"): ["--learning_rate=2e-4", "--epochs=5"],
    ("drcd", "chinese"): ["--epochs=4"],
    ("cmrc-drcd", "chinese"): ["--epochs=4"],
    ("xquad", "scratch"): ["--sequence_length=256"],
    ("xquad", "encoder"): ["--sequence_length=256"],
}


def source_of(source: str) -> str | None:
    """Returns the value of --init_from; None from scratch, "" if the source is not available."""
    if source in ("scratch", "writer"):
        return None
    if source == "encoder":
        folder = os.environ.get("TFZOO_ENCODER", "")
    else:
        folder = str(recipe_run(source)) if (recipe_run(source) / "best").exists() else ""
    return folder if folder and os.path.isdir(folder) else ""


def sources_of(name: str) -> list[str]:
    """Returns the sources that apply to a set."""
    if name in WRITING:
        return ["writer"]
    return ["scratch", "chinese"] if name in CHINESE else ["scratch", "english", "encoder"]


def path_of(name: str) -> str:
    """Returns the path of a data file, or FIRST+SECOND; of a converted copy if the file has another form."""
    kind, _, part = name.partition("/")
    if kind == "xquad":
        return part_of_xquad(part)
    if name == SETS["cmrc-drcd"][1]:
        return drcd_and_cmrc()
    convert = {"trec": _trec, "tatoeba": _tatoeba}.get(kind, _words if name == "aeslc/words" else None)
    if convert is None:
        return "+".join(str(DATA / each) for each in name.split("+"))
    path = RUNS / "data" / (f"{part}.tsv" if kind == "trec" else f"{kind}-{part}.tsv")
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{first}\t{second}\n" for first, second in convert(part)))
    return str(path)


def _trec(part: str) -> list[tuple[str, str]]:
    """Returns the questions and their coarse labels; the lines of the file are "COARSE:fine question" in latin-1."""
    lines = (DATA / "trec" / part).read_bytes().decode("latin-1").splitlines()
    return [(text, label.partition(":")[0]) for label, _, text in (line.partition(" ") for line in lines)]


def _tatoeba(part: str) -> list[tuple[str, str]]:
    """Returns English sentences and their Chinese translations. The hash of a sentence decides its part; the test and
    validation parts have one translation of each sentence."""
    lines = (DATA / "tatoeba-cmn/cmn.txt").read_text().splitlines()
    pairs = [tuple(line.split("\t")[:2]) for line in lines]
    wanted = {"test": (0,), "dev": (1,), "train": tuple(range(2, 20))}[part]
    chosen = [(en, zh) for en, zh in pairs if zlib.crc32(en.lower().encode()) % 20 in wanted]
    first: dict[str, str] = {}
    for en, zh in chosen:
        first.setdefault(en, zh)
    return chosen if part == "train" else list(first.items())


def _words(part: str, count: int = 5) -> list[tuple[str, str]]:
    """Returns e-mails of training and their `count` words of highest TF-IDF, in their order."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    bodies = [json.loads(line)["body"] for line in (DATA / "aeslc/train.jsonl").read_text().splitlines()]
    vectorizer = TfidfVectorizer(min_df=2)
    weights = vectorizer.fit_transform(bodies)
    vocabulary, analyze = vectorizer.vocabulary_, vectorizer.build_analyzer()
    rows = []
    for i, body in enumerate(bodies):
        words = [word for word in dict.fromkeys(analyze(body)) if word in vocabulary]
        weight = {word: weights[i, vocabulary[word]] for word in words}
        best = set(sorted(words, key=lambda word: -weight[word])[:count])
        if best:
            rows.append((" ".join(body.split()), " ".join(word for word in words if word in best)))
    return rows


def part_of_xquad(name: str) -> str:
    """Returns the path of train.LANGUAGE.json or test.LANGUAGE.json, which is written if it is missing."""
    part, language, _ = name.split(".")
    path = RUNS / "data" / f"xquad.{name}"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        articles = json.loads((DATA / "xquad" / f"xquad.{language}.json").read_text())["data"]
        chosen = [article for i, article in enumerate(articles) if (i % 4 == 3) == (part == "test")]
        path.write_text(json.dumps({"data": chosen}))
    return str(path)


def drcd_and_cmrc() -> str:
    """Returns the path of the training files of drcd and cmrc in one, in simplified characters."""
    path = RUNS / "data/drcd_and_cmrc.json"
    if not path.exists():
        from opencc import OpenCC

        convert = OpenCC("t2s").convert
        articles = json.loads((DATA / SETS["drcd"][1]).read_text())["data"]
        paragraphs = [paragraph for article in articles for paragraph in article["paragraphs"]]
        for paragraph in paragraphs:
            paragraph["context"] = convert(paragraph["context"])
            for question in paragraph["qas"]:
                question["question"] = convert(question["question"])
                for answer in question["answers"]:  # Characters correspond one to one, so that offsets are kept.
                    answer["text"] = convert(answer["text"])
        articles += json.loads((DATA / SETS["cmrc"][1]).read_text())["data"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"data": articles}, ensure_ascii=False))
    return str(path)


def flags_of(name: str, source: str) -> list[str]:
    """Returns the flags of a row that decide its result, without folders."""
    task, train, validation, _, _ = (SETS | WRITING)[name]
    shown = [f"--train_file=$TFZOO_DATA/{train}"]
    shown += [f"--validation_file=$TFZOO_DATA/{validation}"] if validation else []
    if name in WRITING:
        return [*shown, *SOURCES[source][1], *task]
    return [*task, *shown, *SOURCES[source][1], *OTHERS.get((name, source), [])]


def key_of(flags: list[str]) -> str:
    return hashlib.sha256(repr(flags).encode()).hexdigest()[:12]


def recipe_run(name: str) -> pathlib.Path:
    """Returns the folder of the run of a recipe, as benchmarks/recipes.py names it."""
    return RUNS / f"{name}-{recipes.key_of(recipes.config_of(name))}"


def row_key(name: str, source: str) -> str:
    """Returns a key of a row's flags and, if it starts from our encoder, of that recipe."""
    return key_of([*flags_of(name, source), *([recipe_run(source).name] if source in RECIPES else [])])


def run(name: str, source: str) -> dict:
    """Fine-tunes, or finishes an interrupted run, scores the test file and returns the row's record."""
    task, train, validation, test, figure = (SETS | WRITING)[name]
    flags = flags_of(name, source)
    run_dir = RUNS / f"{name}-{source}-{row_key(name, source)}"
    begun, begin = (run_dir / "flags.cfg").exists(), time.monotonic()
    init_from = first_run(name) if name in FIRST else source_of(source)
    # --learning_rate and others may occur twice; the last one counts.
    files = [f"--train_file={path_of(train)}"] + ([f"--validation_file={path_of(validation)}"] if validation else [])
    rest = [flag for flag in flags if not flag.startswith(("--train_file", "--validation_file"))]
    command = [sys.executable, "-m", "tfzoo.train", *files, *rest, f"--run_dir={run_dir}"]
    command += [f"--init_from={init_from}"] if init_from else []
    subprocess.run(command, cwd=ROOT, check=True)
    minutes = None if begun else round((time.monotonic() - begin) / 60, 1)  # An interrupted run's time is not known.
    test_file = path_of(test)
    subprocess.run(
        [sys.executable, "-m", "tfzoo.evaluate", f"--model_dir={run_dir}", f"--test_file={test_file}"],
        cwd=ROOT,
        check=True,
    )
    record = json.loads((run_dir / f"evaluation-{pathlib.Path(test_file.removesuffix('.gz')).stem}.json").read_text())
    return {
        "key": row_key(name, source),
        "flags": flags,
        "figure": figure,
        "scores": record["scores"],
        "baselines": record["baselines"],
        "rows": record["rows"],
        "minutes": minutes,
    }


def first_run(name: str) -> str:
    """Trains the run from which a set starts, if that is not done, and returns its folder."""
    more, train = FIRST[name]
    flags = [*SOURCES["writer"][1], *WRITING[name][0], *more]
    run_dir = RUNS / f"{name}-first-{key_of(flags)}"
    command = [sys.executable, "-m", "tfzoo.train", f"--train_file={path_of(train)}", *flags, f"--run_dir={run_dir}"]
    subprocess.run(command, cwd=ROOT, check=True)
    return str(run_dir)


def table(records: dict[str, dict]) -> list[str]:
    """Returns the lines of the table of all recorded rows."""
    lines = ["| set | from | test score | 95% interval | majority | linear model or look-up | minutes |"]
    lines += ["|---|---|---:|---|---:|---:|---:|"]
    for name in SETS | WRITING:
        for source, (label, _) in SOURCES.items():
            record = records.get(f"{name} {source}")
            if record is None:
                continue
            figure = record["figure"]
            score = record["scores"][figure]
            baselines = {each: values.get(figure) for each, values in record["baselines"].items()}
            cheap = max((v for each, v in baselines.items() if each != "majority" and v is not None), default=None)
            digits = 1 if name in WRITING else 3  # The figures of texts are percentages.
            cells = [f"{v:.{digits}f}" if v is not None else "-" for v in (baselines.get("majority"), cheap)]
            value, low, high = (f"{score[each]:.{digits}f}" for each in ("value", "low", "high"))
            lines.append(
                f"| {name} ({figure}) | {label} | {value} | {low} - {high} | "
                + " | ".join(cells)
                + f" | {'-' if record['minutes'] is None else record['minutes']} |"
            )
    lines += ["", "The flags of each row:", ""]
    for name in SETS | WRITING:
        for source, (label, _) in SOURCES.items():
            if record := records.get(f"{name} {source}"):
                last = {flag.partition("=")[0] if "overrides" not in flag else flag: flag for flag in record["flags"]}
                flags = " ".join(last.values()).replace("+multi30k", "+$TFZOO_DATA/multi30k")
                lines.append(f"    {name}, {label}: {flags}")
    return lines


def write_page(records: dict[str, dict]) -> None:
    """Writes the table of all recorded rows."""
    write_between(BEGIN, END, "\n".join(table(records)) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(SETS | WRITING), help="names of data sets, separated by commas")
    parser.add_argument("--from", dest="sources", default=",".join(SOURCES), help=", ".join(SOURCES))
    options = parser.parse_args()
    records = json.loads(RECORDS.read_text()) if RECORDS.exists() else {}
    if not os.environ.get("TFZOO_DATA"):
        print("skipped; set TFZOO_DATA to the folder of the data sets (docs/data.md)")
        return
    for name in options.only.split(","):
        for source in [each for each in options.sources.split(",") if each in sources_of(name)]:
            if records.get(f"{name} {source}", {}).get("key") == row_key(name, source):
                print(f"{name} {source}: is recorded")
            elif source_of(source) == "":
                needed = f"run benchmarks/recipes.py --only={source}" if source in RECIPES else "set TFZOO_ENCODER"
                print(f"{name} {source}: skipped; {needed}")
            elif name == "cmrc-drcd" and not importlib.util.find_spec("opencc"):
                print(f"{name} {source}: skipped; pip install opencc")
            else:
                records[f"{name} {source}"] = run(name, source)
                RECORDS.write_text(json.dumps(records, indent=1, sort_keys=True) + "\n")
                write_page(records)


if __name__ == "__main__":
    main()
