"""BERT-base's forward pass in float32 and bfloat16, compared with other libraries and with plain matrix products:
`make bench`, or

    .venv-peers/bin/python benchmarks/forward.py [--contenders=tfzoo,kerashub,garden,torch] [--batches=1,8]

Each contender runs in its own process with two threads, and they take turns. The pass: 12 layers of width 768, 128
tokens per row, one padded row, random weights, no heads.

    NAME                   computes in float32
    NAME-bfloat16          stores its weights and computes in bfloat16
    tfzoo-mixed_bfloat16   stores its weights in float32 and casts them in every call
    savedmodel             is what `tfzoo.export --precision` writes, read by tf.saved_model.load
    torch                  is transformers' BertModel, if .venv-references exists
    products               multiplies square matrices and does nothing else; its speed is the limit for a forward pass,
                           most of which is matrix products. It is measured in every type that a contender computes in.

--error prints how far the outputs of each precision are from float64's, with the same weights, instead of speeds.
"""

import argparse
import importlib.util
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import history
from side_by_side import ROOT, Worker, answer, markdown, processor, ratio, ratios, turns

LENGTH, HIDDEN, LAYERS, INTERMEDIATE, VOCAB = 128, 768, 12, 3072, 30522
SIDE = 2048  # Rows and columns of the matrices of `products`.
REFERENCES = ROOT / ".venv-references" / "bin" / "python"
# A batch size -> a function that computes the pass and returns one of its outputs as an array.
Forward = Callable[[int], Callable[[], Any]]


def flops(batch: int) -> float:
    """Returns the FLOPs of products with weights, scores and weighted sums; 2 per multiplication."""
    tokens = batch * LENGTH
    layer = 2 * tokens * (4 * HIDDEN**2 + 2 * HIDDEN * INTERMEDIATE) + 4 * tokens * LENGTH * HIDDEN
    return LAYERS * layer + 2 * batch * HIDDEN**2


def inputs(batch: int):
    import numpy as np

    random = np.random.default_rng(0)
    padding_mask = np.ones([batch, LENGTH], np.int32)
    padding_mask[0, LENGTH * 3 // 4 :] = 0
    return random.integers(1000, VOCAB, [batch, LENGTH], np.int32), np.zeros([batch, LENGTH], np.int32), padding_mask


def named_inputs(batch: int):
    import tensorflow as tf

    token_ids, segment_ids, padding_mask = map(tf.constant, inputs(batch))
    return {"token_ids": token_ids, "segment_ids": segment_ids, "padding_mask": tf.cast(padding_mask, tf.bool)}


def with_tfzoo(dtype: str) -> Forward:
    """tfzoo's encoder with its pooler."""
    import tensorflow as tf

    from tfzoo import models

    model = models.build("bert_base", heads=(), dtype=dtype)
    run = tf.function(lambda features: model(features)["pooled"])

    def forward(batch):
        features = named_inputs(batch)
        return lambda: run(features)

    return forward


def savedmodel(dtype: str) -> Forward:
    """The same in an exported SavedModel."""
    import tensorflow as tf

    from tfzoo import models
    from tfzoo.export import precision, savedmodel
    from tfzoo.export.answers import Options

    with tempfile.TemporaryDirectory() as folder:
        model = precision.with_precision(models.build("bert_base", heads=()), dtype)
        savedmodel.save(model, None, folder, Options(LENGTH))
        loaded = tf.saved_model.load(folder)
    run = loaded.signatures["tokens"]

    def forward(batch):
        features = named_inputs(batch)
        return lambda: run(**features)["pooled"]

    return forward


def kerashub(dtype: str) -> Forward:
    """KerasHub's BertBackbone."""
    import keras_hub
    import tensorflow as tf

    model = keras_hub.models.BertBackbone(
        vocabulary_size=VOCAB,
        num_layers=LAYERS,
        num_heads=12,
        hidden_dim=HIDDEN,
        intermediate_dim=INTERMEDIATE,
        dtype=dtype,
    )
    run = tf.function(lambda features: model(features, training=False)["pooled_output"])

    def forward(batch):
        features = named_inputs(batch)
        return lambda: run(features)

    return forward


def garden(dtype: str) -> Forward:
    """Model Garden's BertEncoder."""
    import tensorflow as tf
    import tf_keras
    from official.nlp.modeling import networks

    tf_keras.mixed_precision.set_global_policy("mixed_bfloat16" if dtype == "bfloat16" else dtype)
    model = networks.BertEncoderV2(
        vocab_size=VOCAB, hidden_size=HIDDEN, num_layers=LAYERS, num_attention_heads=12, inner_dim=INTERMEDIATE
    )
    run = tf.function(lambda features: model(features, training=False)["pooled_output"])

    def forward(batch):
        names = ("input_word_ids", "input_type_ids", "input_mask")
        features = dict(zip(names, map(tf.constant, inputs(batch))))
        return lambda: run(features)

    return forward


def with_torch(dtype: str) -> Forward:
    """transformers' BertModel."""
    import torch
    from transformers import BertConfig, BertModel

    torch.set_num_threads(2)
    model = BertModel(BertConfig()).to(getattr(torch, dtype)).eval()

    def forward(batch):
        names = ("input_ids", "token_type_ids", "attention_mask")
        features = {name: torch.from_numpy(each).long() for name, each in zip(names, inputs(batch))}

        def run():
            with torch.inference_mode():
                return model(**features).pooler_output.float()

        return run

    return forward


def products(dtype: str) -> Forward:
    """Square matrix products, with their own number of FLOPs."""
    import tensorflow as tf

    left, right = (tf.cast(tf.random.normal([SIDE, SIDE]), dtype) for _ in range(2))
    run = tf.function(lambda: tf.matmul(left, right))
    return lambda batch: run


CONTENDERS: dict[str, Callable[[str], Forward]] = {
    "tfzoo": with_tfzoo,
    "savedmodel": savedmodel,
    "kerashub": kerashub,
    "garden": garden,
    "torch": with_torch,
    "products": products,
}
DEFAULT = "tfzoo,tfzoo-bfloat16,tfzoo-mixed_bfloat16,savedmodel,savedmodel-bfloat16"


def type_of(contender: str) -> str:
    """Returns the type in which a contender multiplies matrices."""
    return "bfloat16" if contender.endswith("bfloat16") else "float32"


def work(contender: str) -> Callable[[int, int], list[float]]:
    """Returns a function: (batch, times) -> [seconds, CPU seconds of all threads] per run."""
    name, _, dtype = contender.partition("-")
    if name == "garden":
        os.environ["TF_USE_LEGACY_KERAS"] = "1"
    if name != "torch":
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(2)
    make = CONTENDERS[name](dtype or "float32")
    made: dict[int, Callable[[], Any]] = {}

    def seconds(batch: int, times: int) -> list[float]:
        run = made.setdefault(batch, make(batch))
        start, cpu = time.perf_counter(), time.process_time()
        for _ in range(times):
            result = run()
        result.numpy()
        return [(time.perf_counter() - start) / times, (time.process_time() - cpu) / times]

    return seconds


def start(contender: str) -> Worker:
    if contender.startswith("torch"):  # By default its threads spin while they wait.
        flags = {"OMP_WAIT_POLICY": "passive"}
        return Worker(contender, __file__, f"--worker={contender}", python=str(REFERENCES), **flags)
    return Worker(contender, __file__, f"--worker={contender}")


def table(workers: list[Worker], batch: int) -> str:
    seconds = {worker.name: [each[0] for each in worker.answers] for worker in workers}
    cpu = {worker.name: [each[1] for each in worker.answers] for worker in workers}
    first = workers[0].name
    rows = []
    for worker in workers:
        limit = "products-bfloat16" if type_of(worker.name) == "bfloat16" else "products"
        count = 2 * SIDE**3 if worker.name == limit else flops(batch)
        work_of = [count / each for each in seconds[worker.name]]
        shares = [each / (2 * SIDE**3 / most) for each, most in zip(work_of, seconds[limit], strict=True)]
        median = statistics.median(seconds[worker.name])
        row = [worker.name, f"{1000 * median:.1f}", f"{count / median / 1e9:.0f}", f"{statistics.median(shares):.3f}"]
        for peer in (first, "torch-bfloat16" if type_of(worker.name) == "bfloat16" else "torch"):
            known = peer in seconds and not worker.name.startswith("products")
            speeds = [ratio(each[peer], each[worker.name]) for each in (seconds, cpu)] if known else []
            if known and peer != worker.name and worker.name.startswith(("tfzoo", "savedmodel")):
                compared = ratios(seconds[peer], seconds[worker.name])
                history.record("forward", f"{batch} x {LENGTH}", worker.name, peer, compared)
            row.append(", ".join(f"{each:.2f}" for each in speeds))
        rows.append(row)
    heads = [f"{batch} x {LENGTH}", "ms", "GFLOP/s", "fraction of products", f"speed, {first} = 1: time, CPU"]
    return markdown([*heads, "torch of the same type = 1"], rows)


def errors() -> str:
    """Returns a table of the differences from float64, as fractions of an output's root mean square."""
    import numpy as np
    import tensorflow as tf

    from tfzoo import models
    from tfzoo.export.precision import with_precision

    model = models.build("bert_base", heads=())
    features = named_inputs(2)
    real = features["padding_mask"].numpy()
    exact = with_precision(model, "float64")(features)
    rows = []
    for name in ("float32", "mixed_bfloat16", "bfloat16"):
        twin = models.build("bert_base", heads=(), dtype=name)
        twin.set_weights(model.get_weights())
        found, row = tf.function(twin)(features), [name]
        for output in ("sequence", "pooled"):
            got, want = (tf.cast(each[output], tf.float64).numpy() for each in (found, exact))
            if output == "sequence":
                got, want = got[real], want[real]
            unit = np.sqrt(np.square(want).mean())
            row += [f"{np.sqrt(np.square(got - want).mean()) / unit:.1e}", f"{np.abs(got - want).max() / unit:.1e}"]
        rows.append(row)
    heads = ["error", "states: root mean square", "largest", "pooled: root mean square", "largest"]
    return markdown(heads, rows)


def defaults() -> str:
    """Returns the contenders that this environment has."""
    found = [DEFAULT]
    if importlib.util.find_spec("keras_hub"):
        found += ["kerashub", "kerashub-bfloat16"]
    if importlib.util.find_spec("official"):
        found.append("garden")
    return ",".join([*found, *(["torch", "torch-bfloat16"] if REFERENCES.exists() else [])])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contenders", default=defaults())
    parser.add_argument("--batches", default="1,8")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--error", action="store_true")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        answer(lambda: work(args.worker))
        return
    if args.error:
        print(errors())
        return
    names = args.contenders.split(",")
    names += ["products", *(["products-bfloat16"] if "bfloat16" in map(type_of, names) else [])]
    workers = [start(name) for name in names]
    print(processor(), flush=True)
    for batch in map(int, args.batches.split(",")):
        times = max(1, 16 // batch)
        for worker in workers:
            worker.answers = []
            worker.ask(batch, 3)
        for worker in turns(workers, args.rounds):
            worker.ask(batch, 1)  # Wakes the threads and fills the caches.
            worker.answers.append(worker.ask(batch, times))
        print(table(workers, batch), flush=True)
        print()
    for worker in workers:
        worker.close()


if __name__ == "__main__":
    main()
