"""Pre-trains a model: data, model, step, resume, loop, from top to bottom.

    python -m tfzoo.train --flagfile=configs/bert.cfg --run_dir=runs/bert

Started again with the same --run_dir it goes on where it stopped, and logs what it would have logged.
"""

import contextlib
import dataclasses
import json
import math
import os
import pathlib
import re
import signal
import sys
import time

from absl import flags as absl_flags
from absl import logging

from tfzoo import cli, files
from tfzoo.errors import CheckFailed, UserError
from tfzoo.training import distribution, report

# Flags that say where and how often, not what: a resumed run may change them.
FREE_FLAGS = (
    "run_dir",
    "resume",
    "cache_dir",
    "log_every",
    "evaluate_every",
    "evaluate_batches",
    "checkpoint_every",
    "keep_checkpoints",
    "steps_per_call",
    "steps",
    "peak_tflops",
    "strategy",
    "num_devices",
    "tpu",
    "accumulation",
    "remat",
    "on_nonfinite",
    "max_nonfinite",
    "max_bad_rows",
)
CALL_SECONDS = 5.0  # Updates of one call take no longer, where one alone does not: a signal waits for them.


def define_flags(flags: absl_flags.FlagValues) -> None:
    def define(kind, name, default, text, **bounds):
        getattr(absl_flags, f"DEFINE_{kind}")(name, default=default, help=text, flag_values=flags, **bounds)

    define("string", "run_dir", None, "Folder of the run; one that holds a run is resumed.", required=True)
    define("bool", "resume", True, "Go on with the run in --run_dir; --noresume refuses a folder that holds one.")
    # Model.
    define("string", "model", "bert_tiny", "A model's name, such as bert_small.")
    define("multi_string", "overrides", [], "Fields of its config that differ, num_layers=4,dropout=0.0; they add up.")
    define("enum", "precision", "float32", "What is computed in.", enum_values=["float32", "bfloat16", "float16"])
    define("enum", "remat", "none", "What is computed twice to save memory.", enum_values=["none", "block"])
    # Devices: docs/distributed.md.
    define("enum", "strategy", "default", "What computes a step.", enum_values=list(distribution.STRATEGIES))
    define("integer", "num_devices", 0, "mirrored: GPUs to use, 0 for all; parts of a machine without.", lower_bound=0)
    define("string", "tpu", "", "tpu: its name or address; that of this TPU VM by default.")
    # Data.
    objectives = ["masked_lm", "causal", "span_corruption"]
    define("enum", "objective", "masked_lm", "What is learned.", enum_values=objectives)
    define(
        "string",
        "corpus",
        "docstrings",
        '"docstrings", a path or glob of .txt, .jsonl, .txt.gz, .jsonl.gz, or a folder that tfzoo.corpus pack wrote.',
    )
    define("string", "text_field", "text", "The field of a .jsonl object that holds the text.")
    define("bool", "raw_text", False, "Read .txt files as they stand, line ends too, and hold out their end.")
    define("float", "held_out", 0.02, "Share of files' text to hold out.", lower_bound=0.0001, upper_bound=0.9)
    define("enum", "bad_text", "strict", "What to do about bad input.", enum_values=["strict", "replace", "skip"])
    define("string", "cache_dir", None, "Where cleaned and tokenized text is kept; ~/.cache/tfzoo if not given.")
    kinds = ["wordpiece", "byte_level", "sentencepiece", "characters"]
    define("enum", "tokenizer", "wordpiece", "The kind of tokenizer that is trained on the corpus.", enum_values=kinds)
    define("string", "tokenizer_dir", None, "A folder with a tokenizer's files, to be taken in place of one trained.")
    define("string", "vocab_file", None, "A vocab.txt, to be taken in place of a WordPiece vocabulary trained.")
    define("integer", "vocab_size", 8192, "Size of a vocabulary that is trained.", lower_bound=100)
    define("bool", "lowercase", True, "WordPiece: fold case and accents.")
    define("integer", "sequence_length", 128, "Tokens in a row.", lower_bound=8)
    define("float", "mask_rate", 0.15, "Share of the tokens to mask or corrupt.", lower_bound=0.01, upper_bound=0.9)
    define("bool", "whole_words", False, "masked_lm: mask all pieces of a word together.")
    define("bool", "next_sentence", True, "masked_lm: predict also whether the second segment follows the first.")
    define("float", "mean_span", 3.0, "span_corruption: tokens in a span, on average.", lower_bound=1.0)
    define("bool", "pack", True, "Several documents in a row, each attending to itself; not with next_sentence.")
    # Optimisation.
    define("integer", "steps", 1000, "Updates in all.", lower_bound=1)
    define("integer", "batch_size", 32, "Rows an update, over all replicas.", lower_bound=1)
    define(
        "integer",
        "accumulation",
        1,
        "Parts that a replica's share of the batch is computed in.",
        lower_bound=1,
    )
    optimizers = ["adamw", "lamb", "adafactor", "sgd", "lars"]
    define("enum", "optimizer", "adamw", "Optimizer.", enum_values=optimizers)
    define("float", "learning_rate", 1e-3, "The highest learning rate.", lower_bound=0.0)
    define(
        "enum",
        "schedule",
        "linear",
        "After the warm-up.",
        enum_values=["linear", "cosine", "inverse_sqrt", "constant"],
    )
    define("float", "final_learning_rate", 0.0, "What linear and cosine schedules end at.", lower_bound=0.0)
    define("integer", "warmup_steps", 100, "Updates in which the rate rises.", lower_bound=0)
    define(
        "float",
        "weight_decay",
        0.01,
        "Decoupled decay of matrices; not of biases and norms.",
        lower_bound=0.0,
    )
    define(
        "float", "beta_1", 0.9, "Decay of the mean gradient; sgd, lars: momentum.", lower_bound=0.0, upper_bound=0.9999
    )
    define("float", "beta_2", 0.999, "Decay of the mean squared gradient.", lower_bound=0.0, upper_bound=0.999999)
    define("float", "clip_norm", 1.0, "Longest gradient over all variables; 0 does not clip.", lower_bound=0.0)
    define("float", "clip_each", 0.0, "Longest gradient of a variable, clipped before; 0 does not.", lower_bound=0.0)
    define(
        "float",
        "ema_decay",
        0.0,
        "Decay of an average of the weights, which is what is evaluated, loaded and exported; 0 keeps none.",
        lower_bound=0.0,
        upper_bound=0.999999,
    )
    define(
        "integer", "seed", 0, "Decides initial weights, order, masks and dropout.", lower_bound=0, upper_bound=2**31 - 1
    )
    # What goes wrong.
    define(
        "enum",
        "on_nonfinite",
        "stop",
        "A loss or gradient that is not finite: stop; skip that update; or rollback, to the newest checkpoint and past "
        "the batches since.",
        enum_values=["stop", "skip", "rollback"],
    )
    define("integer", "max_nonfinite", 10, "Most of them in a row; one more ends the run in any case.", lower_bound=0)
    define("integer", "max_bad_rows", 0, "So many rows that cannot be read are left out before one stops the run.")
    # Cadence.
    define("float", "peak_tflops", 0.0, "Of all devices together; given, utilisation is logged.", lower_bound=0.0)
    define("integer", "steps_per_call", 10, "Most updates before Python sees the losses.", lower_bound=1)
    define("integer", "log_every", 10, "Updates between lines of metrics.jsonl.", lower_bound=1)
    define("integer", "evaluate_every", 500, "Updates between evaluations.", lower_bound=1)
    define("integer", "evaluate_batches", 50, "Batches of an evaluation; 0 takes all.", lower_bound=0)
    define("integer", "checkpoint_every", 500, "Updates between checkpoints.", lower_bound=1)
    define("integer", "keep_checkpoints", 2, "How many to keep, besides the best.", lower_bound=1)


@dataclasses.dataclass
class Progress:
    """What a run knows of itself, besides the step and the variables; every checkpoint has it."""

    losses: list[float] = dataclasses.field(default_factory=list)  # Since the last line of the log,
    places: list[list[int]] = dataclasses.field(default_factory=list)  # of their batches: with a token, in all.
    best: float | None = None  # Of the main metric,
    best_step: int = 0  # and when.
    passed_over: int = 0  # Batches that no update was made of: they led to what is not finite.
    nonfinite: int = 0  # Updates that were left out or gone back for,
    in_a_row: int = 0  # how many of them with nothing gained between,
    failed_at: int = 0  # and the step to be passed before anything is gained.
    evaluating: bool = False  # Stopped while the held-out part was measured: it is to be measured first of all.

    def padding_share(self) -> float:
        filled, room = map(sum, zip(*self.places))
        return 1 - filled / room


def main(flags: absl_flags.FlagValues) -> int:
    with contextlib.ExitStack() as closing:
        return train(flags, closing)


def train(flags: absl_flags.FlagValues, closing: contextlib.ExitStack) -> int:
    """closing: gets what is to be closed however this ends."""
    run_dir = pathlib.Path(flags.run_dir)
    packed_folder = open_packed(flags)
    cluster = distribution.read_cluster(flags.strategy)
    chief = cluster.is_chief  # Of several workers it alone writes and prints.
    resuming = check_run_dir(flags, run_dir) if chief else (run_dir / "flags.cfg").exists()
    if resuming and chief:
        closing.enter_context(files.Lock(run_dir))
    stop = StopOnSignal(alone=not cluster.addresses)

    # What is imported from here on needs TensorFlow, which takes its time; wrong flags are reported before.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import keras
    import numpy as np
    import tensorflow as tf

    from tfzoo import config as config_lib
    from tfzoo import describe, models
    from tfzoo.data import pipeline
    from tfzoo.training import checkpoint, optimizers, runs

    # ---------------------------------------------------------------- Data
    page, config = models.find(flags.model)
    overrides = config_lib.parse_overrides(",".join(flags.overrides), type(config))
    config_lib.from_mapping(vars(config) | overrides, type(config))  # Bad ones are reported before anything is read.
    if cluster.serves:
        distribution.serve(cluster)
    strategy = distribution.make_strategy(flags.strategy, num_devices=flags.num_devices, tpu=flags.tpu)
    closing.enter_context(distribution.losing_workers(strategy))
    stop.listen()  # TensorFlow's workers take SIGTERM for themselves.
    cache_dir = cache_folder(flags)
    corpus, tokenizer = read_corpus(flags, run_dir, cache_dir, resuming, packed_folder)
    config = config_lib.from_mapping(vars(config) | {"vocab_size": tokenizer.vocab_size} | overrides, type(config))
    check_sizes(flags, config, tokenizer, strategy.num_replicas_in_sync)

    objective = make_objective(flags, tokenizer)
    check_model(flags, page, objective)
    (train_rows, held_out_rows), (train_ids, held_out_ids) = read_rows(flags, corpus, tokenizer, objective, cache_dir)
    replicas = strategy.num_replicas_in_sync
    closing.enter_context(explained(flags, replicas))

    def evaluation_batches(context=pipeline.ALONE):
        # What memory the training step has to do with is enough here: a part of a batch at a time.
        share = flags.accumulation * replicas
        return pipeline.evaluation_batches(
            held_out_rows,
            objective,
            batch_size=-(-min(flags.batch_size, len(held_out_rows)) // share) * replicas,
            seed=flags.seed,
            num_batches=(flags.evaluate_batches or -(-len(held_out_rows) // flags.batch_size)) * flags.accumulation,
            context=context,
            max_bad_rows=flags.max_bad_rows,
        ).cache()

    held_out = evaluation_batches()  # As one device reads them.

    # --------------------------------------------------------------- Model
    keras.utils.set_random_seed(flags.seed)
    policy = "float32" if flags.precision == "float32" else f"mixed_{flags.precision}"
    schedule = optimizers.WarmUp(
        flags.learning_rate,
        warmup_steps=flags.warmup_steps,
        total_steps=flags.steps,
        schedule=flags.schedule,
        end=flags.final_learning_rate,
    )
    workers = distribution.Workers(strategy)
    with strategy.scope():
        model = page.Model(config, heads=objective.heads, dtype=policy)
        if flags.remat == "block":
            model.recompute_blocks()
        optimizer = optimizers.make_optimizer(
            flags.optimizer,
            schedule,
            model.trainable_variables,
            weight_decay=flags.weight_decay,
            beta_1=flags.beta_1,
            beta_2=flags.beta_2,
            ema_decay=flags.ema_decay,
            loss_scaling=flags.precision == "float16",
            skip_nonfinite=flags.on_nonfinite == "skip",
        )

    # ---------------------------------------------------------------- Step
    run_steps = make_step(
        strategy,
        model,
        optimizer,
        objective,
        num_parts=flags.accumulation,
        clip_norm=flags.clip_norm,
        clip_each=flags.clip_each,
    )
    evaluate = make_evaluation(strategy, model, objective)

    # -------------------------------------------------------------- Resume
    # The newest intact checkpoint; the log cut back to its step; the data follow from the step.
    if chief and not resuming:
        with files.writing(run_dir):
            run_dir.mkdir(parents=True, exist_ok=True)
        closing.enter_context(files.Lock(run_dir))
    checkpoints = checkpoint.Checkpoints(run_dir / "checkpoints", keep=flags.keep_checkpoints, read_only=not chief)
    variables = checkpoint.model_variables(model, optimizer)
    restored = checkpoints.restore(variables)
    step, state = restored or (0, {})
    progress = Progress(**state)
    alike = {name: value for name, value in flags.flag_values_dict().items() if name not in ("run_dir", "cache_dir")}
    workers.check_alike(flags=alike, text=corpus.fingerprint, tokenizer=tokenizer.fingerprint(), last_step=step)

    def open_log() -> report.MetricsLog:
        return report.MetricsLog(run_dir, step, objective.FIGURES[0], evaluated=not progress.evaluating)

    if chief:
        for folder in (run_dir, run_dir / "tokenizer"):
            files.remove_partials(folder)  # What a kill left behind.
        if not resuming:
            tokenizer.save(run_dir / "tokenizer")
            runs.write_config(run_dir, flags.model, model, tokenizer)
            record = {"fingerprint": corpus.fingerprint, "report": corpus.report}
            files.atomic_write(run_dir / "corpus.json", json.dumps(record, indent=2) + "\n")
        cli.write_flags(flags, run_dir / "flags.cfg", leave_out=("run_dir", "resume", "cache_dir"))
        metrics = open_log()
        print(
            f"{flags.model}: {model.count_params():,} parameters; {len(train_ids):,} tokens in "
            f"{len(train_rows):,} rows to train on, {train_rows.padding_share:.1%} of them padding, "
            f"{len(held_out_ids):,} held out; {flags.steps * flags.batch_size / len(train_rows):.1f} epochs"
        )
        baselines = objective.baselines(np.asarray(train_ids), list(held_out.as_numpy_iterator()))
        if resuming:
            print(f"going on at step {step:,} of {flags.steps:,}" + ("" if restored else ": no checkpoint was saved"))

    # ---------------------------------------------------------------- Loop
    def training_batches(context=pipeline.ALONE):
        return pipeline.training_batches(
            train_rows,
            objective,
            batch_size=flags.batch_size,
            seed=flags.seed,
            first_step=step + progress.passed_over,
            num_steps=flags.steps + progress.passed_over,
            places=counted,
            context=context,
            max_bad_rows=flags.max_bad_rows,
        )

    def save(is_best: bool = False, interim: bool = False) -> None:
        if chief:
            if not (run_dir / "flags.cfg").exists():
                raise UserError(f"{run_dir}: is no longer the folder of this run (no flags.cfg); put it back")
            # Written while training goes on.
            state = dataclasses.asdict(progress)
            checkpoints.save(step, variables, state, best=is_best, wait=False, interim=interim)

    def mark_best() -> None:
        if chief and progress.best_step and checkpoints.path(progress.best_step).is_dir():
            checkpoints.mark_best(progress.best_step)

    def settle() -> None:
        """Until all that was saved is written, and every worker knows: whoever ends before may end the chief too."""
        checkpoints.wait()
        workers.any(False)

    def due(every: int) -> bool:
        return step % every == 0 or step == flags.steps

    evaluation = distribution.spread(strategy, evaluation_batches)
    tokens_a_step = flags.batch_size * flags.sequence_length
    places_of = {name: spec.shape[1] for name, spec in held_out.element_spec.items() if spec.shape.rank > 1}
    flops_a_row = describe.training_flops(
        model,
        flags.sequence_length,
        targets=places_of.get("decoder_token_ids", 0),
        predictions=places_of.get("masked_positions", 0),
    )
    measured_step, measured_at = step, time.monotonic()
    step_seconds = CALL_SECONDS  # Of one update, as far as is known.
    at_once = len(cluster.addresses["worker"]) if flags.strategy == "parameter_server" else 1  # Updates side by side.
    mark_best()  # The kill may have come between saving and marking.
    if flags.on_nonfinite == "rollback" and not checkpoints.steps(interim=False):
        save()  # What there is to go back to.
    counted: dict[int, tuple[int, int]] = {}  # By step, of this worker's part.
    iterator = iter(distribution.spread(strategy, training_batches))

    workers.any(False)  # Until all of them are ready, there is nothing to save.
    stop.ready, stopping = True, False
    bar = report.ProgressBar(step, flags.steps) if chief else None
    with bar if bar else contextlib.nullcontext():
        while step < flags.steps or progress.evaluating:
            if not progress.evaluating:
                # As many updates as fit before the next thing to do; none where somebody is asked to stop.
                cadences = (flags.log_every, flags.evaluate_every, flags.checkpoint_every)
                count = min(flags.steps_per_call, flags.steps - step, *(every - step % every for every in cadences))
                count = min(count, max(at_once, int(CALL_SECONDS / step_seconds)))
                count = workers.fewest(0 if stop.asked else count)
                if not count:
                    stopping = True
                    break
                began = time.monotonic()
                new = run_steps(iterator, tf.constant(count)).numpy()
                step_seconds = (time.monotonic() - began) / count

                finite = np.isfinite(new)
                for number, is_finite in enumerate(finite, step + 1):
                    if is_finite:
                        progress.in_a_row = 0 if number >= progress.failed_at else progress.in_a_row
                        continue
                    if flags.on_nonfinite == "stop" or progress.in_a_row >= flags.max_nonfinite:
                        settle()
                        raise CheckFailed(not_finite(flags, number, progress.in_a_row, checkpoints.steps()))
                    logging.warning(
                        "the loss of step %d, or its gradient, is not finite: %s", number, flags.on_nonfinite
                    )
                    progress.nonfinite += 1
                    progress.in_a_row += 1
                    if flags.on_nonfinite == "rollback":
                        progress.failed_at = max(progress.failed_at, number)
                        break
                if flags.on_nonfinite == "rollback" and not np.all(finite):
                    settle()
                    back = checkpoints.restore(variables, interim=False)
                    if chief and back is None:
                        raise UserError(f"{run_dir / 'checkpoints'}: its checkpoints are gone; put them back")
                    step, state = back or (-1, {})  # Of a worker that does not see what the chief does.
                    workers.check_alike(last_step=step)
                    progress = dataclasses.replace(
                        Progress(**state),
                        passed_over=progress.passed_over + number - step,
                        nonfinite=progress.nonfinite,
                        in_a_row=progress.in_a_row,
                        failed_at=progress.failed_at,
                    )
                    if chief:
                        checkpoints.remove_after(step)
                    mark_best()
                    measured_step, measured_at = step, time.monotonic()
                    counted = {}
                    iterator = iter(distribution.spread(strategy, training_batches))
                    if chief:
                        metrics.close()
                        metrics = open_log()
                    continue
                progress.losses += [float(loss) for loss in new[finite]]
                mine = [counted.pop(i + progress.passed_over) for i in range(step, step + count)]
                progress.places.append(workers.totals(*(sum(numbers) for numbers in zip(*mine))))
                step += count

                if due(flags.log_every):
                    now = time.monotonic()
                    record = {
                        "step": step,
                        **({"loss": math.fsum(progress.losses) / len(progress.losses)} if progress.losses else {}),
                        **({"nonfinite": progress.nonfinite} if progress.nonfinite else {}),
                        "padding_share": progress.padding_share(),
                        # Of the last update: those that were left out took none.
                        "learning_rate": float(schedule(max(int(optimizer.iterations.numpy()) - 1, 0))),
                        "tokens_per_second": (step - measured_step) * tokens_a_step / (now - measured_at),
                    }
                    flops = record["tokens_per_second"] / flags.sequence_length * flops_a_row
                    record["model_tflops"] = flops / 1e12  # A second.
                    if flags.peak_tflops:
                        record["mfu"] = flops / 1e12 / flags.peak_tflops
                    progress.losses, progress.places = [], []
                    measured_step, measured_at = step, now
                    if bar:
                        metrics.write(record)
                        bar.show(step, record)
                progress.evaluating = due(flags.evaluate_every)

            is_best = False
            if progress.evaluating:
                with optimizers.averaged(optimizer):
                    figures = evaluate(evaluation, stopped=lambda: workers.any(stop.asked))
                if figures is None:
                    stopping = True
                    break
                progress.evaluating = False
                if bar:
                    metrics.write({"step": step} | figures)
                    bar.print(report.evaluation_table(step, figures, baselines, objective.FIGURES))
                loss = figures.get(objective.main_metric, math.nan)
                if math.isfinite(loss) and (progress.best is None or loss < progress.best):
                    progress.best, progress.best_step, is_best = loss, step, True
                measured_step, measured_at = step, time.monotonic()  # An evaluation is no training time.
            if is_best or due(flags.checkpoint_every):
                save(is_best)
        if stopping:
            save(interim=True)
        settle()
    if chief:
        metrics.close()
        if stopping:
            why = stop.asked or "another worker's signal"
            print(f"stopped by {why} at step {step:,}; all is saved, and the same command goes on from there")
        else:
            print(f"done: {run_dir} holds the run; its curve is {run_dir / 'loss.png'}")
    return cli.STOPPED if stopping else cli.DONE


def not_finite(flags: absl_flags.FlagValues, step: int, in_a_row: int, saved: list[int]) -> str:
    """What to say of a loss that ends the run."""
    remedy = (
        f"begin anew in another --run_dir, with --learning_rate below {flags.learning_rate:g}"
        + (f" or --clip_norm below {flags.clip_norm:g}" if flags.clip_norm else " or with --clip_norm")
        + (", or go on past those batches with --on_nonfinite=rollback" if flags.on_nonfinite == "stop" else "")
    )
    count = f" after {in_a_row} others with nothing gained between" if in_a_row else ""
    return (
        f"the loss of step {step}, or its gradient, is not finite{count}; nothing was saved after step "
        f"{saved[-1] if saved else 0}; {remedy}"
    )


@contextlib.contextmanager
def explained(flags: absl_flags.FlagValues, replicas: int):
    """Turns what TensorFlow raises in the middle of a run into a line that helps.

    Raises:
      UserError: the memory does not suffice, or a row could not be read.
    """
    import tensorflow as tf

    try:
        yield
    except (tf.errors.ResourceExhaustedError, MemoryError) as error:
        share = flags.batch_size // replicas
        more = next((n for n in range(flags.accumulation + 1, share + 1) if share % n == 0), None)
        shape = re.search(r"tensor with shape\[[\d,]*\]", str(error))
        raise UserError(
            f"out of memory{f' at a {shape[0]}' if shape else ''} in a step of {share // flags.accumulation} rows of "
            f"{flags.sequence_length} tokens at a time: "
            + (f"add --accumulation={more}, which computes the same with {share // more}; or " if more else "")
            + "begin anew in another --run_dir with a lower --batch_size or --sequence_length, or a smaller model"
        ) from None
    except tf.errors.OpError as error:
        found = re.search(r"UserError: (.*)", error.message)  # An exception in the input pipeline arrives as text.
        if found is None:
            raise
        raise UserError(found[1]) from None


def check_run_dir(flags: absl_flags.FlagValues, run_dir: pathlib.Path) -> bool:
    """True if `run_dir` holds a run to go on with.

    Raises:
      UserError: it holds one that --noresume forbids, or one that other flags made, which are named.
    """
    record = run_dir / "flags.cfg"
    if not record.exists():
        # flags.cfg is written last: with these alone a run was killed while it began, and begins again.
        begun = {"tokenizer", "config.json", "corpus.json", files.LOCK}
        strange = run_dir.exists() and not run_dir.is_dir()
        strange = strange or (
            run_dir.exists()
            and any(e.name not in begun and not e.name.endswith(files.PARTIAL) for e in run_dir.iterdir())
        )
        if strange:
            raise UserError(f"--run_dir={run_dir}: exists and holds no run (no flags.cfg); name a new folder")
        if not run_dir.exists():
            files.check_can_be_made(run_dir, "run_dir")
        return False
    if not flags.resume:
        raise UserError(f"--run_dir={run_dir}: holds a run already; name a new folder, or leave out --noresume")
    before = absl_flags.FlagValues()
    define_flags(before)
    cli.parse(before, [f"--flagfile={record}", f"--run_dir={run_dir}"])
    changed = [name for name in flags if name not in FREE_FLAGS and flags[name].value != before[name].value]
    if (flags.on_nonfinite == "skip") != (before["on_nonfinite"].value == "skip") and flags.precision != "float16":
        changed.append("on_nonfinite")  # The optimizer has a variable more that skips.
    if changed:
        listed = ", ".join(f"--{name} ({before[name].value} -> {flags[name].value})" for name in changed)
        raise UserError(f"--run_dir={run_dir}: was begun with other flags: {listed}; keep them, or name a new folder")
    if flags.steps != before["steps"].value and flags.schedule in ("linear", "cosine"):
        logging.warning("--steps changes from %d to %d, and the schedule with it", before["steps"].value, flags.steps)
    if flags.accumulation != before["accumulation"].value:
        logging.warning(
            "--accumulation changes from %d to %d: the same updates, dropout drawn anew",
            before["accumulation"].value,
            flags.accumulation,
        )
    return True


def open_packed(flags: absl_flags.FlagValues):
    """The PackedFolder that --corpus names, None where it names text; the flags that packing decided are set.

    Raises:
      UserError: the folder holds no packed text, or a flag was given that contradicts it.
    """
    if not os.path.isdir(os.path.expanduser(flags.corpus)):
        return None
    from tfzoo.data.packed import PackedFolder

    folder = PackedFolder.open(flags.corpus)
    given = cli.explicit_flags(flags)
    for name, value in folder.flags.items():
        if name in given and given[name] != value:
            raise UserError(
                f"--{name}={given[name]}: {folder.folder} was packed with --{name}={value}; leave it out, or pack the "
                "text again"
            )
        flags[name].value = value
    return folder


def cache_folder(flags: absl_flags.FlagValues) -> pathlib.Path:
    """--cache_dir, or where the cache is without it."""
    return pathlib.Path(flags.cache_dir or os.path.expanduser("~/.cache/tfzoo"))


def read_corpus(
    flags: absl_flags.FlagValues, run_dir: pathlib.Path, cache_dir: pathlib.Path, resuming: bool, packed_folder=None
):
    """(corpus, tokenizer), the corpus being `packed_folder` where there is one; its files are checked here.

    A resumed run must find the text and the tokenizer that it began with.
    """
    from tfzoo import text
    from tfzoo.data.corpus import load_corpus
    from tfzoo.data.tokenized import cached_tokenizer
    from tfzoo.text.wordpiece import WordPiece
    from tfzoo.training import runs

    if packed_folder:
        packed_folder.verify()
    corpus = packed_folder or load_corpus(
        flags.corpus,
        cache_dir=cache_dir,
        text_field=flags.text_field,
        policy=flags.bad_text,
        raw=flags.raw_text,
        held_out=flags.held_out,
    )
    if resuming:
        try:
            before = json.loads((run_dir / "corpus.json").read_text())["fingerprint"]
        except (OSError, ValueError, KeyError, TypeError):
            raise UserError(
                f"{run_dir / 'corpus.json'}: missing or damaged; put it back, or name a new --run_dir"
            ) from None
        if before != corpus.fingerprint:
            raise UserError(
                f"--corpus={flags.corpus}: the text is not the one this run began with "
                f"(fingerprint {before[:12]}, now {corpus.fingerprint[:12]}); "
                "restore the packages or files, or name a new --run_dir"
            )
        return corpus, runs.tokenizer_of(run_dir)
    given = None
    if flags.vocab_file:
        given = WordPiece.from_file(flags.vocab_file, flags.lowercase)
    elif flags.tokenizer_dir:
        given = text.load(flags.tokenizer_dir)
    if packed_folder:
        if given is not None:
            name = f"--vocab_file={flags.vocab_file}" if flags.vocab_file else f"--tokenizer_dir={flags.tokenizer_dir}"
            packed_folder.check_tokenizer(given, name)
        return corpus, packed_folder.tokenizer
    if given is not None:
        return corpus, given
    return corpus, cached_tokenizer(corpus, flags.tokenizer, flags.vocab_size, flags.lowercase, cache_dir)


def read_rows(flags: absl_flags.FlagValues, corpus, tokenizer, objective, cache_dir: pathlib.Path):
    """Rows and token ids of a Corpus or a PackedFolder: ((train, held out), (train, held out)).

    Raises:
      UserError: a part is empty.
    """
    from tfzoo.data.packed import PARTS, PackedFolder
    from tfzoo.data.tokenized import cached

    if isinstance(corpus, PackedFolder):
        return tuple(corpus.rows(part) for part in PARTS), tuple(corpus.token_ids(part) for part in PARTS)
    parts = [
        cached(documents, tokenizer, corpus.fingerprint + part, cache_dir)
        for part, documents in zip(PARTS, (corpus.train, corpus.held_out), strict=True)
    ]
    rows = tuple(objective.rows(part) for part in parts)
    for name, part in zip(("training", "held-out"), rows, strict=True):
        if not len(part):
            raise UserError(f"--corpus={flags.corpus}: its {name} part holds no words; give more text")
    return rows, tuple(part.token_ids for part in parts)


def make_objective(flags: absl_flags.FlagValues, tokenizer):
    """The objective that the flags name."""
    if flags.objective == "masked_lm":
        from tfzoo.objectives.masked_lm import MaskedLM

        return MaskedLM(
            tokenizer,
            flags.sequence_length,
            mask_rate=flags.mask_rate,
            whole_words=flags.whole_words,
            next_sentence=flags.next_sentence,
            pack=flags.pack,
        )
    if flags.objective == "causal":
        from tfzoo.objectives.causal import Causal

        return Causal(tokenizer, flags.sequence_length, pack=flags.pack)
    from tfzoo.objectives.span_corruption import SpanCorruption

    return SpanCorruption(
        tokenizer,
        flags.sequence_length,
        noise_density=flags.mask_rate,
        mean_span_length=flags.mean_span,
        pack=flags.pack,
    )


def check_model(flags: absl_flags.FlagValues, page, objective) -> None:
    """Raises UserError where a model cannot be trained by the objective."""
    from tfzoo import nn

    kind, what, example = {
        "masked_lm": (nn.EncoderModel, "an encoder", "bert_small or roberta_base"),
        "causal": (nn.DecoderModel, "a causal decoder", "gpt2 or llama_tiny"),
        "span_corruption": (nn.EncoderDecoderModel, "an encoder-decoder", "t5_small or bart_base"),
    }[flags.objective]
    reads_masks = flags.objective != "masked_lm" or "masked_positions" in page.Model.INPUTS
    if not issubclass(page.Model, kind) or not reads_masks:
        raise UserError(f"--model={flags.model}: --objective={flags.objective} needs {what}, such as {example}")
    if set(objective.heads) - set(page.Model.HEADS):
        raise UserError(f"--model={flags.model}: it has no next-sentence head; add --nonext_sentence")
    if "document_ids" in set(objective.inputs) - set(page.Model.INPUTS):
        raise UserError(f"--model={flags.model}: it cannot tell documents packed in a row apart; add --nopack")


def check_sizes(flags: absl_flags.FlagValues, config, tokenizer, num_replicas: int) -> None:
    """Raises UserError where sizes that are each allowed do not go together."""
    if flags.sequence_length > config.max_positions:
        raise UserError(
            f"--sequence_length={flags.sequence_length}: must not exceed the model's max_positions "
            f"({config.max_positions})"
        )
    if tokenizer.vocab_size != config.vocab_size:
        raise UserError(
            f"--overrides=vocab_size={config.vocab_size}: is not the tokenizer's ({tokenizer.vocab_size}); leave it out"
        )
    if flags.batch_size % num_replicas:
        raise UserError(
            f"--batch_size={flags.batch_size}: must be a multiple of the {num_replicas} devices that share it"
        )
    if flags.batch_size // num_replicas % flags.accumulation:
        shared = f", shared by {num_replicas} devices" if num_replicas > 1 else ""
        raise UserError(f"--accumulation={flags.accumulation}: must divide --batch_size ({flags.batch_size}{shared})")


def make_step(strategy, model, optimizer, objective, **options):
    """The training steps: `run(iterator, count) -> losses [count]`, float32, one of each update.

    A loss is NaN also where only the gradient is not finite: the weights are spoilt then, or an optimizer that skips
    has left the update out. The options are make_replica_step's.
    """
    import tensorflow as tf

    replica_step = make_replica_step(model, optimizer, objective, **options)

    @tf.function
    def run(iterator, count):
        losses = tf.TensorArray(tf.float32, count)
        for i in tf.range(count):
            loss = strategy.run(replica_step, (next(iterator),))
            losses = losses.write(i, strategy.experimental_local_results(loss)[0])
        return losses.stack()

    if not isinstance(strategy, tf.distribute.ParameterServerStrategy):
        return run

    coordinator = tf.distribute.coordinator.ClusterCoordinator(strategy)
    scheduled = tf.function(lambda batch: strategy.run(replica_step, (batch,)))

    def run_asynchronously(iterator, count):
        """Workers take batches as they come, and compute with weights that others are changing."""
        first = int(optimizer.iterations.numpy())
        losses = [coordinator.schedule(scheduled, args=(next(iterator),)) for _ in range(int(count))]
        coordinator.join()
        # Of updates at the same moment the counter, which the learning rate follows, loses some.
        optimizer.iterations.assign(first + int(count))
        return tf.stack([loss.fetch() for loss in losses])

    return run_asynchronously


def make_replica_step(
    model,
    optimizer,
    objective,
    *,
    num_parts: int = 1,
    clip_norm: float = 0.0,
    clip_each: float = 0.0,
):
    """`step(batch) -> loss`: a replica's part of an update, and the loss of all replicas' batches.

    Any number of replicas and parts computes what one computes, because of the order: sums of gradients, loss
    and weight first over the parts, then over the replicas, and only then the division, the check for
    infinities, clipping, decay and update.

    Args:
      num_parts: the replica's batch is computed in that many parts, one after the other.
      clip_norm: longest gradient over all variables; 0 does not clip.
      clip_each: longest gradient of each variable by itself, clipped before; 0 does not.
    """
    import keras
    import tensorflow as tf

    from tfzoo.training import optimizers

    variables = [variable.value for variable in model.trainable_variables]
    skips = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
    dynamic_scale = optimizer.dynamic_scale if skips else None  # Which SkipNonFinite leaves at 1.

    def sums(batch):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(variables)
            loss, weight = objective.loss(model, batch, training=True)
            scaled = loss if dynamic_scale is None else loss * dynamic_scale.value
        # A gather's gradient is sparse, and those are summed differently over replicas: all become dense.
        gradients = tape.gradient(scaled, variables, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        return [loss, weight, *map(tf.convert_to_tensor, gradients)]

    def sums_of_parts(batch):
        if num_parts == 1:
            return sums(batch)
        parts = {name: tf.reshape(x, [num_parts, -1, *x.shape[1:]]) for name, x in batch.items()}

        def body(i, totals):
            new = sums({name: x[i] for name, x in parts.items()})
            return i + 1, [total + part for total, part in zip(totals, new, strict=True)]

        zeros = [tf.zeros([]), tf.zeros([]), *map(tf.zeros_like, variables)]
        return tf.while_loop(lambda i, _: i < num_parts, body, (0, zeros), parallel_iterations=1)[1]

    @tf.autograph.experimental.do_not_convert  # It needs no Python rewritten, which takes seconds.
    def replica_step(batch):
        totals = sums_of_parts(batch)
        replica = tf.distribute.get_replica_context()
        if replica.num_replicas_in_sync > 1:
            totals = replica.all_reduce(tf.distribute.ReduceOp.SUM, totals)
        loss, weight, *gradients = totals
        weight = tf.maximum(weight, 1.0)
        scale = weight if dynamic_scale is None else weight * dynamic_scale.value
        shares = [1.0] * len(gradients)  # What is left of each when it is clipped by itself.
        norm = tf.linalg.global_norm(gradients) / scale
        if clip_each:
            norms = [tf.norm(gradient) / scale for gradient in gradients]
            shares = [clip_each / tf.maximum(each, clip_each) for each in norms]
            norm = tf.norm(tf.stack(norms) * tf.stack(shares))
        factor = 1.0 / weight  # The loss scale stays in: Keras's LossScaleOptimizer divides by it.
        if clip_norm:
            factor *= clip_norm / tf.maximum(norm, clip_norm)
        if skips:  # The optimizer looks at the gradients alone, each by itself.
            factor = tf.where(tf.math.is_finite(loss) & tf.math.is_finite(norm), factor, math.nan)
        # One product a gradient: TensorFlow may reorder several, and not alike on all replicas.
        optimizer.apply([gradient * (factor * share) for gradient, share in zip(gradients, shares, strict=True)])
        fine = tf.math.is_finite(norm)
        if skips and not isinstance(optimizer, optimizers.SkipNonFinite):
            fine |= scale > 1.0  # While the mean loss is scaled by more than 1, it is too much: float16's usual way.
        return tf.where(fine, loss / weight, math.nan)

    return replica_step


def make_evaluation(strategy, model, objective):
    """`evaluate(batches) -> {name: float}`: the objective's metrics, and each loss's perplexity.

    batches: as the strategy distributes them. `evaluate(batches, stopped)` asks before each whether to stop, and
    returns None then.
    """
    import tensorflow as tf

    @tf.function(autograph=False)
    def totals(batch):
        metrics = strategy.run(lambda part: objective.metrics(model, part), (batch,))
        if strategy.num_replicas_in_sync == 1:
            return metrics
        return tf.nest.map_structure(lambda x: strategy.reduce("SUM", x, axis=None), metrics)

    def computed(batch):
        if not isinstance(strategy, tf.distribute.ParameterServerStrategy):
            return totals(batch)
        return tf.distribute.coordinator.ClusterCoordinator(strategy).schedule(totals, args=(batch,)).fetch()

    def evaluate(batches, stopped=lambda: False):
        sums: dict[str, list[float]] = {}
        for batch in batches:
            if stopped():
                return None
            for name, (value, weight) in computed(batch).items():
                entry = sums.setdefault(name, [0.0, 0.0])
                entry[0] += float(value)
                entry[1] += float(weight)
        figures = {name: value / weight for name, (value, weight) in sums.items() if weight}
        return figures | {
            name.replace("_loss", "_perplexity"): math.exp(min(value, 700.0))
            for name, value in figures.items()
            if name == objective.main_metric
        }

    return evaluate


class StopOnSignal:
    """Turns the first SIGTERM or SIGINT into a wish to stop; a second one acts at once.

    Before `ready` is set there is nothing to be saved, and the first one acts at once too.
    """

    def __init__(self, alone: bool):
        """alone: there are no other processes to be waited for."""
        self.asked, self.ready, self._alone = "", False, alone
        self.listen()

    def listen(self):
        """Takes the signals, again where somebody else has taken them since."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note)

    def _note(self, number, frame):
        if not self.ready:
            why = signal.Signals(number).name
            print(f"stopped by {why} before the first step; there was nothing to save", flush=True)
            if self._alone:
                raise SystemExit(cli.STOPPED)
            os._exit(cli.STOPPED)  # An exception would get lost in TensorFlow, where it waits for other workers.
        self.asked = signal.Signals(number).name
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, signal.SIG_DFL)


if __name__ == "__main__":
    sys.exit(cli.run(main, define_flags))
