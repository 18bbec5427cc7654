"""Creates tf.distribute strategies from flags, and lets the workers of a run communicate.

TF_CONFIG lists the processes of a run on several hosts; `python -m tfzoo.launch` sets it:

    {"cluster": {"worker": ["host1:2222", "host2:2222"]}, "task": {"type": "worker", "index": 0}}

Worker 0, or the task "chief" if there is one, writes the run's folder; the others read it. Therefore --run_dir must be
accessible to all of them. docs/distributed.md describes how to start such runs.
"""

import contextlib
import dataclasses
import os
import signal
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

from absl import logging

from tfzoo import errors, json_files
from tfzoo.errors import UserError, WorkerLost
from tfzoo.training import rendezvous

STRATEGIES = ("default", "one_device", "mirrored", "multi_worker", "tpu", "parameter_server")


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The content of TF_CONFIG: addresses by task type, and the type and index of this process."""

    addresses: dict[str, list[str]]
    kind: str = "worker"
    index: int = 0

    @property
    def first(self) -> str:
        """The name of the task that writes the run's folder."""
        return "chief 0" if "chief" in self.addresses else "worker 0"

    @property
    def name(self) -> str:
        """The name of this task."""
        return f"{self.kind} {self.index}"

    @property
    def is_chief(self) -> bool:
        """Whether this process writes the run's folder; true for a single process."""
        return not self.addresses or self.name == self.first

    @property
    def serves(self) -> bool:
        """Whether this process only executes requests of the chief, in a parameter-server run."""
        return "ps" in self.addresses and self.kind in ("worker", "ps")


_KINDS = ("chief", "worker", "ps", "evaluator")
_FORM = (
    "it must be JSON of the form {'cluster': {'worker': ['HOST:PORT', ...]}, 'task': {'type': 'worker', 'index': 0}}"
)


def _cluster(record: object) -> Cluster:
    """Returns the cluster of a TF_CONFIG.

    Raises:
      ValueError: it is not one; the message says why.
    """
    show = json_files.show
    if not isinstance(record, dict) or not isinstance(record.get("cluster"), dict) or not record["cluster"]:
        raise ValueError(f"{show(record)} has no cluster")
    addresses: dict[str, list[str]] = record["cluster"]
    for kind, listed in addresses.items():
        if kind not in _KINDS:
            raise ValueError(f"{show(kind)} is not one of {', '.join(_KINDS)}{errors.suggest(kind, _KINDS)}")
        if not isinstance(listed, list) or not listed:
            raise ValueError(f"{kind} is {show(listed)}, not a list of addresses")
        for address in listed:
            host, _, port = address.rpartition(":") if isinstance(address, str) else ("", "", "")
            if not host or not (port.isascii() and port.isdecimal()) or not 0 < int(port[:6]) < 65536:
                raise ValueError(f"the address {show(address)} of a {kind} is not HOST:PORT")
    every = [address for listed in addresses.values() for address in listed]
    if twice := [address for address in every if every.count(address) > 1]:
        raise ValueError(f"the address {show(twice[0])} is listed twice")
    task = record.get("task", {"type": "worker", "index": 0})
    own, index = (task.get("type"), task.get("index")) if isinstance(task, dict) else (None, None)
    if not isinstance(own, str) or own not in addresses:
        raise ValueError(f"the task {show(task)} has no type that is in the cluster")
    if type(index) is not int or not 0 <= index < len(addresses[own]):
        raise ValueError(f"the task {show(task)} has no index from 0 to {len(addresses[own]) - 1}")
    return Cluster(addresses, own, index)


def read_cluster(strategy: str, text: str | None = None) -> Cluster:
    """Returns the cluster of TF_CONFIG (or of `text`), after checking it against --strategy.

    Raises:
      UserError: the text is not such JSON, its task is not in its cluster, or the cluster does not match the strategy.
    """
    text = os.environ.get("TF_CONFIG", "") if text is None else text
    launch = "start the run with `python -m tfzoo.launch --workers=2"
    if not text.strip():
        if strategy in ("multi_worker", "parameter_server"):
            servers = " --parameter_servers=1" if strategy == "parameter_server" else ""
            raise UserError(f"--strategy={strategy}: TF_CONFIG is not set; {launch}{servers} -- ...`")
        return Cluster({})
    try:
        cluster = _cluster(json_files.parse(text))
    except json_files.BadJSON as error:
        raise UserError(f"TF_CONFIG={json_files.show(text)}: {error}; {_FORM}") from None
    except ValueError as error:
        raise UserError(f"TF_CONFIG: {error}; {_FORM}") from None
    addresses = cluster.addresses
    if strategy == "multi_worker" and (set(addresses) - {"worker", "chief"} or cluster.kind == "evaluator"):
        raise UserError(f"--strategy=multi_worker: TF_CONFIG lists {', '.join(addresses)}; list only workers")
    if strategy == "parameter_server" and not {"chief", "worker", "ps"} <= set(addresses):
        raise UserError(
            f"--strategy=parameter_server: TF_CONFIG lists {', '.join(addresses)}; list chief, worker and ps"
        )
    if strategy not in ("multi_worker", "parameter_server", "tpu") and sum(map(len, addresses.values())) > 1:
        raise UserError(f"--strategy={strategy}: TF_CONFIG lists several tasks; use --strategy=multi_worker")
    return cluster


def wait_for_workers(strategy: str, cluster: Cluster, flags: Mapping[str, Any], seconds: float) -> None:
    """Waits until the other tasks of a run have started. TensorFlow's own waiting, which follows, is then short.

    Args:
      strategy: the value of --strategy.
      cluster: that of TF_CONFIG.
      flags: what must be the same in all synchronous workers.
      seconds: how long to wait.

    Raises:
      UserError: this task's port is in use, or flags differ.
      WorkerLost: not all tasks came in time.
    """
    if strategy == "multi_worker":
        rendezvous.meet(cluster.addresses, cluster.name, cluster.first, flags, seconds)
    elif strategy == "parameter_server":
        rendezvous.wait_for_servers(cluster.addresses, cluster.name, seconds)


def make_strategy(name: str, *, num_devices: int = 0, tpu: str = ""):
    """Creates the tf.distribute.Strategy of --strategy. Must be called before TensorFlow computes anything.

    Args:
      name: default is TensorFlow's default strategy; one_device pins everything to one device; mirrored has a copy of
        the model on each device of this machine, multi_worker on each worker of TF_CONFIG, tpu on each core of a TPU;
        with parameter_server, the workers of TF_CONFIG compute what its chief requests.
      num_devices: number of devices of mirrored; 0 uses all GPUs. On a machine without GPUs, this many virtual devices
        share the CPU.
      tpu: name or address of the TPU; "local" on a TPU VM.

    Raises:
      UserError: the requested devices do not exist, or this worker's port is in use.
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
            with _losing(True):  # The constructor waits for the other workers.
                return tf.distribute.MultiWorkerMirroredStrategy()
        except tf.errors.UnknownError as error:  # "Could not start gRPC server": only the log contains the reason.
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


def devices(count: int) -> list[str]:
    """Returns TensorFlow's names of `count` devices; 0 means all GPUs. Without GPUs, this many virtual devices share
    the CPU. Must be called before TensorFlow computes anything.

    Raises:
      UserError: there are not so many GPUs.
    """
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        if count > len(gpus):
            raise UserError(f"--num_devices={count}: this machine has only {len(gpus)} GPUs; use at most that many")
        return [f"GPU:{i}" for i in range(count or len(gpus))]
    count = max(1, count)
    cpu = tf.config.list_physical_devices("CPU")[0]
    try:
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * count)
    except RuntimeError:  # TensorFlow is already initialized.
        if len(tf.config.list_logical_devices("CPU")) < count:
            raise
    return [f"CPU:{i}" for i in range(count)]


def _mirrored(num_devices: int):
    import tensorflow as tf

    if tf.config.list_physical_devices("GPU"):
        return tf.distribute.MirroredStrategy(devices(num_devices))
    if num_devices < 1:
        raise UserError("--strategy=mirrored: this machine has no GPU; add --num_devices=2 to try it on the CPU")
    # The default on CPUs, a collective operation, can crash when one process creates several such strategies.
    return tf.distribute.MirroredStrategy(devices(num_devices), cross_device_ops=tf.distribute.ReductionToOneDevice())


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
    """Runs a worker or server of a parameter-server run: executes requests of the chief until it is killed."""
    import tensorflow as tf

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)  # There is nothing to save, and no Python code runs from here on.
    server = tf.distribute.Server(
        tf.train.ClusterSpec(cluster.addresses), job_name=cluster.kind, task_index=cluster.index, protocol="grpc"
    )
    server.join()


def spread(strategy, batches):
    """Returns an iterable of `batches(context)`, distributed over the workers for the strategy's steps."""
    import tensorflow as tf

    if isinstance(strategy, tf.distribute.ParameterServerStrategy):
        return batches(tf.distribute.InputContext())  # The chief reads and distributes the batches.
    return strategy.distribute_datasets_from_function(batches)


class Workers:
    """Exchanges values between the synchronous workers of a run; trivial for a single process.

    All workers must call the same methods at the same step.
    """

    def __init__(self, strategy):
        import tensorflow as tf

        self._several = isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
        replicas = len(strategy.extended.worker_devices) if self._several else 1  # Per worker.

        def step(numbers):
            replica = tf.distribute.get_replica_context()
            own_row = tf.one_hot(replica.replica_id_in_sync_group, replica.num_replicas_in_sync, dtype=tf.int64)
            return replica.all_reduce(tf.distribute.ReduceOp.SUM, own_row[:, None] * numbers)

        @tf.function
        def everyones(numbers):
            return strategy.experimental_local_results(strategy.run(step, (numbers,)))[0]

        # For each worker, the list of its numbers.
        self._everyones = lambda *numbers: everyones(tf.constant(numbers, tf.int64))[::replicas].numpy().tolist()

    def any(self, wish: object) -> bool:
        """Returns whether `wish` is true in any worker."""
        return any(number for (number,) in self._everyones(int(bool(wish)))) if self._several else bool(wish)

    def fewest(self, number: int) -> int:
        """Returns the smallest `number` of all workers."""
        return min(each for (each,) in self._everyones(number)) if self._several else number

    def totals(self, *numbers: int) -> list[int]:
        """Returns, for each number, its sum over all workers."""
        return [sum(column) for column in zip(*self._everyones(*numbers))] if self._several else list(numbers)

    def check_alike(self, **facts) -> None:
        """Raises UserError if the workers differ in one of `facts`, whose values can be anything with a repr."""
        for name, fact in facts.items() if self._several else ():
            number = fact if isinstance(fact, int) else zlib.crc32(repr(fact).encode())
            numbers = [each for (each,) in self._everyones(number)]
            if len(set(numbers)) > 1:
                shown = f" ({', '.join(map(str, numbers))})" if isinstance(fact, int) else ""
                raise UserError(
                    f"the workers differ in their {name.replace('_', ' ')}{shown}; start all of them with the same "
                    "flags and files, and with a --run_dir that all of them can access"
                )


def losing_workers(strategy):
    """Converts the errors that TensorFlow raises when another process of the run is lost to WorkerLost."""
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
        logging.error("%s: %s", type(error).__name__, errors.one_line(error))  # In case the cause is something else.
        raise WorkerLost(
            "another worker of this run was lost; restart all workers with the same command, and they resume from the "
            "last checkpoint"
        ) from None
