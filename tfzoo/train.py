"""Trains a model.

    python -m tfzoo.train --flagfile=configs/bert.cfg --run_dir=runs/bert

When it is started again with the same --run_dir, the run resumes where it stopped and logs what an uninterrupted run
would have logged. The Python API is tfzoo.training.Trainer.

    python -m tfzoo.train --seeds=3 --flagfile=configs/bert.cfg --run_dir=runs/bert

trains one model after the other in runs/bert/seed_0, seed_1 and seed_2, and shows the mean and the standard deviation
of their figures.
"""

import sys

from absl import flags as absl_flags

from tfzoo import cli
from tfzoo.training import processes, seeds
from tfzoo.training.config import TrainConfig
from tfzoo.training.loop import Trainer


def define_flags(flags: absl_flags.FlagValues) -> None:
    TrainConfig.define_flags(flags)
    absl_flags.DEFINE_integer(
        "seeds",
        None,
        "Number of runs that differ only in --seed, each in a folder of its own in --run_dir.",
        lower_bound=1,
        flag_values=flags,
    )
    setattr(flags["seeds"], "group", "Several runs (docs/tuning.md)")  # noqa: B010  (absl's class does not declare it)


def main(flags: absl_flags.FlagValues) -> int:
    config = TrainConfig.from_flags(flags)
    if flags.seeds is not None:
        return seeds.train(config, processes.arguments(flags, ("seeds", "seed", "run_dir")), flags.seeds)
    return Trainer(config, given=cli.explicit_flags(flags)).run()


if __name__ == "__main__":
    sys.exit(cli.run(main, define_flags))
