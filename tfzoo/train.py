"""Trains a model.

    python -m tfzoo.train --flagfile=configs/bert.cfg --run_dir=runs/bert

When it is started again with the same --run_dir, the run resumes where it stopped and logs what an uninterrupted run
would have logged. The Python API is tfzoo.training.Trainer.
"""

import sys

from absl import flags as absl_flags

from tfzoo import cli
from tfzoo.training.config import TrainConfig
from tfzoo.training.loop import Trainer

define_flags = TrainConfig.define_flags


def main(flags: absl_flags.FlagValues) -> int:
    return Trainer(TrainConfig.from_flags(flags), given=cli.explicit_flags(flags)).run()


if __name__ == "__main__":
    sys.exit(cli.run(main, define_flags))
