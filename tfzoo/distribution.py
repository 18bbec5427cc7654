"""From a flag to a tf.distribute strategy."""

import tensorflow as tf

from tfzoo.errors import UserError

# The training step is written for any number of replicas; more strategies are offered once they are proven equal.
STRATEGIES = ("default", "one_device")


def make_strategy(name: str) -> tf.distribute.Strategy:
    """The strategy of --strategy: "default" is TensorFlow's own, "one_device" pins everything to one.

    Raises:
      UserError: another name.
    """
    if name == "default":
        return tf.distribute.get_strategy()
    if name == "one_device":
        return tf.distribute.OneDeviceStrategy("GPU:0" if tf.config.list_physical_devices("GPU") else "CPU:0")
    raise UserError(f"--strategy={name}: must be one of {', '.join(STRATEGIES)}")
