"""Weight files: safetensors, Keras's HDF5 and TensorFlow 1 checkpoints."""

import pathlib
import random

import ml_dtypes
import numpy as np

from tests.fuzz.harness import Kind
from tests.fuzz.mutations import damage_bytes, damage_one
from tfzoo.serve import records
from tfzoo.weights import hdf5_files, safetensors_files, tf1_files
from tfzoo.weights.tensors import NAMES, Tensors

Read = dict[str, tuple[str, tuple[int, ...], bytes]]  # name -> dtype, shape, bytes
_HEADER = 4096  # Bytes at a file's beginning, which damages there reach more often than tensors.


def _arrays() -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    return {
        "encoder/layer_0/kernel": draw.normal(size=(7, 5)).astype(np.float32),
        "encoder/layer_0/bias": draw.normal(size=5).astype(np.float16),
        "table": draw.normal(size=(3, 2, 5)).astype(ml_dtypes.bfloat16),
        "positions": np.arange(-3, 4, dtype=np.int64),
        "mask": np.array([[True, False, True]]),
        "scale": np.array(0.25),
        "empty": np.zeros((0, 4), np.float32),
    }


def _all(tensors: Tensors) -> Read:
    with tensors:
        read = {}
        for name in tensors.names:
            array = tensors.read(name)
            read[name] = (tensors.dtype(name), tensors.shape(name), array.tobytes())
        return read


def _damage(folder: pathlib.Path, draw: random.Random) -> str:
    path = draw.choice(sorted(folder.iterdir()))
    if path.suffix == ".json" or draw.random() < 0.1:
        return damage_one(folder, draw)
    path.write_bytes(damage_bytes(path.read_bytes(), draw, high=_HEADER if draw.random() < 0.8 else None))
    return f"{path.name}: bytes"


def _make_safetensors(folder: pathlib.Path) -> None:
    sources = [(n, a.shape, NAMES[a.dtype], lambda a=a: a) for n, a in _arrays().items()]
    safetensors_files.write_folder(folder, sources, max_shard_bytes=150)


def _safetensors_library(folder: pathlib.Path) -> Read:
    import safetensors

    single = folder / safetensors_files.MODEL
    read = {}
    for path in [single] if single.exists() else sorted(folder.glob("*.safetensors")):
        for name, entry in safetensors.deserialize(path.read_bytes()):
            read[name] = (entry["dtype"], tuple(entry["shape"]), bytes(entry["data"]))
    return read


def _make_hdf5(folder: pathlib.Path) -> None:
    import h5py

    with h5py.File(folder / hdf5_files.KERAS, "w") as file:
        for name, array in _arrays().items():
            dataset = file.create_dataset(name, data=array)
            if array.dtype == ml_dtypes.bfloat16:
                dataset.attrs["dtype"] = "bfloat16"  # As Keras does.


def _h5py_alone(folder: pathlib.Path) -> Read:
    import h5py

    read = {}
    with h5py.File(folder / hdf5_files.KERAS, "r", locking=False) as file:
        groups = [("", file)]
        while groups:
            prefix, group = groups.pop()
            for name, item in group.items():
                if isinstance(item, h5py.Group):
                    groups.append((f"{prefix}{name}/", item))
                else:
                    array = np.asarray(item[()])
                    array = array.view(ml_dtypes.bfloat16) if array.dtype == "V2" else array
                    read[prefix + name] = (NAMES[array.dtype], array.shape, array.tobytes())
    return read


def _make_tf1(folder: pathlib.Path) -> None:
    import tensorflow as tf

    arrays = _arrays()
    del arrays["mask"], arrays["empty"]
    arrays["encoder/layer_0/kernel/adam_m"] = arrays["encoder/layer_0/kernel"]
    tf.raw_ops.SaveV2(
        prefix=str(folder / "bert_model.ckpt"),
        tensor_names=list(arrays),
        shape_and_slices=[""] * len(arrays),
        tensors=list(arrays.values()),
    )


def _damage_tf1(folder: pathlib.Path, draw: random.Random) -> str:
    """Damages a file; half of the time it is the index's first block, whose checksum is then corrected, so that the
    damage gets past TensorFlow's check."""
    if draw.random() < 0.5:
        return damage_one(folder, draw)
    path = folder / "bert_model.ckpt.index"
    data = path.read_bytes()
    # A table of LevelDB: blocks, each followed by a byte and the checksum of both; the first begins the file.
    size = next(n for n in range(len(data) - 5) if data[n + 1 : n + 5] == _checksum(data[: n + 1]))
    block = bytearray(data[: size + 1])
    for _ in range(draw.choice((1, 1, 2, 3))):
        place = draw.randrange(size)
        block[place] = draw.choice((block[place] ^ (1 << draw.randrange(8)), 0, 0x7F, 0x80, 0xFF))
    path.write_bytes(bytes(block) + _checksum(bytes(block)) + data[size + 5 :])
    return f"{path.name}: bytes, with a correct checksum"


def _checksum(data: bytes) -> bytes:
    """Returns the masked CRC-32C that LevelDB stores; TFRecord files have the same."""
    return records.checksum(data).to_bytes(4, "little")


def _tensorflow_alone(folder: pathlib.Path) -> Read:
    import tensorflow as tf

    reader = tf.train.load_checkpoint(str(next(folder.glob("*.index")).with_suffix("")))
    kept = _all(tf1_files.open_tf1(folder)).keys()  # Without the slots of optimizers.
    arrays = {name: np.asarray(reader.get_tensor(name)) for name in kept}
    return {name: (NAMES[a.dtype], a.shape, a.tobytes()) for name, a in arrays.items()}


KINDS = {
    "safetensors": Kind(
        _make_safetensors,
        _damage,
        lambda folder: _all(safetensors_files.open_folder(folder)),
        _safetensors_library,
        ("safetensors",),
    ),
    "hdf5": Kind(_make_hdf5, _damage, lambda folder: _all(hdf5_files.open_h5(folder)), _h5py_alone, ("h5py",)),
    "tf1": Kind(
        _make_tf1,
        _damage_tf1,
        lambda folder: _all(tf1_files.open_tf1(folder)),
        _tensorflow_alone,
        ("tensorflow",),
    ),
}
