"""Refuses graphs that read or write files, use the network or run Python.

Two kinds of graphs need files: the saver restores variables when a model is loaded, and tables are filled from the
model's own assets when it is initialized. Nothing that a request runs may do either. An artifact may contain only
operations that verify.py knows; a SavedModel from anyone may contain all but these.
"""

import pathlib
from typing import Any

from tfzoo.export import verify
from tfzoo.serve.errors import StatusError

REFUSED = frozenset(
    """ReadFile WriteFile MatchingFiles PyFunc PyFuncStateless EagerPyFunc DumpTensor RecordInput DTensorRestoreV2
    CalibrationStatisticsSaver LoadAndRemapMatrix GenerateVocabRemapping ImmutableConst FixedUnigramCandidateSampler
    Skipgram FixedLengthRecordReader FixedLengthRecordReaderV2 TextLineReader TextLineReaderV2 TFRecordReader
    TFRecordReaderV2 WholeFileReader WholeFileReaderV2 IdentityReader IdentityReaderV2 LMDBReader TextLineDataset
    TFRecordDataset TFRecordDatasetV2 FixedLengthRecordDataset FixedLengthRecordDatasetV2 CSVDataset CSVDatasetV2
    ExperimentalCSVDataset LMDBDataset ExperimentalLMDBDataset SqlDataset ExperimentalSqlDataset MatchingFilesDataset
    ExperimentalMatchingFilesDataset DatasetToTFRecord ExperimentalDatasetToTFRecord SaveDataset SaveDatasetV2
    LoadDataset DistributedSave SnapshotDataset SnapshotDatasetV2 SnapshotDatasetReader SnapshotNestedDatasetReader
    SnapshotChunkDataset ListSnapshotChunksDataset CacheDataset CacheDatasetV2 DataServiceDataset DataServiceDatasetV2
    DataServiceDatasetV3 DataServiceDatasetV4 RegisterDataset RegisterDatasetV2 SummaryWriter CreateSummaryFileWriter
    CreateSummaryDbWriter DebugIdentity DebugIdentityV2 DebugIdentityV3 DebugNanCount DebugNumericSummary RpcServer
    RpcClient FileSystemSetConfiguration XlaCustomCall XlaCustomCallV2""".split()
)
# Only the saver may use these, and only for the model's own variables and assets.
FILES = frozenset(
    """Restore RestoreSlice RestoreV2 Save SaveSlices SaveV2 MergeV2Checkpoints InitializeTableFromTextFile
    InitializeTableFromTextFileV2""".split()
)


def check(meta_graph: Any, folder: pathlib.Path) -> None:
    """Checks the graph of a SavedModel in a folder.

    Raises:
      StatusError: the graph reads or writes files, uses the network or runs Python.
    """
    try:
        verify.check_graph(meta_graph, folder, _only_computes)
    except verify.Failure as failure:
        raise StatusError(
            "PERMISSION_DENIED", f"{folder}: {failure}; if you trust it, start the server with --trust_models"
        ) from None


def _only_computes(node: Any) -> bool:
    if node.op == "PrintV2":
        return not node.attr["output_stream"].s.startswith(b"file:")
    return node.op not in REFUSED and node.op not in FILES
