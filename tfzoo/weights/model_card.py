"""The model card of a saved or exported folder: README.md with the metadata that the Hugging Face hub reads.

    text(model, Origin(run="mine", task="classify", steps=1200), "huggingface")

The metadata are those of https://huggingface.co/docs/hub/model-cards. A card states only what is known: a license or a
language that nobody stated is missing. Does not import TensorFlow.
"""

import dataclasses
import json
import pathlib
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from tfzoo import files, results
from tfzoo.results import Results

NAME = "README.md"
# Head -> pipeline_tag; the first head that a model has decides. That of "lm" depends on the kind of model.
_PIPELINES = {
    "classify": "text-classification",
    "relation": "text-classification",
    "tag": "token-classification",
    "span": "question-answering",
    "embed": "sentence-similarity",
}
# Objectives and tasks of encoder-decoders -> pipeline_tag.
_WRITING = {
    "seq2seq": "translation",
    "translate": "translation",
    "summarise": "summarization",
    "text_to_text": "text2text-generation",
    "mixture": "text2text-generation",
}
# Metric -> (the type under which the hub's `evaluate` lists it, its config); others are listed under their own names.
_METRICS = {
    "macro_f1": "f1",
    "micro_f1": "f1",
    "entity_f1": "f1",
    "entity_precision": "precision",
    "entity_recall": "recall",
    "matthews": "matthews_correlation",
    "mcc": "matthews_correlation",
    "pearson": "pearsonr",
    "spearman": "spearmanr",
}
_DOES = {
    "text-classification": "classifies texts",
    "token-classification": "labels the words of a text",
    "question-answering": "finds the answers to questions in texts",
    "sentence-similarity": "computes vectors of texts, which are similar for texts of similar meaning",
    "feature-extraction": "computes vectors of texts",
    "fill-mask": "predicts masked words",
    "text-generation": "generates text",
    "translation": "translates texts",
    "summarization": "summarises texts",
    "text2text-generation": "writes a text for a text",
}
# Of models whose task says more than the hub's name of it.
_TASKS = {
    "chat": "answers messages",
    "preferences": "answers messages",
    "choice": "scores the endings of a text",
    "extract": "scores the sentences of a text for a summary",
}
_ANSWERING = ("chat", "preferences")


@dataclasses.dataclass(frozen=True)
class Origin:
    """What is known about where a model comes from; everything may be unknown.

    Attributes:
      run: the name of the run's folder.
      source: the folder or hf:// reference that was converted or exported, if it is not a run.
      task: the task or objective that the model was trained on.
      data: (role, name) of the files or corpora that were read: (("training", "train.csv"), ...).
      counts: numbers of rows, documents, words, ... of the training data, by name.
      steps: the number of updates.
      settings: the flags of the run that differ from their defaults.
      base_model: OWNER/NAME on the Hugging Face hub of the model from which training started, or that was exported.
      license, languages: as in the hub's metadata.
      results: of this model, on any number of files.
    """

    run: str = ""
    source: str = ""
    task: str = ""
    data: Sequence[tuple[str, str]] = ()
    counts: Mapping[str, int] = dataclasses.field(default_factory=dict)
    steps: int | None = None
    settings: Sequence[tuple[str, str]] = ()
    base_model: str = ""
    license: str = ""
    languages: Sequence[str] = ()
    results: Sequence[Results] = ()


def text(
    model,
    origin: Origin,
    kind: str = "huggingface",
    *,
    name: str = "",
    tokenizer=None,
    text_pair: bool = False,
    in_transformers: bool = True,
) -> str:
    """Returns the content of README.md.

    Args:
      model: the model in the folder, an nn.Model.
      origin: where it comes from.
      kind: "huggingface" for a saved folder, or the kind of an artifact, such as "savedmodel" or "onnx".
      name: the name of the model; "" means that of the run, or that of its family.
      tokenizer: the tokenizer in the folder, whose mask token the example uses; None if there is none.
      text_pair: whether the model reads pairs of texts.
      in_transformers: whether Hugging Face's transformers has the model's family.
    """
    name = name or origin.run or model.family
    example = _example(pipeline_tag(model, origin), tokenizer, text_pair)
    parts = [
        _front_matter(model, origin, kind, name),
        f"# {_inline(name)}",
        _description(model, origin),
        _training(origin),
        _scores(origin),
        _usage(model, origin, kind, name, example, in_transformers),
        _limitations(model, origin, kind),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def license_of(folder: pathlib.Path) -> str:
    """Returns the license in the metadata of a folder's README.md; "" if there is none."""
    path = folder / NAME
    content = files.read_bytes(path).decode(errors="replace") if path.is_file() else ""
    front = re.match(r"---[^\S\n]*\n(.*?)\n---[^\S\n]*\n", content, re.DOTALL)
    stated = re.search(r"""^license:[ \t]*["']?([\w.-]+)["']?[ \t\r]*$""", front[1], re.MULTILINE) if front else None
    return stated[1] if stated else ""


def pipeline_tag(model, origin: Origin) -> str:
    """Returns the hub's name of the task that a model performs; "" if it has none."""
    for head, tag in _PIPELINES.items():
        if head in model.head_names:
            return tag
    if "lm" in model.head_names:
        if model.can_generate:
            return _WRITING.get(origin.task, "text-generation")
        return "fill-mask"
    return "" if model.head_names else "feature-extraction"


def _front_matter(model, origin: Origin, kind: str, name: str) -> str:
    tag = pipeline_tag(model, origin)
    formats = {"huggingface": "safetensors", "savedmodel": "tf-serving", "onnx": "onnx", "litert": "tflite"}
    tags = dict.fromkeys(["tfzoo", model.family, formats.get(kind, kind), *filter(None, [origin.task])])
    if kind == "huggingface" and "embed" in model.head_names:
        tags |= {"sentence-transformers": None}
    fields: dict[str, Any] = {
        "library_name": "tfzoo",
        "license": origin.license,
        "language": list(origin.languages),
        "tags": list(tags),
        "pipeline_tag": tag,
        "base_model": origin.base_model,
        "model-index": [{"name": name, "results": _index(origin, tag)}] if tag and origin.results else [],
    }
    lines = [line for field, value in fields.items() if value for line in _yaml({field: value})]
    return "\n".join(["---", *lines, "---"])


def _index(origin: Origin, tag: str) -> list[dict[str, Any]]:
    """Returns the results in the form of the hub's model-index."""
    return [
        {
            "task": {"type": tag},
            # The hub requires a type, which is that of a public data set; this one is a file.
            "dataset": {
                "name": each.file_name,
                "type": "unknown",
                "split": "validation" if each.validation else "test",
            },
            "metrics": [
                {"type": _METRICS.get(score.name, score.name), "value": float(score.value), "name": score.label}
                for score in each.scores
            ],
        }
        for each in origin.results
        if each.scores
    ]


def _yaml(value: Any, indent: str = "") -> list[str]:
    """Returns the lines of a dict or a list in YAML's block style; strings are quoted if they are not plain words."""
    lines = []
    items = value.items() if isinstance(value, dict) else [(None, item) for item in value]
    for key, item in items:
        start = "- " if key is None else f"{key}:"
        if not isinstance(item, dict | list):
            lines.append(f"{indent}{start}{'' if key is None else ' '}{_scalar(item)}")
        elif key is None:  # A dict in a list: its first key follows the dash.
            first, *rest = _yaml(item)
            lines += [f"{indent}- {first}", *(f"{indent}  {line}" for line in rest)]
        else:
            lines += [f"{indent}{start}", *_yaml(item, indent + ("" if isinstance(item, list) else "  "))]
    return lines


def _scalar(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6f}"  # YAML reads 1e-05 as a string.
    if not isinstance(value, str):
        return json.dumps(value)
    # Plain words that YAML reads as something else than a string: yes, no, on, off, null, true, 1e3, 0x1F, 1_000, ...
    if re.fullmatch(r"[A-Za-z][\w./-]*", value, re.ASCII) and not re.fullmatch(
        r"y|n|yes|no|on|off|null|true|false", value, re.IGNORECASE
    ):
        return value
    text = json.dumps(value, ensure_ascii=False)
    return "".join(char if char.isprintable() else _escape(char) for char in text)


def _escape(char: str) -> str:
    """Returns YAML's escape of a character that a YAML file may not contain. YAML has no surrogates."""
    code = ord(char)
    if 0xD800 <= code < 0xE000:
        code = 0xFFFD
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _inline(value: str) -> str:
    """Returns a text on one line in which Markdown and HTML have no effect."""
    line = " ".join(value.encode("utf-8", "replace").decode().split())
    return re.sub(r"([\\`*_\[\]<>|#&~$])", r"\\\1", line)


def _description(model, origin: Origin) -> str:
    does = _TASKS.get(origin.task) or _DOES.get(pipeline_tag(model, origin))
    config, layers = model.config, f"{model.config.num_layers} layer{'s'[model.config.num_layers == 1 :]}"
    if model.is_encoder_decoder:
        layers = f"{config.num_layers} encoder and {config.num_decoder_layers or config.num_layers} decoder layers"
    sizes = f"{layers}, hidden size {config.hidden_size} and {model.count_params():,} parameters"
    lines = [f"This is a model{f' that {does}' if does else ''}: {model.family} with {sizes}."]
    if origin.base_model:
        verb = "It was trained from" if origin.run else "It is"
        lines.append(f"{verb} [{_inline(origin.base_model)}](https://huggingface.co/{origin.base_model}).")
    elif origin.source:
        lines.append(f"It was read from {_code(pathlib.PurePath(origin.source).name)}.")
    labels = list(model.labels) if {"classify", "tag", "relation"} & set(model.head_names) else []
    if 1 < len(labels) <= 30:
        lines.append(f"Its labels are {', '.join(map(_code, labels))}.")
    elif labels[1:]:
        lines.append(f"It has {len(labels)} labels, which config.json or manifest.json lists.")
    return " ".join(lines)


def _code(value: str) -> str:
    """Returns a text as inline code on one line."""
    line = " ".join(str(value).encode("utf-8", "replace").decode().split())
    fence = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    return f"{fence} {line} {fence}" if "`" in line else f"{fence}{line or ' '}{fence}"


def _training(origin: Origin) -> str:
    if not origin.run:
        return ""
    facts = [("Task", _code(origin.task))] if origin.task else []
    facts += [(f"{role.capitalize()} data", _code(name)) for role, name in origin.data]
    facts += [(f"Training {name}", f"{count:,}") for name, count in origin.counts.items()]
    facts += [("Steps", f"{origin.steps:,}")] if origin.steps is not None else []
    lines = ["## Training", "", *(f"- {name}: {value}" for name, value in facts)]
    if origin.settings:
        flags = " ".join(shlex.quote(f"--{name}={value}") for name, value in origin.settings)
        lines += ["", "Flags of `python -m tfzoo.train` that differ from their defaults:", "", *_fenced(flags)]
    return "\n".join(lines)


def _fenced(content: str, language: str = "") -> list[str]:
    """Returns the lines of a code block."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", content)), default=0))
    return [f"{fence}{language}", content, fence]


def _scores(origin: Origin) -> str:
    parts = []
    for each in origin.results:
        rows = f", {each.rows:,} rows" if each.rows is not None else ""
        baselines = [results.baseline_label(name) for name in each.baselines]
        lines = [f"### {_inline(each.title)}{rows}", ""]
        lines.append("| " + " | ".join(["Score", "Model", "95% interval", *map(_inline, baselines)]) + " |")
        lines.append("|---" + "|---:" * (2 + len(baselines)) + "|")
        for score in each.scores:
            others = [score.show(score.baselines.get(name)) for name in each.baselines]
            cells = [_inline(score.label), score.show(score.value), score.interval or "-", *others]
            lines.append("| " + " | ".join(cells) + " |")
        if each.main is not None and each.main.verdict():
            lines += ["", _inline(each.main.verdict())]
        parts.append("\n".join(lines))
    return "\n\n".join(["## Scores", *parts]) if parts else ""


def _example(tag: str, tokenizer, text_pair: bool) -> dict[str, str]:
    """Returns an input of the task, as the text signatures of an export name it; {} if there is no tokenizer."""
    if tokenizer is None:
        return {}
    if tag == "question-answering":
        return {"question": "What was it?", "context": "What a day it was."}
    mask = getattr(tokenizer, "mask_id", None)
    if tag == "fill-mask" and mask is not None:
        return {"text": f"What a {tokenizer.vocab[mask]}"}
    return {"text": "What a day"} | ({"text_pair": "It was a good day"} if text_pair else {})


_RUNTIMES = {
    "savedmodel": "TF Serving and TensorFlow run the SavedModel. ",
    "onnx": "onnxruntime runs the graphs. ",
    "litert": "LiteRT runs model.tflite. ",
}
_READS_IDS = "The model reads token ids; manifest.json lists its inputs and outputs."


def _usage(model, origin: Origin, kind: str, name: str, example: dict[str, str], in_transformers: bool) -> str:
    if kind == "huggingface":
        tag = pipeline_tag(model, origin)
        answers = origin.task in _ANSWERING and in_transformers and not model.is_encoder_decoder
        lines = _chat() if answers else _saved(model, tag, example, in_transformers)
        lines = _fenced("\n".join(lines), "python")
    else:
        reads = _serving(name, example) if kind == "savedmodel" and example else [_RUNTIMES.get(kind, "") + _READS_IDS]
        replayed = "To check the files and to compare the answers with those of the original model:"
        lines = [*reads, "", replayed, "", *_fenced("python verify.py .", "sh")]
    return "\n".join(["## Use", "", *lines])


def _chat() -> list[str]:
    """Returns Python lines that use a saved folder whose model answers messages, with the folder's chat template."""
    return [
        'FOLDER = "."',
        "",
        "# python -m tfzoo.generate --model_dir=. --chat",
        "",
        "from transformers import pipeline",
        "",
        'pipeline("text-generation", FOLDER)([{"role": "user", "content": "What a day"}])',
    ]


def _saved(model, tag: str, example: dict[str, str], in_transformers: bool) -> list[str]:
    """Returns Python lines that use a saved folder."""
    inputs = ", ".join(json.dumps(value, ensure_ascii=False) for value in (example or {"text": "What a day"}).values())
    reads = "model, tokenizer = tfzoo.load(FOLDER)"
    if tag in ("text-classification", "token-classification"):
        ours = [f"tfzoo.pipeline(FOLDER)([{inputs}])"]
    elif tag == "question-answering":
        ours = [f"tfzoo.pipeline(FOLDER)([({inputs})])"]
    elif tag == "sentence-similarity":
        ours = [reads, f"tfzoo.embed_texts(model, [{inputs}], tokenizer)"]
    elif model.can_generate:
        ours = [reads, f"tfzoo.generate_text(model, [{inputs}], tokenizer)"]
    else:
        ours = [reads]
    lines = ['FOLDER = "."', "", "import tfzoo", "", *ours]
    if tag == "sentence-similarity":
        lines += ["", "from sentence_transformers import SentenceTransformer", ""]
        lines.append(f"SentenceTransformer(FOLDER).encode([{inputs}])")
    elif tag in _DOES and in_transformers and not model.is_encoder_decoder and tag != "feature-extraction":
        named = ", ".join(f"{key}={json.dumps(value)}" for key, value in example.items())
        lines += ["", "from transformers import pipeline", ""]
        lines.append(f'pipeline("{tag}", FOLDER)({named if "question" in example else inputs})')
    return lines


def _serving(name: str, example: dict[str, str]) -> list[str]:
    commands = [
        f'docker run --rm -p 8501:8501 -v "$PWD/exports/savedmodel/{name}:/models/{name}:ro" \\',
        f"  -e MODEL_NAME={name} tensorflow/serving:2.20.0",
        f"curl -s http://localhost:8501/v1/models/{name}:predict -d '{json.dumps({'instances': [example]})}'",
    ]
    reads = "The SavedModel contains the tokenizer and reads texts; manifest.json lists its signatures."
    return [
        f"{reads} TF Serving is given the folder that contains the versions:",
        "",
        *_fenced("\n".join(commands), "sh"),
    ]


def _limitations(model, origin: Origin, kind: str) -> str:
    tested = [each.file_name for each in origin.results if not each.validation]
    items = []
    if not origin.results:
        items.append("No score of this model is known to tfzoo; measure it on your own data before you use it.")
    elif tested:
        items.append(f"The model was tested on {', '.join(map(_code, tested))} only. Other texts were not tested.")
    else:
        items.append(
            "The scores are those of the data that also selected the checkpoint. They are likely to be better than on "
            "new data; no test file was evaluated."
        )
    if any(score.interval for each in origin.results for score in each.scores):
        items.append("The intervals state the uncertainty due to the choice of rows, not that of training.")
    items.append("Bias, robustness and the privacy of the training data were not measured.")
    if kind != "huggingface":
        items.append(
            "The exported files were compared with the original model on the inputs in golden.npz, and manifest.json "
            "states the differences. Scores are those of the original model."
        )
    if not origin.license:
        items.append("The license is unknown to tfzoo; that of the training data and of a base model may apply.")
    lines = ["## Limitations", "", *(f"- {item}" for item in items)]
    return "\n".join([*lines, "", "This card was written by tfzoo."])
