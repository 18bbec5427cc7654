"""The training loop: advance, evaluate, save, roll back.

    from tfzoo.training import TrainConfig, Trainer

    trainer = Trainer(TrainConfig(run_dir="runs/mine", model="bert_mini", steps=2000))
    trainer.run()
    trainer.models["main"]   # a Keras model

When it is started again with the same run_dir, the run resumes where it stopped and logs what an uninterrupted run
would have logged.
"""

import contextlib
import dataclasses
import json
import math
import pathlib
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging

from tfzoo import cli, files, lazy
from tfzoo import progress as progress_lib
from tfzoo.errors import CheckFailed, UserError, suggest
from tfzoo.evaluation.evaluator import Evaluator
from tfzoo.objectives.objective import direction_of
from tfzoo.tasks import evaluation
from tfzoo.training import checkpoint, distribution, explain, guard, layerwise, report, resume, state
from tfzoo.training import inputs as inputs_lib
from tfzoo.training.config import TrainConfig
from tfzoo.training.signals import StopOnSignal
from tfzoo.training.stages import Stage, stage_at, stages_of
from tfzoo.training.state import Progress

# These import TensorFlow, which is slow; errors in the options are reported before that.
keras, tf = lazy.module("keras"), lazy.module("tensorflow")
costs = lazy.module("tfzoo.models.costs")
initialize = lazy.module("tfzoo.training.initialize")
optimizers = lazy.module("tfzoo.training.optimizers")
runs = lazy.module("tfzoo.training.runs")
page = lazy.module("tfzoo.training.page")
step_lib = lazy.module("tfzoo.training.step")
task_inputs = lazy.module("tfzoo.training.task_inputs")

CALL_SECONDS = 5.0  # Maximum duration of one call of several updates, because a signal waits for the call to end.
ADVANCED, ROLLED_BACK, STOPPED = "advanced", "rolled back", "stopped"


class Callback:
    """Hooks into a training run; a subclass overrides the methods that it needs. Of several workers, only the chief
    calls them."""

    def on_log(self, trainer: "Trainer", record: Mapping[str, float]) -> None:
        """Called after a line of metrics.jsonl was written: "step", "loss", "learning_rate", ..."""

    def on_evaluation(self, trainer: "Trainer", figures: Mapping[str, float]) -> None:
        """Called after an evaluation on the held-out text at `trainer.step`."""

    def on_save(self, trainer: "Trainer", folder: pathlib.Path) -> None:
        """Called when a checkpoint of `trainer.step` is being written to `folder`, in the background."""


class Trainer:
    """A training run.

    Args:
      config: the configuration of the run.
      callbacks: hooks into the run. `trainer.request_stop()` ends the run like a signal.
      evaluators: evaluators for the held-out rows, in addition to those of the objective.
      given: the explicitly specified options, with their values; by default, those that differ from their defaults.
        They must not contradict a folder of packed rows.

    Attributes, available once `run` has started:
      models: role -> Keras model. step: number of updates so far. progress: see state.Progress. stage: the current
        stage, see stages.Stage. inputs: those of the current stage, see inputs.Inputs.
    """

    def __init__(
        self,
        config: TrainConfig,
        *,
        callbacks: Sequence[Callback] = (),
        evaluators: Sequence[Evaluator] = (),
        given: Mapping[str, Any] | None = None,
    ):
        self._given = config.given() if given is None else given
        self.config, self.callbacks, self._extra_evaluators = config, tuple(callbacks), tuple(evaluators)
        self.run_dir = pathlib.Path(config.run_dir)
        self.step, self.progress = 0, Progress()
        self._check_given()
        self.stages = () if config.task else stages_of(config)  # The number of rows determines a task's.
        self.stage: Any = self.stages[0] if self.stages else None
        self.step_seconds = CALL_SECONDS  # Estimated duration of one update.
        self.counted: dict[int, tuple[int, int]] = {}  # The token positions of this worker's batches, by step.
        self._measured_step, self._measured_at = 0, time.monotonic()
        self.log: report.MetricsLog | None = None  # Only in the chief.
        self.bar: Any = None
        self.baselines: dict[str, dict[str, float]] = {}  # Of the held-out rows of the current stage.
        self.loaded: Any = None  # The outcome of --init_from: an initialize.Loaded.

    # ------------------------------------------------------------------ The run

    def run(self) -> int:
        """Trains until the last step, or until a stop is requested.

        Returns:
          cli.DONE, or cli.STOPPED with everything saved.

        Raises:
          UserError: an option, the text, the folder or the machine is unsuitable.
          CheckFailed: a loss or gradient is not finite, and --on_nonfinite ends the run.
          WorkerLost: another process of the run was lost.
        """
        with contextlib.ExitStack() as closing:
            self._open(closing)
            self._resume(closing)
            self._begin()
            with self.bar or contextlib.nullcontext():
                done = self._loop()
                if not done:
                    self.save(interim=True)
                self._settle()
            if self.log:
                self.log.close()
                if done:
                    page.write(self.run_dir)
                cli.show(self._farewell(done))
            return cli.DONE if done else cli.STOPPED

    def _loop(self) -> bool:
        """Returns True at the last step, or False if a stop was requested earlier."""
        while not self._finished():
            if self._due_stage() is not self.stage:
                self.enter(self._due_stage())
            if not self.progress.evaluating:
                outcome = self.advance()
                if outcome == STOPPED:
                    return False
                if outcome == ROLLED_BACK:
                    continue
            is_best: bool | None = False
            if self.progress.evaluating:
                is_best = self.evaluate()
                if is_best is None:
                    return False
            if is_best or self._due(self.config.checkpoint_every) or self._finished():
                self.save(best=bool(is_best))
        return True

    def _finished(self) -> bool:
        """Returns whether the last step was made, or --early_stopping ends the run, and the last evaluation is done."""
        patience = self.config.early_stopping
        early = patience > 0 and self.progress.since_best >= patience
        return (early or self.step >= self.config.steps) and not self.progress.evaluating

    # ------------------------------------------------------------------ Its actions

    def enter(self, stage: Stage) -> None:
        """Starts a stage, or goes on with it: reads its rows, and prepares functions for the shapes of its batches."""
        before, self.stage, self.inputs = self.stage, stage, self._inputs[stage.number]
        objective, replicas = self.inputs.objective, self.strategy.num_replicas_in_sync
        config = stage.config
        self.run_steps = step_lib.make_step(
            self.strategy,
            self.models,
            self.optimizer,
            objective,
            num_parts=config.accumulation,
            clip_norm=config.clip_norm,
            clip_each=config.clip_each,
        )
        evaluators = [*objective.evaluators(), *self._extra_evaluators]
        sources = self.inputs.evaluated_sources(replicas)
        self.measure = step_lib.make_evaluation(self.strategy, self.models, evaluators, sources)
        held_out = self.inputs.evaluation_batches(replicas)  # The batches of a single device.
        if self.log and not (self.baselines and stage.comparable(before)):
            with progress_lib.stage("computing baselines"):
                self.baselines = self.inputs.baselines(list(held_out.as_numpy_iterator()), replicas)
            files.atomic_write(self.run_dir / "baselines.json", json.dumps(self.baselines, indent=2) + "\n")
        self.evaluation = distribution.spread(
            self.strategy, lambda context: self.inputs.evaluation_batches(replicas, context)
        )
        lengths = {name: spec.shape[1] for name, spec in held_out.element_spec.items() if spec.shape.rank > 1}
        self._flops_per_row = sum(
            costs.training_flops(
                model,
                config.sequence_length,
                targets=lengths.get("decoder_token_ids") or 0,
                predictions=lengths.get("masked_positions") or 0,
            )
            for model in self.models.values()
        )
        self.step_seconds = CALL_SECONDS
        self._restart_clock()
        self._read_on()

    def advance(self) -> str:
        """Makes as many updates as possible before the next log line, evaluation or checkpoint.

        Returns:
          ADVANCED, ROLLED_BACK, or STOPPED without an update.

        Raises:
          CheckFailed: a loss or gradient is not finite, and that ends the run.
        """
        count = self.workers.fewest(0 if self.stop.asked else self._updates_at_once())
        if not count:
            return STOPPED
        start = time.monotonic()
        losses = self.run_steps(self.iterator, tf.constant(count)).numpy()
        self.step_seconds = (time.monotonic() - start) / count

        config = self.config
        verdict = guard.judge(losses.tolist(), self.step, self.progress, config.on_nonfinite, config.max_nonfinite)
        self.progress = verdict.progress
        for number in verdict.nonfinite:
            logging.warning("the loss or gradient of step %d is not finite: %s", number, config.on_nonfinite)
        if verdict.action == "stop":
            self._settle()
            raise CheckFailed(
                explain.not_finite(config, verdict.step, verdict.progress.in_a_row, self.checkpoints.steps())
            )
        if verdict.action == "roll_back":
            self.roll_back(verdict.step)
            return ROLLED_BACK
        self._count(losses)
        if self._due(config.log_every):
            self._log()
        self.progress = dataclasses.replace(self.progress, evaluating=self._due(config.evaluate_every))
        return ADVANCED

    def evaluate(self) -> bool | None:
        """Evaluates on the held-out rows.

        Returns:
          Whether the model is the best so far; None if a stop was requested.
        """
        with optimizers.averaged(self.optimizer):
            figures = self.measure(self.evaluation, stopped=lambda: self.workers.any(self.stop.asked))
        if figures is None:
            return None
        name, direction = self._best_metric(figures)
        before = self.progress
        if not self.stage.comparable(stage_at(self.stages, before.best_step)):
            before = dataclasses.replace(before, best=None)
        self.progress = before.measured(self.step, figures.get(name, math.nan), direction)
        if self.log:
            self.log.write({"step": self.step} | self._of_stage() | figures)
            table = report.evaluation_table(self.step, figures, self.baselines, self.inputs.objective.FIGURES)
            length = f"\n  in rows of {self.stage.config.sequence_length} tokens" if self.config.stages else ""
            self.bar.print(table + length)
            for callback in self.callbacks:
                callback.on_evaluation(self, figures)
        is_best = self.progress.best != before.best
        if self.log and is_best and self.config.task:
            self._write_evaluation()
        self._restart_clock()  # An evaluation is not training time.
        return is_best

    def save(self, best: bool = False, interim: bool = False) -> None:
        """Writes a checkpoint in the background.

        Args:
          best: the model is the best of the run so far.
          interim: the run stops between two regular checkpoints.

        Raises:
          UserError: the folder of the run no longer exists, or cannot be written.
        """
        if not self.chief:
            return
        if not (self.run_dir / "flags.cfg").exists():
            raise UserError(f"{self.run_dir}: no longer contains this run (no flags.cfg); restore it")
        folder = self.checkpoints.save(
            self.step, self.variables, dataclasses.asdict(self.progress), best=best, wait=False, interim=interim
        )
        for callback in self.callbacks:
            callback.on_save(self, folder)

    def roll_back(self, failed: int) -> None:
        """Returns to the newest checkpoint and skips the batches up to that of the update `failed`.

        Raises:
          UserError: the checkpoints no longer exist.
        """
        self._settle()
        restored = self.checkpoints.restore(self.variables, interim=False)
        if self.chief and restored is None:
            raise UserError(f"{self.run_dir / 'checkpoints'}: the checkpoints no longer exist; restore them")
        self.step, saved = restored or (-1, {})  # -1 in a worker that does not see the chief's checkpoints.
        self.workers.check_alike(last_step=self.step)
        self.progress = guard.after_rollback(Progress.read(saved, self.run_dir), self.progress, self.step, failed)
        if self.chief:
            self.checkpoints.remove_after(self.step)
        self._mark_best()
        self._restart_clock()
        if self._due_stage() is self.stage:  # Otherwise, the loop enters the earlier stage next.
            self._read_on()
        if self.log:
            self.log.close()
            self.log = self._open_log()

    def request_stop(self, why: str = "a callback") -> None:
        """Stops the run before its next update, with everything saved. `why` is printed as the reason."""
        self.stop.asked = self.stop.asked or why

    # ------------------------------------------------------------------ Start

    def _open(self, closing: contextlib.ExitStack) -> None:
        """Sets up devices, inputs, models and the training step. `closing` receives what must be closed at the end."""
        self.config, packed = inputs_lib.find_packed(resume.pin(self.config), self._given)
        config = self.config
        cluster = distribution.read_cluster(config.strategy)
        self.chief = cluster.is_chief  # Only the chief writes and prints.
        self.resuming = resume.check_run_dir(config) if self.chief else (self.run_dir / "flags.cfg").exists()
        if self.resuming and self.chief:
            closing.enter_context(files.Lock(self.run_dir))
        self.stop = StopOnSignal(alone=not cluster.addresses)
        closing.callback(self.stop.release)

        with progress_lib.importing_tensorflow():
            step_lib.make_step  # noqa: B018  (imports it)
        # Reports errors in it before anything is read.
        _, family, model_config = inputs_lib.read_model_config(config, self.run_dir if self.resuming else None)
        layerwise.check(config.freeze, family.Model, model_config)
        if cluster.serves:
            distribution.serve(cluster)
        distribution.wait_for_workers(config.strategy, cluster, self._alike(), config.worker_timeout)
        self.strategy = distribution.make_strategy(config.strategy, num_devices=config.num_devices, tpu=config.tpu)
        closing.enter_context(distribution.losing_workers(self.strategy))
        self.stop.listen()  # TensorFlow's workers replace the handler of SIGTERM.
        replicas = self.strategy.num_replicas_in_sync
        # The number of concurrent updates.
        self._least = len(cluster.addresses["worker"]) if config.strategy == "parameter_server" else 1
        with progress_lib.stage("reading the text"):
            if config.task:
                self._inputs = task_inputs.open_inputs(config, self.resuming, replicas)
                self.config = config = self._inputs[0].config  # With the steps of its epochs.
            else:
                self._inputs = inputs_lib.open_inputs(config, packed, self.resuming, replicas)  # Of each stage.
        self.stages = tuple(inputs.stage for inputs in self._inputs)
        self.stage, self.inputs = self.stages[0], self._inputs[0]
        closing.enter_context(explain.explained(lambda: self.stage.config, replicas))
        self.workers = distribution.Workers(self.strategy)
        with progress_lib.stage("building the model"):
            self._build()

    def _alike(self) -> dict[str, Any]:
        """Returns the options that must be the same in all workers."""
        return {name: value for name, value in self.config.values().items() if name not in ("run_dir", "cache_dir")}

    def _build(self) -> None:
        """Builds the models and the optimizer."""
        config = self.config
        keras.utils.set_random_seed(config.seed)
        policy = "float32" if config.precision == "float32" else f"mixed_{config.precision}"
        self.schedule = optimizers.WarmUp(
            config.learning_rate,
            warmup_steps=config.warmup_steps,
            total_steps=config.steps,
            schedule=config.schedule,
            end=config.final_learning_rate,
            decay_steps=config.decay_steps,
        )
        with self.strategy.scope():
            self.models = self.inputs.objective.build_models(self.inputs.page, self.inputs.model_config, policy)
            if config.init_from and not checkpoint.Checkpoints(self.run_dir / "checkpoints", read_only=True).steps():
                self.loaded = initialize.initialize_all(self.models, config.init_from, self.inputs.tokenizer)
            self.inputs.objective.initialized(self.models)
            if config.remat == "block":
                for model in self.models.values():
                    model.recompute_blocks()
            layerwise.freeze(self.models, config.freeze)
            trained = step_lib.trainable_variables(self.models)
            self.optimizer = optimizers.make_optimizer(
                config.optimizer,
                self.schedule,
                trained,
                weight_decay=config.weight_decay,
                matrix_rate=config.matrix_rate,
                beta_1=config.beta_1,
                beta_2=config.beta_2,
                ema_decay=config.ema_decay,
                loss_scaling=config.precision == "float16",
                skip_nonfinite=config.on_nonfinite == "skip",
                rate_factors=layerwise.rate_factors(self.models, trained, config.layer_decay),
            )

    def _resume(self, closing: contextlib.ExitStack) -> None:
        """Restores the newest intact checkpoint and truncates the log at its step."""
        config = self.config
        if self.chief and not self.resuming:
            with files.writing(self.run_dir):
                self.run_dir.mkdir(parents=True, exist_ok=True)
            closing.enter_context(files.Lock(self.run_dir))
        self.run_id = None  # A worker may not see the chief's files.
        if self.chief:
            self.run_id = runs.id_of(self.run_dir) if self.resuming else secrets.token_hex(8)
        self.checkpoints = checkpoint.Checkpoints(
            self.run_dir / "checkpoints",
            keep=config.keep_checkpoints,
            read_only=not self.chief,
            run_id=self.run_id,
        )
        self.variables = checkpoint.model_variables(self.models, self.optimizer)
        restored = self.checkpoints.restore(self.variables)
        if restored:
            self.step = restored[0]
            self.progress = Progress.read(restored[1], self.checkpoints.path(self.step) / checkpoint.RECORD)
            resume.check_steps(config, self.step)
        elif self.loaded:
            self.progress = Progress(evaluating=True)  # The figures of the initial weights are shown first.
        self.workers.check_alike(
            flags=self._alike(),
            text=self.inputs.corpus.fingerprint,
            tokenizer=self.inputs.tokenizer.fingerprint(),
            last_step=self.step,
        )
        if self.chief:
            self._write_records()
            self.log = self._open_log()
            # Models may share variables.
            shapes = {id(v): v.shape for model in self.models.values() for v in model.weights}
            parameters = sum(math.prod(shape) for shape in shapes.values())
            cli.show(f"{self.inputs.model_name}: {parameters:,} parameters; {self.inputs.summary()}")
            for inputs in self._inputs[1:]:
                sizes = f"sequence_length={inputs.config.sequence_length}, batch_size={inputs.config.batch_size}"
                cli.show(f"from step {inputs.stage.begin:,} on, {sizes}: {inputs.summary()}")
            if self.loaded:
                cli.show(f"initialized from {config.init_from}:\n{self.loaded}")

    def _write_records(self) -> None:
        """Writes the files that describe the run; flags.cfg is written last and marks the folder as that of a run."""
        for folder in (self.run_dir / "tokenizer", self.run_dir / "events"):
            files.check_not_a_link(folder)
            files.remove_partials(folder)  # Leftovers of a killed process.
        files.remove_partials(self.run_dir)
        if not self.resuming:
            corpus = self.inputs.corpus
            self.inputs.tokenizer.save(self.run_dir / "tokenizer")
            names = self.inputs.objective.model_names(self.inputs.model_name)
            task = self.inputs.objective.record() if self.config.task else None
            runs.write_config(self.run_dir, self.models, names, self.inputs.tokenizer, task, run_id=self.run_id)
            if self.config.task and (decoding := self.inputs.objective.generation_config()):
                runs.write_generation_config(self.run_dir, decoding)
            record = {"fingerprint": corpus.fingerprint, "report": corpus.report}
            files.atomic_write(self.run_dir / "corpus.json", json.dumps(record, indent=2) + "\n")
            if self.loaded:
                record = {"init_from": self.config.init_from} | dataclasses.asdict(self.loaded)
                files.atomic_write(self.run_dir / "init_from.json", json.dumps(record, indent=2) + "\n")
        self.config.write(self.run_dir / "flags.cfg")

    def _begin(self) -> None:
        """Prepares the first update."""
        if self.log and self.resuming:
            saved = "" if self.checkpoints.steps() else ": no checkpoint was saved"
            cli.show(f"resuming at step {self.step:,} of {self.config.steps:,}{saved}")
        self.enter(self._due_stage())
        self._mark_best()  # The previous process may have been killed between saving and marking.
        if self.config.on_nonfinite == "rollback" and not self.checkpoints.steps(interim=False):
            self.save()  # The checkpoint that the first rollback returns to.
        self.workers.any(False)  # Waits until all workers are ready; before that, there is nothing to save.
        self.stop.ready = True
        if self.log:
            self.bar = report.ProgressBar(self.step, self.config.steps)

    # ------------------------------------------------------------------ Helpers

    def _check_given(self) -> None:
        if self.config.task and "objective" in self._given:
            raise UserError(f"--objective={self.config.objective}: contradicts --task={self.config.task}; omit one")

    def _best_metric(self, figures: Mapping[str, float]) -> tuple[str, Any]:
        """Returns the figure that selects the best checkpoint, and whether its "min" or "max" is the best.

        Raises:
          UserError: --best_metric is not one of the figures.
        """
        name = self.config.best_metric
        if name is None:
            return self.inputs.objective.best_metric
        if name not in figures:
            raise UserError(f"--best_metric={name}: must be one of {', '.join(figures)}{suggest(name, figures)}")
        return name, direction_of(name)

    def _write_evaluation(self) -> None:
        """Writes evaluation.json: the scores of the best checkpoint on the validation file. What the evaluation
        determined, such as a threshold, goes into config.json."""
        task = self.inputs.objective
        record = evaluation.assemble(
            task,
            task.last_outcome,
            self.inputs.files.held_out,
            self.step,
            self.baselines,
            self.config.best_metric or task.best_metric[0],
        )
        files.atomic_write(self.run_dir / "evaluation.json", json.dumps(record, indent=2, ensure_ascii=False) + "\n")
        runs.write_task(self.run_dir, task.record())

    def _due(self, every: int) -> bool:
        """Returns whether an action is due that is also due at the end of a stage."""
        return state.due(self.step, every, self.stage.end)

    def _due_stage(self) -> Stage:
        """Returns the stage of the next update, or of the evaluation that is due before it."""
        return stage_at(self.stages, self.step if self.progress.evaluating else self.step + 1)

    def _of_stage(self) -> dict[str, int]:
        """Returns what a line of metrics.jsonl says about its stage if there are several."""
        config = self.stage.config
        shown = {"sequence_length": config.sequence_length, "batch_size": config.batch_size}
        return shown if self.config.stages else {}

    def _updates_at_once(self) -> int:
        config = self.config
        cadences = (config.log_every, config.evaluate_every, config.checkpoint_every)
        fitting = state.updates_at_once(self.step, self.stage.end, cadences, config.steps_per_call)
        return min(fitting, state.updates_in(CALL_SECONDS, self.step_seconds, self._least))

    def _read_on(self) -> None:
        """Starts reading at the batch of the next update."""
        self.counted = {}
        first_step, passed_over, places = self.step - self.stage.begin, self.progress.passed_over, self.counted

        def batches(context):
            return self.inputs.training_batches(context, first_step=first_step, passed_over=passed_over, places=places)

        self.iterator: Iterator = iter(distribution.spread(self.strategy, batches))

    def _count(self, losses: np.ndarray) -> None:
        """Adds the updates with these losses to the step and the progress."""
        progress, first = self.progress, self.step - self.stage.begin + self.progress.passed_over
        own_places = [self.counted.pop(number) for number in range(first, first + len(losses))]
        places = self.workers.totals(*(sum(numbers) for numbers in zip(*own_places)))
        finite = [float(loss) for loss in losses if np.isfinite(loss)]
        self.progress = dataclasses.replace(
            progress, losses=[*progress.losses, *finite], places=[*progress.places, places]
        )
        self.step += len(losses)

    def _log(self) -> None:
        """Writes a line of metrics.jsonl about the updates since the last one."""
        config, progress, now = self.stage.config, self.progress, time.monotonic()
        positions = (self.step - self._measured_step) * config.batch_size * config.sequence_length
        if config.task:  # The lengths of its batches differ.
            positions = sum(total for _, total in progress.places)
        record = {
            "step": self.step,
            **self._of_stage(),
            **({"loss": math.fsum(progress.losses) / len(progress.losses)} if progress.losses else {}),
            **({"nonfinite": progress.nonfinite} if progress.nonfinite else {}),
            "padding_share": progress.padding_share(),
            # Of the last update; skipped updates did not advance the schedule.
            "learning_rate": float(self.schedule(max(int(self.optimizer.iterations.numpy()) - 1, 0))),
            "tokens_per_second": positions / (now - self._measured_at),
        }
        epochs = self.inputs.epochs(self.step - self.stage.begin + progress.passed_over)
        record |= {f"epochs/{name}": number for name, number in epochs.items()}
        if config.task:
            record["epoch"] = self.inputs.epoch(self.step + progress.passed_over)
        flops = record["tokens_per_second"] / config.sequence_length * self._flops_per_row
        record["model_tflops"] = flops / 1e12  # TFLOP/s.
        if config.peak_tflops:
            record["mfu"] = flops / 1e12 / config.peak_tflops
        self.progress = progress.logged()
        self._measured_step, self._measured_at = self.step, now
        if self.log:
            self.log.write(record)
            self.bar.show(self.step, record)
            for callback in self.callbacks:
                callback.on_log(self, record)

    def _open_log(self) -> report.MetricsLog:
        figure = self.inputs.objective.FIGURES[0]
        return report.MetricsLog(self.run_dir, self.step, figure, evaluated=not self.progress.evaluating)

    def _mark_best(self) -> None:
        best = self.progress.best_step
        if self.chief and self.progress.best is not None and self.checkpoints.path(best).is_dir():
            self.checkpoints.mark_best(best)

    def _restart_clock(self) -> None:
        self._measured_step, self._measured_at = self.step, time.monotonic()

    def _settle(self) -> None:
        """Waits until all checkpoints are written and all workers know: an earlier exit of one may end the chief."""
        self.checkpoints.wait()
        self.workers.any(False)

    def _farewell(self, done: bool) -> str:
        if done:
            return f"done: the run is in {self.run_dir}; its curves are in {self.run_dir / page.NAME}"
        why = self.stop.asked or "another worker's signal"
        return f"stopped by {why} at step {self.step:,}; everything is saved, and the same command resumes from there"
