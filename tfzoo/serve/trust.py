"""Refuses graphs that read or write files, use the network or run Python.

Two kinds of graphs need files: the saver restores variables when a model is loaded, and tables are filled from the
model's own assets when it is initialized. Nothing that a request runs may do either.
"""

import itertools
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

from tfzoo.serve import messages
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
RESTORES = frozenset("Restore RestoreSlice RestoreV2".split())
SAVES = frozenset("Save SaveSlices SaveV2 MergeV2Checkpoints".split())
TABLES = frozenset("InitializeTableFromTextFile InitializeTableFromTextFileV2".split())
_CALLS = frozenset("PartitionedCall StatefulPartitionedCall".split())
# What may be done with a variable that contains the path of an asset.
_VARIABLES = frozenset("AssignVariableOp ReadVariableOp VarIsInitializedOp DisableCopyOnRead".split())
_INITIALIZES = "__saved_model_init_op"  # The signature of TensorFlow 2; TensorFlow 1 has collections.
_HIDDEN = "__saved_model_"
_Place = tuple[str, str]  # A function, "" for the graph itself, and a node in it.


def check(meta_graph: Any, folder: pathlib.Path) -> None:
    """Checks the graph of a SavedModel in a folder.

    Raises:
      StatusError: the graph reads or writes files, uses the network or runs Python.
    """
    graph = _Graph(meta_graph.graph_def)
    runs, initializes = [], []
    for key, definition in meta_graph.signature_def.items():
        names = [info.name for info in definition.outputs.values()]
        if key == _INITIALIZES:
            initializes += names
        elif not key.startswith(_HIDDEN):
            runs += names
    for key in ("saved_model_main_op", "legacy_init_op"):
        initializes += meta_graph.collection_def[key].node_list.value if key in meta_graph.collection_def else []
    requests, start = set(graph.reached(runs)), set(graph.reached(initializes))
    restoring = set(graph.reached([meta_graph.saver_def.restore_op_name]))
    files = _assets(meta_graph)
    assets = {("", _node(file.tensor_info.name)) for file in files}
    refused = set()
    for place, node in graph.nodes.items():
        if (
            node.op in REFUSED
            or (node.op == "PrintV2" and node.attr["output_stream"].s.startswith(b"file:"))
            or (node.op in SAVES | RESTORES | TABLES and place in requests)
            or (node.op in SAVES | RESTORES and place in start)
            or (node.op in SAVES | TABLES and place in restoring)
            or (node.op in TABLES and place in start and not graph.are_assets(place, node.input[1], assets))
        ):
            refused.add(node.op)
    for file in files:
        path = pathlib.PurePosixPath(file.filename)
        if path.is_absolute() or ".." in path.parts:
            refused.add(f"the asset {path}")
    if refused:
        raise StatusError(
            "PERMISSION_DENIED",
            f"{folder}: the graph reads or writes files, uses the network or runs Python ({', '.join(sorted(refused))})"
            "; if you trust it, start the server with --trust_models",
        )


def _assets(meta_graph: Any) -> list[Any]:
    """Returns the messages.AssetFileDefs that TensorFlow heeds: those of TensorFlow 1 are in a collection."""
    if meta_graph.asset_file_def or "saved_model_assets" not in meta_graph.collection_def:
        return list(meta_graph.asset_file_def)
    packed = meta_graph.collection_def["saved_model_assets"].any_list.value
    return [messages.AssetFileDef.FromString(each.value) for each in packed]


class _Graph:
    """The nodes of a graph and of its functions.

    Attributes:
      nodes: by function, "" for the graph itself, and name.
    """

    def __init__(self, graph_def: Any):
        functions = graph_def.library.function
        self._arguments = {each.signature.name: [arg.name for arg in each.signature.input_arg] for each in functions}
        self.nodes: dict[_Place, Any] = {("", node.name): node for node in graph_def.node}
        self._bodies: dict[str, list[_Place]] = {name: [] for name in self._arguments}
        for function in functions:
            for node in function.node_def:
                self.nodes[function.signature.name, node.name] = node
                self._bodies[function.signature.name].append((function.signature.name, node.name))
        self._callers: dict[str, list[_Place]] = {name: [] for name in self._arguments}
        for place, node in self.nodes.items():
            for name in self._called(node):
                self._callers[name].append(place)

    def _called(self, node: Any) -> set[str]:
        """Returns the names of the functions that a node may run."""
        names = {node.op}
        for value in node.attr.values():
            names |= {value.func.name, *(each.name for each in value.list.func)}
        return names & self._arguments.keys()

    def reached(self, tensors: Iterable[str]) -> Iterator[_Place]:
        """Yields what runs when tensors or operations of the graph are computed; of a function, that is all of it."""
        left: list[_Place] = [("", _node(name)) for name in tensors]
        seen: set[_Place] = set()
        while left:
            place = left.pop()
            node = self.nodes.get(place)
            if node is None or place in seen:
                continue
            seen.add(place)
            yield place
            left += [(place[0], _node(name)) for name in node.input]
            left += itertools.chain.from_iterable(self._bodies[name] for name in self._called(node))

    def are_assets(self, place: _Place, tensor: str, assets: set[_Place]) -> bool:
        """Returns whether all strings that a node may receive in an input are paths of assets."""
        for origin in self._origins(place[0], tensor):
            node = self.nodes.get(origin)
            if origin in assets:
                continue
            if node is None or node.op != "ReadVariableOp" or not self._contains_assets(origin, assets):
                return False
        return True

    def _contains_assets(self, read: _Place, assets: set[_Place]) -> bool:
        """Returns whether a variable that is read gets nothing but paths of assets."""
        variables = self._variables(read)
        values: set[_Place] = set()
        for place, node in self.nodes.items():
            if node.op in _CALLS or not any(self._origins(place[0], name) & variables for name in node.input):
                continue
            if node.op not in _VARIABLES:
                return False
            if node.op == "AssignVariableOp":
                values |= self._origins(place[0], node.input[1])
        return bool(variables) and values <= assets

    def _variables(self, read: _Place) -> set[_Place]:
        """Returns all nodes that stand for the variable that is read; empty if that cannot be told."""
        handles = self._origins(read[0], self.nodes[read].input[0])
        names = set()
        for handle in handles:
            node = self.nodes.get(handle)
            if node is None or node.op != "VarHandleOp":
                return set()
            names.add(node.attr["shared_name"].s.decode(errors="replace") or node.name)
        return {
            place
            for place, node in self.nodes.items()
            if node.op == "VarHandleOp" and (node.attr["shared_name"].s.decode(errors="replace") or node.name) in names
        }

    def _origins(self, function: str, tensor: str) -> set[_Place]:
        """Returns the nodes that make a tensor, which may be an argument of a function."""
        origins: set[_Place] = set()
        left, seen = [(function, tensor)], set()
        while left:
            current = function, tensor = left.pop()
            if current in seen or tensor.startswith("^"):
                continue
            seen.add(current)
            place = function, _node(tensor)
            node = self.nodes.get(place)
            if function and ":" not in tensor:
                for caller in self._callers[function]:
                    call, index = self.nodes[caller], self._arguments[function].index(tensor)
                    is_plain = call.op in _CALLS or call.op == function
                    left += [(caller[0], call.input[index])] if is_plain else []
                    origins |= set() if is_plain else {caller}
            elif node is not None and node.op == "Identity":
                left.append((function, node.input[0]))
            else:
                origins.add(place)
        return origins


def _node(tensor: str) -> str:
    """Returns the name of the node of a tensor, such as "x:0", "x:y:0" or, for a control dependency, "^x"."""
    return tensor.removeprefix("^").partition(":")[0]
