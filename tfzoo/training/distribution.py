"""From flags to a tf.distribute strategy, and what its workers tell each other.

TF_CONFIG names the processes of a run over several hosts, as `python -m tfzoo.launch` sets it:

    {"cluster": {"worker": ["host1:2222", "host2:2222"]}, "task": {"type": "worker", "index": 0}}

Worker 0, or the task "chief" where there is one, writes the run's folder; the others read it. So --run_dir lies
where all of them see it. docs/distributed.md tells how to start such runs.
"""

import contextlib
import dataclasses
import os
import signal
import zlib
from collections.abc import Iterator

from absl import logging

from tfzoo import errors, json_files
from tfzoo.errors import UserError, WorkerLost

STRATEGIES = ("default", "one_device", "mirrored", "multi_worker", "tpu", "parameter_server")


@dataclasses.dataclass(frozen=True)
class Cluster:
    """TF_CONFIG: addresses by kind of task, and which of them this process is."""

    addresses: dict[str, list[str]]
    kind: str = "worker"
    index: int = 0

    @property
    def is_chief(self) -> bool:
        """Whether this process writes the run's folder; true of one that is alone."""
        return self.kind == "chief" or (self.kind == "worker" and self.index == 0 and "chief" not in self.addresses)

    @property
    def serves(self) -> bool:
        """Whether a parameter server's run has this process wait for orders."""
        return "ps" in self.addresses and self.kind in ("worker", "ps")


def read_cluster(strategy: str, text: str | None = None) -> Cluster:
    """The cluster of TF_CONFIG (or of `text`), held against --strategy.

    Raises:
      UserError: it is no such JSON, names no task of its cluster, or does not go with the strategy.
    """
    text = os.environ.get("TF_CONFIG", "") if text is None else text
    launch = "start the run with `python -m tfzoo.launch --workers=2"
    if not text.strip():
        if strategy in ("multi_worker", "parameter_server"):
            servers = " --parameter_servers=1" if strategy == "parameter_server" else ""
            raise UserError(f"--strategy={strategy}: TF_CONFIG is not set; {launch}{servers} -- ...`")
        return Cluster({})
    try:
        record = json_files.parse(text)
        addresses = {str(kind): [str(address) for address in some] for kind, some in record["cluster"].items()}
        task = record.get("task", {"type": "worker", "index": 0})
        cluster = Cluster(addresses, str(task["type"]), int(task["index"]))
        assert 0 <= cluster.index < len(addresses[cluster.kind])
    except (ValueError, KeyError, TypeError, AttributeError, AssertionError):
        raise UserError(
            f"TF_CONFIG={text[:200]}: must be JSON of the form {{'cluster': {{'worker': [addresses]}}, "
            "'task': {'type': 'worker', 'index': i}}, with a task that is in the cluster"
        ) from None
    if strategy == "multi_worker" and (set(addresses) - {"worker", "chief"} or cluster.kind == "evaluator"):
        raise UserError(f"--strategy=multi_worker: TF_CONFIG lists {', '.join(addresses)}; list only workers")
    if strategy == "parameter_server" and not {"chief", "worker", "ps"} <= set(addresses):
        raise UserError(
            f"--strategy=parameter_server: TF_CONFIG lists {', '.join(addresses)}; list chief, worker and ps"
        )
    if strategy not in ("multi_worker", "parameter_server", "tpu") and sum(map(len, addresses.values())) > 1:
        raise UserError(f"--strategy={strategy}: TF_CONFIG lists several tasks; use --strategy=multi_worker")
    return cluster


def make_strategy(name: str, *, num_devices: int = 0, tpu: str = ""):
    """The tf.distribute.Strategy of --strategy. To be made before TensorFlow computes anything.

    Args:
      name: default is TensorFlow's own; one_device pins everything to one; mirrored has a copy of the model on each
        device of this machine; multi_worker on each worker of TF_CONFIG; tpu on each core of a TPU; with
        parameter_server workers of TF_CONFIG compute what its chief asks for.
      num_devices: of mirrored; 0 takes all GPUs. On a machine without GPUs so many virtual ones share its CPU.
      tpu: the TPU's name or address; "local" on a TPU VM.

    Raises:
      UserError: what is asked for is not there, or this worker's port is taken.
    """
    import tensorflow as tf

    if num_devices and name != "mirrored":
        raise UserError(f"--num_devices={num_devices}: applies only to --strategy=mirrored; omit it")
    if name == "default":
        return tf.distribute.get_strategy()
    if name == "one_device":
        return tf.distribute.OneDeviceStrategy("GPU:0" if tf.config.list_physical_devices("GPU") else "CPU:0")
    if name == "mirrored":
        return _mirrored(num_devices)
    if name == "multi_worker":
        try:
            with _losing(True):  # It waits for the others.
                return tf.distribute.MultiWorkerMirroredStrategy()
        except tf.errors.UnknownError as error:  # "Could not start gRPC server": the log says why, the error does not.
            task = read_cluster(name)
            raise UserError(
                f"TF_CONFIG: cannot listen on {task.addresses[task.kind][task.index]} ({errors.one_line(error)}); "
                "stop the process that uses this port, or choose another port"
            ) from None
    if name == "tpu":
        return _tpu(tpu)
    if name == "parameter_server":
        return tf.distribute.ParameterServerStrategy(tf.distribute.cluster_resolver.TFConfigClusterResolver())
    raise UserError(f"--strategy={name}: must be one of {', '.join(STRATEGIES)}")


def _mirrored(num_devices: int):
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        if num_devices > len(gpus):
            raise UserError(
                f"--num_devices={num_devices}: this machine has only {len(gpus)} GPUs; use at most that many"
            )
        return tf.distribute.MirroredStrategy([f"GPU:{i}" for i in range(num_devices or len(gpus))])
    if num_devices < 1:
        raise UserError("--strategy=mirrored: this machine has no GPU; add --num_devices=2 to try it on the CPU")
    cpu = tf.config.list_physical_devices("CPU")[0]
    try:
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * num_devices)
    except RuntimeError:  # TensorFlow has begun.
        if len(tf.config.list_logical_devices("CPU")) < num_devices:
            raise
    # The default on CPUs, a collective, can die where one process makes several such strategies.
    reduction = tf.distribute.ReductionToOneDevice()
    return tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(num_devices)], cross_device_ops=reduction)


def _tpu(address: str):
    import tensorflow as tf

    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(tpu=address or "local")
        tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
    except (ValueError, RuntimeError, tf.errors.OpError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"--tpu={address or 'local'}: no TPU responds ({reason}); specify a reachable TPU") from None
    return tf.distribute.TPUStrategy(resolver)


def serve(cluster: Cluster) -> None:
    """What a parameter server's run has its workers and servers do: wait for orders, until they are killed."""
    import tensorflow as tf

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)  # There is nothing to save, and no Python runs from here on.
    server = tf.distribute.Server(
        tf.train.ClusterSpec(cluster.addresses), job_name=cluster.kind, task_index=cluster.index, protocol="grpc"
    )
    server.join()


def spread(strategy, batches):
    """`batches(context)` for each worker, as the strategy's steps read them: to be iterated."""
    import tensorflow as tf

    if isinstance(strategy, tf.distribute.ParameterServerStrategy):
        return batches(tf.distribute.InputContext())  # The chief reads, and hands out.
    return strategy.distribute_datasets_from_function(batches)


class Workers:
    """What the processes that take a run's steps together ask each other; one that is alone asks nobody.

    All of them have to ask the same at the same step.
    """

    def __init__(self, strategy):
        import tensorflow as tf

        self._several = isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
        replicas = len(strategy.extended.worker_devices) if self._several else 1  # Of each worker.

        def step(numbers):
            replica = tf.distribute.get_replica_context()
            mine = tf.one_hot(replica.replica_id_in_sync_group, replica.num_replicas_in_sync, dtype=tf.int64)
            return replica.all_reduce(tf.distribute.ReduceOp.SUM, mine[:, None] * numbers)

        @tf.function
        def everyones(numbers):
            return strategy.experimental_local_results(strategy.run(step, (numbers,)))[0]

        # For each of them a list of the numbers that it names.
        self._everyones = lambda *numbers: everyones(tf.constant(numbers, tf.int64))[::replicas].numpy().tolist()

    def any(self, wish: object) -> bool:
        """Whether any of them wishes so."""
        return any(number for (number,) in self._everyones(int(bool(wish)))) if self._several else bool(wish)

    def fewest(self, number: int) -> int:
        """The smallest of what they name."""
        return min(named for (named,) in self._everyones(number)) if self._several else number

    def totals(self, *numbers: int) -> list[int]:
        """Of each number the sum of what all of them name."""
        return [sum(column) for column in zip(*self._everyones(*numbers))] if self._several else list(numbers)

    def check_alike(self, **facts) -> None:
        """Raises UserError where they differ in a fact, any value that has a repr."""
        for name, fact in facts.items() if self._several else ():
            mine = fact if isinstance(fact, int) else zlib.crc32(repr(fact).encode())
            everyones = [number for (number,) in self._everyones(mine)]
            if len(set(everyones)) > 1:
                shown = f" ({', '.join(map(str, everyones))})" if isinstance(fact, int) else ""
                raise UserError(
                    f"the workers differ in their {name.replace('_', ' ')}{shown}; start all of them with the same "
                    "flags and files, and with a --run_dir that all of them can access"
                )


def losing_workers(strategy):
    """Turns what TensorFlow raises when another process of the run is gone into WorkerLost."""
    return _losing(getattr(strategy, "cluster_resolver", None) is not None)


@contextlib.contextmanager
def _losing(several: bool) -> Iterator[None]:
    import tensorflow as tf

    try:
        yield
    except (
        tf.errors.UnavailableError,
        tf.errors.AbortedError,
        tf.errors.CancelledError,
        tf.errors.InternalError,
        tf.errors.DeadlineExceededError,
    ) as error:
        if not several:
            raise
        logging.error("%s: %s", type(error).__name__, errors.one_line(error))  # In case it is something else.
        raise WorkerLost(
            "another worker of this run was lost; restart all workers with the same command, and they resume from the "
            "last checkpoint"
        ) from None
