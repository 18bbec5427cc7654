"""Reads Keras 3's HDF5 weight files, such as those of KerasHub presets."""

import math
import mmap
import os
import pathlib
from typing import Any

import numpy as np

from tfzoo.errors import UserError, one_line
from tfzoo.json_files import show
from tfzoo.weights.tensors import (
    AGAIN,
    DTYPES,
    HDF5,
    MAX_SHARDS,
    NAMES,
    Place,
    Tensors,
    check_count,
    check_shape,
    check_shard_name,
    explained,
    map_file,
    read_weight_map,
    refuse_other_formats,
)

KERAS, KERAS_INDEX = "model.weights.h5", "model.weights.json"
MAX_HDF5_OBJECTS = 10_000  # h5py takes about 0.1 ms for each.


@explained
def open_h5(path: str | os.PathLike) -> Tensors:
    """Opens a Keras 3 weight file, such as that of a KerasHub preset; names are HDF5's ("layers/dense/vars/0").

    Args:
      path: model.weights.h5, or model.weights.json (the index of several files), or a folder with one of them.

    Raises:
      UserError: the file cannot be read, or contains something that Keras does not write: links, or virtual, external,
        compressed or incomplete data. No tensor is read.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        path = path / KERAS if (path / KERAS).exists() else path / KERAS_INDEX
        if not path.exists():
            raise UserError(
                f"{path.parent}: contains neither {KERAS} nor {KERAS_INDEX}; specify a KerasHub preset's folder"
            )
    shards = [path]
    if path.suffix == ".json":
        names_of_shards = set()
        for group, names in read_weight_map(path).items():
            for name in names if isinstance(names, list) else [names]:
                check_shard_name(path, group, name)
                names_of_shards.add(name)
        check_count(path, len(names_of_shards), "shards", MAX_SHARDS)
        shards = [path.with_name(name) for name in sorted(names_of_shards)]
    places: dict[str, Place] = {}
    maps = {}
    for shard in shards:
        maps[shard] = map_file(shard)
        for name, place in _hdf5_places(shard, maps[shard]).items():
            if name in places:
                raise UserError(f"{shard}: tensor {show(name)} is also in {places[name].file.name}; {AGAIN}")
            places[name] = place
        check_count(path, len(places), "tensors", MAX_HDF5_OBJECTS)
    return Tensors(places, maps)


def _hdf5_places(path: pathlib.Path, mapped: mmap.mmap) -> dict[str, Place]:
    if mapped[:8] != HDF5:
        refuse_other_formats(path, mapped[:64])
        raise UserError(f"{path}: is not an HDF5 file; {AGAIN}")

    import h5py  # Installed with Keras.

    places = {}
    try:
        with h5py.File(path, "r", locking=False) as file:
            objects = 0
            groups: list[tuple[str, Any]] = [("", file)]
            while groups:  # The limit ends a cycle of groups.
                prefix, group = groups.pop()
                for key in group:
                    objects += 1
                    if objects > MAX_HDF5_OBJECTS:
                        raise UserError(f"{path}: has more than {MAX_HDF5_OBJECTS} groups and tensors; {AGAIN}")
                    name = prefix + key
                    try:
                        if not isinstance(group.get(key, getlink=True), h5py.HardLink):
                            raise ValueError("is a link, which Keras does not write")
                        item = group[key]
                        if isinstance(item, h5py.Group):
                            groups.append((name + "/", item))
                        else:
                            places[name] = _hdf5_place(path, item, len(mapped))
                    except ValueError as error:
                        raise UserError(f"{path}: tensor {show(name)}: {one_line(error, 200)}; {AGAIN}") from None
    except UserError:
        raise
    except Exception as error:  # h5py passes on any error that a damaged file causes in its library.
        raise UserError(f"{path}: cannot be read ({type(error).__name__}: {one_line(error, 200)}); {AGAIN}") from None
    return places


def _hdf5_place(path: pathlib.Path, item: Any, file_size: int) -> Place:
    """Returns the place of a dataset's bytes, which Keras writes contiguously so that they can be mapped.

    Raises:
      ValueError: the dataset is not of this kind.
    """
    import h5py

    if not isinstance(item, h5py.Dataset) or item.shape is None:
        raise ValueError("is not an array")
    stored = item.dtype
    # NumPy's nearest dtype is not sufficient: a float's bits can be laid out differently.
    exact = h5py.h5t.py_create(stored, logical=True) == item.id.get_type()
    if stored == np.dtype("V2") and item.attrs.get("dtype") == "bfloat16":
        stored, exact = DTYPES["BF16"], True
    if stored not in NAMES or not exact:
        raise ValueError(f"dtype {stored} is not one of {', '.join(DTYPES)}")
    check_shape(item.shape)
    size = math.prod(item.shape) * stored.itemsize
    offset = item.id.get_offset() if size else 0
    if size and (item.id.get_create_plist().get_layout() != h5py.h5d.CONTIGUOUS or item.external or offset is None):
        raise ValueError("is virtual, external, compressed or without content, which Keras does not write")
    if offset + size > file_size:
        raise ValueError(f"shape {list(item.shape)} ends at byte {offset + size}, but the file has {file_size}")
    return Place(path, NAMES[stored], item.shape, offset)
