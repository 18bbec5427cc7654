"""Refuses graphs that read or write files or run Python."""

import itertools
import pathlib
from typing import Any

from tfzoo.serve.errors import StatusError

_REFUSED = frozenset(
    """ReadFile WriteFile MatchingFiles PyFunc PyFuncStateless EagerPyFunc DumpTensor RecordInput Save SaveSlices
    CalibrationStatisticsSaver FixedLengthRecordReader FixedLengthRecordReaderV2 TextLineReader TextLineReaderV2
    TFRecordReader TFRecordReaderV2 WholeFileReader WholeFileReaderV2 IdentityReader IdentityReaderV2 LMDBReader
    TextLineDataset TFRecordDataset FixedLengthRecordDataset FixedLengthRecordDatasetV2 SaveDataset LoadDataset
    SaveDatasetV2 SnapshotDataset SnapshotDatasetV2 CacheDataset CacheDatasetV2 SummaryWriter CreateSummaryFileWriter
    CreateSummaryDbWriter DebugIdentity DebugIdentityV2 DebugIdentityV3""".split()
)


def check(meta_graph: Any, folder: pathlib.Path) -> None:
    """Raises a StatusError if a graph contains operations that read or write files or run Python."""
    library = meta_graph.graph_def.library.function
    nodes = itertools.chain(meta_graph.graph_def.node, *(function.node_def for function in library))
    if refused := sorted({node.op for node in nodes} & _REFUSED):
        raise StatusError(
            "PERMISSION_DENIED",
            f"{folder}: the graph reads or writes files or runs Python ({', '.join(refused)}); if you trust it, start "
            "the server with --trust_models",
        )
