"""Loads a folder as a Servable: a SavedModel or an ONNX artifact, warmed up, and in batches if the server batches."""

import dataclasses
import pathlib

from tfzoo.serve import batching, savedmodel, warmup
from tfzoo.serve.batching import Batched, Parameters, Scheduler
from tfzoo.serve.errors import StatusError
from tfzoo.serve.metrics import Metrics
from tfzoo.serve.servable import Servable


@dataclasses.dataclass(frozen=True)
class Loader:
    """Loads versions; the manager calls it.

    Attributes:
      metrics: where warm-up is counted.
      tags: the tags of a SavedModel's graph.
      session_config: a serialized ConfigProto for SavedModels.
      trust: whether graphs may read and write files and run Python.
      warmup_iterations: how often each request of a warm-up runs; 0 means never.
      threads: the threads of an operation of an ONNX graph; 0 lets onnxruntime choose.
      scheduler: runs batches; None without batching.
      batching: how requests are batched; None means as the versions' own files say.
    """

    metrics: Metrics
    tags: tuple[str, ...] = ("serve",)
    session_config: bytes = b""
    trust: bool = False
    warmup_iterations: int = 1
    threads: int = 0
    scheduler: Scheduler | None = None
    batching: Parameters | None = None

    def __call__(self, name: str, version: int, folder: pathlib.Path) -> Servable:
        servable = self._open(name, version, folder)
        try:
            if self.warmup_iterations:
                warmup.run(servable, folder, self.warmup_iterations, self.metrics)
            if self.scheduler is not None:
                parameters = self.batching or batching.of_model(folder)
                return servable if parameters is None else Batched(servable, self.scheduler, parameters)
            return servable
        except BaseException:
            servable.close()
            raise

    def _open(self, name: str, version: int, folder: pathlib.Path) -> Servable:
        if any((folder / file).exists() for file in savedmodel.FILES):
            return savedmodel.SavedModel(name, version, folder, self.tags, self.session_config, self.trust)
        if (folder / "model.onnx").exists() or (folder / "manifest.json").exists():
            from tfzoo.serve.onnx import Onnx  # Its packages are needed for such folders alone.

            return Onnx(name, version, folder, self.threads)
        raise StatusError(
            "NOT_FOUND",
            f"{folder}: contains neither a SavedModel ({savedmodel.FILES[0]}) nor an ONNX graph (model.onnx)",
        )
