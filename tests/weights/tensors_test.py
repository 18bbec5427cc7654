"""Weight files: round trips with the safetensors library, and errors that name every bad file.

Only one test class imports TensorFlow.
"""

import gzip
import json
import os
import pathlib
import pickle
import random
import sys
import tempfile
import unittest

import h5py
import ml_dtypes
import numpy as np
import safetensors.numpy

from tests import helpers
from tfzoo.errors import UserError
from tfzoo.weights import tensors as tensors_lib
from tfzoo.weights.hdf5_files import open_h5
from tfzoo.weights.safetensors_files import open_file, open_folder, write_folder
from tfzoo.weights.tf1_files import open_tf1


def samples() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {
        "encoder.weight": random.normal(size=(7, 5)).astype(np.float32),
        "encoder.bias": random.normal(size=5).astype(np.float16),
        "b.weight": random.normal(size=(3, 2, 5)).astype(ml_dtypes.bfloat16),
        "a.weight": random.normal(size=(3, 4)).astype(np.float32),
        "positions": np.arange(-3, 4, dtype=np.int64),
        "mask": np.array([[True, False, True]]),
        "scale": np.array(0.25),
        "empty": np.zeros((0, 4), np.float32),
        'a "quoted" \\ n\u00e4me\n': np.array([1, 255], np.uint8),
        "small": np.array([0.5, -448], ml_dtypes.float8_e4m3fn),
        "smaller": np.array([0.5, -57344], ml_dtypes.float8_e5m2),
    }


def sources(arrays):
    return [(n, a.shape, tensors_lib.NAMES[a.dtype], lambda a=a: a) for n, a in arrays.items()]


def pack(header, payload: bytes = b"") -> bytes:
    """Returns a file with this header, which is an object or the header's bytes."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + payload


def tensor(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


class Folders(unittest.TestCase):
    def setUp(self):
        self.folder = helpers.temporary_folder(self)

    def write(self, name: str, data: bytes) -> pathlib.Path:
        (self.folder / name).write_bytes(data)
        return self.folder / name

    def assert_same(self, left: dict, right: dict):
        self.assertEqual(sorted(left), sorted(right))
        for name in left:
            self.assertEqual(left[name].dtype, right[name].dtype, name)
            self.assertEqual(left[name].shape, right[name].shape, name)
            self.assertEqual(left[name].tobytes(), right[name].tobytes(), name)

    def refused(self, message: str, function, *arguments):
        """Checks for a one-line error that names a file in the folder and matches `message`."""
        with self.assertRaisesRegex(UserError, message) as caught:
            function(*arguments)
        text = str(caught.exception)
        self.assertEqual(len(text.splitlines()), 1, text)
        self.assertIn(str(self.folder), text)
        self.assertLess(len(text.replace(str(self.folder), "")), 700)
        self.assertRegex(text, "[;:] [a-z]")


class RoundTripTest(Folders):
    def test_written_bytes_equal_the_librarys(self):
        write_folder(self.folder, sources(samples()))
        path = self.folder / "model.safetensors"
        self.assertEqual(path.read_bytes(), safetensors.numpy.save(samples(), {"format": "pt"}))
        # Not load_file, which does not support float8.
        for name, read in safetensors.deserialize(path.read_bytes()):
            array = samples()[name]
            self.assertEqual(tuple(read["shape"]), array.shape)
            self.assertEqual(tensors_lib.DTYPES[read["dtype"]], array.dtype)
            self.assertEqual(bytes(read["data"]), array.tobytes())
        with open_folder(self.folder) as tensors:
            self.assert_same({name: tensors.read(name) for name in tensors.names}, samples())

    def test_files_written_by_the_library_are_read(self):
        arrays = samples()
        safetensors.numpy.save_file(arrays, self.folder / "anything", {"format": "np"})
        with open_file(self.folder / "anything") as tensors:
            self.assertEqual(tensors.names, sorted(arrays))
            self.assertEqual(len(tensors), len(arrays))
            self.assertIn("scale", tensors)
            self.assertNotIn("scales", tensors)
            self.assertEqual(tensors.shape("b.weight"), (3, 2, 5))
            self.assertEqual(tensors.dtype("b.weight"), "BF16")
            self.assertEqual(tensors.file("b.weight"), self.folder / "anything")
            self.assert_same({name: tensors.read(name) for name in tensors.names}, arrays)
            self.assertTrue(tensors.read("b.weight").flags.writeable)

    def test_shards_both_ways(self):
        arrays = samples()
        write_folder(self.folder, sources(arrays), max_shard_bytes=100)
        index = json.loads((self.folder / "model.safetensors.index.json").read_text())
        self.assertEqual(index["metadata"], {"total_size": sum(a.nbytes for a in arrays.values())})
        self.assertEqual(list(index["weight_map"]), sorted(arrays))
        shards = sorted(set(index["weight_map"].values()))
        self.assertEqual(shards[0], f"model-00001-of-{len(shards):05d}.safetensors")
        self.assertGreater(len(shards), 2)
        self.assertEqual(
            sorted(p.name for p in self.folder.iterdir()), sorted([*shards, "model.safetensors.index.json"])
        )
        for shard in shards:
            with safetensors.safe_open(self.folder / shard, "np") as file:
                self.assertEqual(file.metadata(), {"format": "pt"})
                held = set(file.keys())
            self.assertEqual(held, {name for name, place in index["weight_map"].items() if place == shard})
            self.assertTrue(len(held) == 1 or sum(arrays[name].nbytes for name in held) <= 100)
        with open_folder(self.folder) as tensors:
            self.assertEqual(tensors.file("a.weight").name, index["weight_map"]["a.weight"])
            self.assert_same({name: tensors.read(name) for name in tensors.names}, arrays)

    def test_shards_by_the_library(self):
        first, second = dict(x=np.arange(3.0)), dict(y=np.arange(4), z=np.ones((2, 2), np.float16))
        safetensors.numpy.save_file(first, self.folder / "one.safetensors")
        safetensors.numpy.save_file(second, self.folder / "blob")
        (self.folder / "two.safetensors").symlink_to("blob")  # As in Hugging Face's cache.
        weight_map = dict(x="one.safetensors", y="two.safetensors", z="two.safetensors")
        self.write("model.safetensors.index.json", json.dumps({"metadata": {}, "weight_map": weight_map}).encode())
        with open_folder(str(self.folder)) as tensors:
            self.assert_same({name: tensors.read(name) for name in tensors.names}, first | second)

    def test_chunks_are_rows_in_order(self):
        array = np.arange(23 * 6, dtype=np.float32).reshape(23, 2, 3)
        write_folder(
            self.folder, sources({"x": array, "scalar": np.ones(()), "none": np.zeros((0, 3)), "wide": array[:2]})
        )
        before, tensors_lib.CHUNK_BYTES = tensors_lib.CHUNK_BYTES, 5 * 24
        self.addCleanup(setattr, tensors_lib, "CHUNK_BYTES", before)
        with open_folder(self.folder) as tensors:
            chunks = list(tensors.chunks("x"))
            self.assertEqual(
                [(start, len(rows)) for start, rows in chunks], [(0, 5), (5, 5), (10, 5), (15, 5), (20, 3)]
            )
            np.testing.assert_array_equal(np.concatenate([rows for _, rows in chunks]), array)
            self.assertFalse(chunks[0][1].flags.writeable)
            self.assertEqual([(start, rows.shape) for start, rows in tensors.chunks("scalar")], [(0, ())])
            self.assertEqual([(start, rows.shape) for start, rows in tensors.chunks("none")], [(0, (0, 3))])
            tensors_lib.CHUNK_BYTES = 1
            self.assertEqual([(start, len(rows)) for start, rows in tensors.chunks("wide")], [(0, 1), (1, 1)])
        np.testing.assert_array_equal(chunks[-1][1], array[20:])  # Still available after closing.
        with self.assertRaisesRegex(ValueError, "closed"):
            tensors.read("x")

    def test_header_that_begins_like_a_pickle(self):
        header = json.dumps({"x": tensor()}).encode()
        data = pack(header.ljust(0x480), bytes(8))
        self.assertEqual(data[:2], pickle.dumps([], protocol=4)[:2])
        with open_file(self.write("x", data)) as tensors:
            np.testing.assert_array_equal(tensors.read("x"), [0, 0])

    def test_tensors_that_are_not_aligned(self):
        payload = b"\1" + np.array([1.5, 2.5], np.float32).tobytes() + np.ones(3, ml_dtypes.bfloat16).tobytes()
        header = {
            "m": tensor("BOOL", (1,), (0, 1)),
            "x": tensor("F32", (2,), (1, 9)),
            "y": tensor("BF16", (3,), (9, 15)),
        }
        with open_file(self.write("x", pack(header, payload))) as tensors:
            np.testing.assert_array_equal(tensors.read("x"), [1.5, 2.5])
            np.testing.assert_array_equal(tensors.read("y"), np.ones(3))

    def test_the_writer_requests_each_array_once_and_checks_it(self):
        requested = []
        x = ("x", (2, 3), "F32", lambda: requested.append("x") or np.asfortranarray(np.ones((2, 3), np.float32)))
        y = ("y", (4,), "F32", lambda: requested.append("y") or np.zeros(4, np.float32))
        write_folder(self.folder, iter([x, y]), metadata={})
        self.assertEqual(requested, ["x", "y"])
        self.assert_same(
            safetensors.numpy.load_file(self.folder / "model.safetensors"),
            dict(x=np.ones((2, 3), np.float32), y=np.zeros(4, np.float32)),
        )
        for bad, message in (
            ([x, x], "its name is already used"),
            ([("__metadata__", *x[1:])], "its name is already used"),
            ([("x", (2,), "F31", x[3])], "dtype is unknown"),
            ([("x", (3, 2), "F32", x[3])], r"float32\[2, 3\], but was declared as F32\[3, 2\]"),
            ([("x", (2, 3), "F16", x[3])], "declared as F16"),
        ):
            with self.subTest(message), tempfile.TemporaryDirectory() as folder:
                with self.assertRaisesRegex(ValueError, message):
                    write_folder(folder, bad)


ONE = {"x": tensor()}

# name -> (bytes, the expected message)
BAD_FILES = {
    "empty": (b"", "is empty; .*damaged"),
    "short": (b"\x01\x00", r"header should have 1 bytes, but the whole file has 2"),
    "length alone": (bytes(8), "header begins with b''"),
    "no object": (pack(b"[1]"), r"header begins with b'\['"),
    "header longer than the file": (pack(ONE, bytes(8))[:20], "is truncated: its header should have 61 bytes"),
    "header of 2^63 bytes": (b"\xff" * 7 + b"\x7f{}", "header should have 9223372036854775807 bytes"),
    "header too large": (pack(b"{" + b" " * (16 << 20) + b"}"), "its header has 16777218 bytes, at most 16777216 are"),
    "pickle 2": (
        pickle.dumps({"x": list(range(99))}, protocol=2),
        r"is a pickle \(by its first bytes\).*save_pretrained",
    ),
    "pickle 4": (pickle.dumps({"x": list(range(99))}, protocol=4), r"is a pickle \(by its first bytes\)"),
    "zip": (b"PK\x03\x04" + bytes(60), "is a zip archive, which torch.save writes with a pickle inside"),
    "empty zip": (b"PK\x05\x06" + bytes(18), "is a zip archive"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(60), "is an HDF5 file"),
    "gzip": (gzip.compress(pack(ONE, bytes(8))), "is compressed with gzip"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "Git LFS pointer.*git lfs pull"),
    "html": (b"<!DOCTYPE html><html><body>Not found</body></html>", "is not a safetensors file"),
    "not JSON": (pack(b'{"x":}'), "its header: is not JSON .Expecting value"),
    "cut JSON": (pack(json.dumps(ONE).encode()[:-1]), "its header: is not JSON"),
    "not UTF-8": (pack(b'{"\xff":1}'), r"its header: is not UTF-8 .b'.xff"),
    "UTF-16": (pack(b"{\x00}\x00"), "its header: is not JSON"),
    "duplicate tensor": (pack(b'{"x":1,"y":2,"x":3}'), "the key 'x' appears twice"),
    "duplicate field": (pack(b'{"x":{"dtype":"F32","dtype":"F16"}}'), "the key 'dtype' appears twice"),
    "NaN": (pack(b'{"x":NaN}'), "NaN is not JSON"),
    "infinity": (pack(b'{"x":{"dtype":"F32","shape":[-Infinity],"data_offsets":[0,4]}}'), "-Infinity is not JSON"),
    "deep lists": (pack(b'{"x":' + b"[" * 200_000 + b"]" * 200_000 + b"}"), "nested too deeply"),
    "deep objects": (pack(b'{"x":' * 200_000 + b"1" + b"}" * 200_000), "nested too deeply"),
    "long number": (
        pack(b'{"x":{"dtype":"F32","shape":[' + b"9" * 9999 + b'],"data_offsets":[0,4]}}'),
        "its header: is not valid JSON .*digits",
    ),
    "many parts": (
        pack(b'{"x":[' + b"{}," * 2_000_000 + b"1]}"),
        "has 4000003 brackets, commas and colons, more than the limit of 1600000",
    ),
    "many tensors": (
        pack({str(i): tensor("I8", (0,), (0, 0)) for i in range(100_001)}),
        "has 100001 tensors, but at most 100000 are allowed",
    ),
    "metadata no object": (pack({"__metadata__": []}), "__metadata__ must map strings to strings"),
    "metadata no string": (pack({"__metadata__": {"format": 1}}), "__metadata__ must map strings to strings"),
    "no fields": (pack({"x": 3}), "tensor 'x': 3 must have dtype, shape and data_offsets"),
    "missing field": (pack({"x": {"dtype": "F32", "shape": [2]}}), "tensor 'x': {.* must have dtype"),
    "unknown field": (pack({"x": tensor() | {"stride": 1}}, bytes(8)), "tensor 'x': {.* must have dtype"),
    "unknown dtype": (pack({"x": tensor("F31")}, bytes(8)), "tensor 'x': dtype 'F31' is not one of BOOL, U8"),
    "dtype of four bits": (pack({"x": tensor("F4", (16,))}, bytes(8)), "tensor 'x': dtype 'F4' is not one of"),
    "dtype no string": (pack({"x": tensor(["F32"])}, bytes(8)), r"tensor 'x': dtype \['F32'\] is not one of"),
    "shape no list": (pack({"x": tensor() | {"shape": 2}}, bytes(8)), "tensor 'x': shape 2 must be a list"),
    "negative shape": (pack({"x": tensor(shape=(-1, -2))}, bytes(8)), r"tensor 'x': shape \[-1, -2\] must be a list"),
    "float shape": (pack({"x": tensor(shape=(2.0,))}, bytes(8)), r"tensor 'x': shape \[2.0\] must be a list"),
    "infinite shape": (pack(b'{"x":{"dtype":"F32","shape":[1e999],"data_offsets":[0,8]}}'), "number 1e999 is too lar"),
    "boolean shape": (pack({"x": tensor("F64", (True,))}, bytes(8)), r"tensor 'x': shape \[True\] must be a list"),
    # Wrapped to 64 bits, the product is 2.
    "overflowing shape": (pack({"x": tensor(shape=(2**63 + 1, 2))}, bytes(8)), "tensor 'x': shape .* is too large"),
    "empty but huge": (pack({"x": tensor(shape=(0, 2**60), offsets=(0, 0))}), "tensor 'x': shape .* is too large"),
    "too many axes": (
        pack({"x": tensor(shape=[1] * 64, offsets=(0, 4))}, bytes(4)),
        "tensor 'x': shape .* is too large",
    ),
    "shape above the bytes": (
        pack({"x": tensor(shape=(1000, 1000))}, bytes(8)),
        r"tensor 'x': F32 of shape \[1000, 1000\] takes 4000000 bytes, but data_offsets \[0, 8\] span 8",
    ),
    "one offset": (pack({"x": tensor(offsets=(0,))}, bytes(8)), r"tensor 'x': data_offsets \[0\] must be"),
    "backward offsets": (pack({"x": tensor(offsets=(8, 0))}, bytes(8)), r"tensor 'x': data_offsets \[8, 0\] must be"),
    "negative offset": (pack({"x": tensor(offsets=(-8, 0))}, bytes(8)), r"tensor 'x': data_offsets \[-8, 0\] must be"),
    "overlap": (
        pack({"x": tensor(), "y": tensor(offsets=(4, 12))}, bytes(12)),
        "tensors 'x' and 'y' overlap at byte 4",
    ),
    "same bytes": (pack({"x": tensor(), "y": tensor()}, bytes(8)), "tensors 'x' and 'y' overlap at byte 0"),
    "hole": (
        pack({"x": tensor(), "y": tensor(offsets=(12, 20))}, bytes(20)),
        "4 bytes before tensor 'y' belong to no tensor",
    ),
    "hole in front": (pack({"x": tensor(offsets=(8, 16))}, bytes(16)), "8 bytes before tensor 'x'"),
    "truncated": (pack(ONE, bytes(7)), "is truncated: tensor 'x' ends at byte 8 of 7"),
    "longer": (pack(ONE, bytes(9)), "has 1 bytes after its last tensor 'x'"),
    "name of two lines": (pack({"x\nerror: y": 3}), r"tensor 'x\\nerror: y': 3 must have"),
    "long name": (pack({"x" * 10_000: 3}), r"tensor 'xxxx.*\.\.\..*xxx': 3 must have"),
    "half a character": (pack(b'{"\\ud800":3}'), r"tensor '\\ud800': 3 must have"),
}


class BadFileTest(Folders):
    def test_each_is_rejected_by_name(self):
        for name, (data, message) in BAD_FILES.items():
            with self.subTest(name):
                path = self.write("weights of any name", data)
                self.refused(f"{path}: .*{message}", open_file, path)
        self.write("model.safetensors", BAD_FILES["pickle 2"][0])
        self.refused("model.safetensors: is a pickle", open_folder, self.folder)

    def test_nothing_to_open(self):
        self.refused("no such folder", open_folder, self.folder / "absent")
        self.refused("absent: no such file", open_file, self.folder / "absent")
        self.refused("neither model.safetensors nor", open_folder, self.folder)
        os.mkfifo(self.folder / "model.safetensors")
        self.refused("is not a plain file", open_folder, self.folder)
        self.refused("is not a plain file", open_file, self.folder)
        self.refused("File name too long", open_folder, self.folder / ("x" * 300))

    def test_folder_of_pickles(self):
        self.write("config.json", b"{}")
        self.write("pytorch_model.bin", b"")
        self.refused("only 'pytorch_model.bin', a pickle.*save_pretrained", open_folder, self.folder)

    def test_not_finite(self):
        for dtype in ("F64", "F32", "F16", "BF16", "F8_E5M2", "F8_E4M3"):
            for value in (np.nan, -np.nan) if dtype == "F8_E4M3" else (np.nan, -np.nan, np.inf, -np.inf):
                # The largest finite value of either sign is accepted.
                numpy_dtype = tensors_lib.DTYPES[dtype]
                largest = ml_dtypes.finfo(numpy_dtype).max
                array = np.full((300, 2000), largest, numpy_dtype)
                array[::2] = -largest
                with self.subTest(dtype, value=value), tempfile.TemporaryDirectory(dir=self.folder) as folder:
                    write_folder(folder, [("x", array.shape, dtype, lambda array=array: array)])
                    open_folder(folder).read("x")
                    array[299, 1234] = value
                    (pathlib.Path(folder) / "model.safetensors").unlink()
                    write_folder(folder, [("x", array.shape, dtype, lambda array=array: array)])
                    for read in (lambda t: t.read("x"), lambda t: list(t.chunks("x"))):
                        self.refused(
                            r"model.safetensors: tensor 'x' is (nan|-?inf) at \[299, 1234\]", read, open_folder(folder)
                        )
        scalar = np.full((), np.nan, np.float32)
        write_folder(self.folder, sources({"s": scalar, "i": np.full(2, -1)}))
        self.refused(r"tensor 's' is nan at \[\]", open_folder(self.folder).read, "s")
        open_folder(self.folder).read("i")

    def test_not_finite_rows_are_counted_from_the_first(self):
        array = np.zeros((9, 4), np.float32)
        array[7, 2] = np.inf
        write_folder(self.folder, sources({"x": array}))
        before, tensors_lib.CHUNK_BYTES = tensors_lib.CHUNK_BYTES, 32
        self.addCleanup(setattr, tensors_lib, "CHUNK_BYTES", before)
        self.refused(r"tensor 'x' is inf at \[7, 2\]", open_folder(self.folder).read, "x")


class BadIndexTest(Folders):
    def index(self, weight_map, **files):
        for name, header in files.items():
            self.write(name, pack(header, bytes(8 * len(header))))
        self.write("model.safetensors.index.json", json.dumps({"weight_map": weight_map}).encode())

    def test_shards_and_index_must_agree(self):
        two = {"x": tensor(), "y": tensor(offsets=(8, 16))}
        for name, weight_map, files, message in (
            ("absent", {"x": "a", "y": "b"}, {"a": ONE}, "lists the shard 'b', which is missing"),
            ("not in its shard", {"x": "a", "y": "a"}, {"a": ONE}, "index.json: tensor 'y' is missing from 'a'"),
            ("in another", {"x": "a", "y": "a"}, {"a": ONE, "b": {"y": tensor()}}, "tensor 'y' is missing from 'a'"),
            ("swapped", {"x": "b", "y": "a"}, {"a": ONE, "b": {"y": tensor()}}, "tensor 'x' is missing from 'b'"),
            ("in two", {"x": "a", "y": "b"}, {"a": two, "b": {"y": tensor()}}, "b: tensor 'y' is also in a"),
            ("not listed", {"x": "a"}, {"a": two}, "a: tensor 'y' is not in model.safetensors.index.json"),
            ("bad shard", {"x": "a"}, {"a": {"x": tensor("F31")}}, "a: tensor 'x': dtype 'F31'"),
        ):
            with self.subTest(name):
                self.index(weight_map, **files)
                self.refused(message, open_folder, self.folder)
                for file in self.folder.iterdir():
                    file.unlink()

    def test_shards_are_names_in_the_folder(self):
        outside = self.folder / "outside"
        outside.write_bytes(pack(ONE, bytes(8)))
        inside = self.folder / "inside"
        inside.mkdir()
        for shard in (
            "../outside",
            str(outside),
            "./../outside",
            "",
            ".",
            "..",
            "a/b",
            "a\\b",
            "C:a",
            "a\0",
            "a\n",
            3,
            None,
            ["a"],
        ):
            with self.subTest(repr(shard)):
                text = json.dumps({"weight_map": {"x": shard}})
                (inside / "model.safetensors.index.json").write_text(text)
                self.refused("tensor 'x' is listed in .*a plain file name", open_folder, inside)
        (inside / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": "s" * 300}}))
        self.refused("tensor 'x' is listed in .*a plain file name", open_folder, inside)
        (inside / "model.safetensors.index.json").write_text('{"weight_map": {"x": "\\ud800"}}')
        self.refused("contains a lone surrogate", open_folder, inside)

    def test_the_index_itself(self):
        for name, text, message in (
            ("empty", "", "is empty"),
            ("no JSON", "{", "is not JSON"),
            ("a list", "[]", "contains a list, not an object"),
            ("no map", "{}", "has no weight_map"),
            ("another map", '{"weight_map": []}', r"weight_map is \[\], not an object"),
            ("duplicate", '{"weight_map": {"x": "a", "x": "b"}}', "the key 'x' appears twice"),
            ("nested", "[" * 100_000, "nested too deeply"),
            ("large", " " * (16 << 20) + "{}", "has 16777218 bytes, more than the limit of 16777216"),
            ("pickle", "\x80\x04.", "is not JSON"),
            ("many shards", json.dumps({"weight_map": {str(i): str(i) for i in range(5000)}}), "has 5000 shards"),
        ):
            with self.subTest(name):
                self.write("model.safetensors.index.json", text.encode())
                self.refused(f"index.json[:,] .*{message}", open_folder, self.folder)


class FuzzTest(Folders):
    def attempt(self, data: bytes) -> bool:
        (self.folder / "x").unlink(missing_ok=True)  # Some file systems flush a rewritten file.
        try:
            with open_file(self.write("x", data)) as tensors:
                for name in tensors.names:
                    tensors.read(name)
            return True
        except UserError as error:
            self.assertEqual(len(str(error).splitlines()), 1)
            return False

    def test_only_user_errors_come_out(self):
        arrays = {n: samples()[n] for n in ("b.weight", "positions", "scale", "empty")}
        write_folder(self.folder, sources(arrays))
        good = (self.folder / "model.safetensors").read_bytes()
        self.assertTrue(self.attempt(good))
        for length in range(len(good)):
            self.assertFalse(self.attempt(good[:length]), length)
        header = 8 + int.from_bytes(good[:8], "little")
        chance = random.Random(0)
        for at in range(header):
            for bit in chance.sample(range(8), 2):
                flipped = bytearray(good)
                flipped[at] ^= 1 << bit
                self.attempt(bytes(flipped))
            flipped[at] = chance.choice(b'0123456789"{}[],:\\ -e.')
            self.attempt(bytes(flipped))
        for _ in range(200):
            first, last = sorted(chance.sample(range(8, header), 2))
            text = good[8:first] + good[last:header]  # A piece omitted, and the length corrected.
            self.attempt(pack(text, good[header:]))


MEMORY = """
import sys
from tfzoo.weights import safetensors_files
import numpy as np

def resident(key):
    for line in open("/proc/self/status"):
        if line.startswith(key):
            return int(line.split()[1]) / 1024

def peak():
    return resident("VmHWM:")

safetensors_files.open_file(sys.argv[2]).read("x")  # Whatever is loaded at first use.
before = peak()
with safetensors_files.open_file(sys.argv[1]) as opened:
    opening = peak() - before
    total = sum(float(rows.sum()) for name in opened.names for _, rows in opened.chunks(name))
    chunks = peak() - before
    array = opened.read("x")
    copied = peak() - before
    del array
print(total, opening, chunks, copied)
"""


@unittest.skipUnless(sys.platform == "linux", "reads /proc")
class MemoryTest(Folders):
    def test_chunks_do_not_accumulate(self):
        for name, rows in (("large", 16384), ("small", 1)):
            (self.folder / name).mkdir()
            source = ("x", (rows, 1024), "F32", lambda rows=rows: np.ones((rows, 1024), np.float32))
            write_folder(self.folder / name, [source])
        paths = [str(self.folder / name / "model.safetensors") for name in ("large", "small")]
        process = helpers.python("-c", MEMORY, *paths)
        total, opening, chunks, copied = map(float, process.stdout.split())
        self.assertEqual(total, 16384 * 1024)
        self.assertLess(opening, 2)  # MiB
        self.assertLess(chunks, 16 + 8)
        self.assertLess(copied, 64 + 16 + 8)
        self.assertGreater(copied, 64)

    def test_a_hostile_header_uses_little_memory(self):
        path = self.write("x", pack(b'{"x":[' + b"{}," * 2_000_000 + b"1]}"))
        code = (
            "import sys; from tfzoo import errors; from tfzoo.weights import safetensors_files\n"
            # Not ru_maxrss, which starts at the value of the parent process. In KiB.
            "peak = lambda: int(open('/proc/self/status').read().partition('VmHWM:')[2].split()[0])\n"
            "before = peak()\n"
            "try: safetensors_files.open_file(sys.argv[1])\n"
            "except errors.UserError: print(peak() - before)"
        )
        process = helpers.python("-c", code, path)
        self.assertLess(int(process.stdout) / 1024, 32)  # MiB


class HDF5Test(Folders):
    def setUp(self):
        super().setUp()
        self.path = self.folder / "model.weights.h5"

    def write_h5(self, fill, path=None):
        with h5py.File(path or self.path, "w") as file:
            fill(file)

    def test_round_trip(self):
        arrays = {
            "layers/dense/vars/0": np.arange(12, dtype=np.float32).reshape(3, 4),
            "layers/dense/vars/1": np.float16([1, 2]),
            "layers/norm/vars/0": np.arange(5).astype(ml_dtypes.bfloat16),
            "seed/vars/0": np.array([1, 2], np.uint32),
            "step": np.array(7, np.int64),
            "none": np.zeros((0, 3), np.float32),
            "flags": np.array([True, False]),
        }

        def fill(file):
            for name, array in arrays.items():
                dataset = file.create_dataset(name, data=array)
                if array.dtype == ml_dtypes.bfloat16:
                    dataset.attrs["dtype"] = "bfloat16"  # As Keras does.

        self.write_h5(fill)
        for path in (self.path, self.folder):
            with open_h5(path) as tensors:
                self.assertEqual(tensors.dtype("layers/norm/vars/0"), "BF16")
                self.assertEqual(tensors.file("step"), self.path)
                self.assert_same({name: tensors.read(name) for name in tensors.names}, arrays)

    def test_shards(self):
        self.write_h5(
            lambda file: file.create_dataset("a/vars/0", data=np.ones(2)), self.folder / "model_00000.weights.h5"
        )
        self.write_h5(
            lambda file: file.create_dataset("a/vars/1", data=np.ones(3)), self.folder / "model_00001.weights.h5"
        )
        index = {"weight_map": {"/a/vars": ["model_00000.weights.h5", "model_00001.weights.h5"]}}
        self.write("model.weights.json", json.dumps(index).encode())
        with open_h5(self.folder) as tensors:
            self.assertEqual(tensors.names, ["a/vars/0", "a/vars/1"])
            self.assertEqual(tensors.file("a/vars/1").name, "model_00001.weights.h5")
        self.write("model.weights.json", json.dumps({"weight_map": {"/a/vars": "../x.h5"}}).encode())
        self.refused("a plain file name", open_h5, self.folder)

    def test_what_keras_does_not_write_is_rejected(self):
        other = self.folder / "other.h5"
        self.write_h5(lambda file: file.create_dataset("x", data=np.ones(4, np.float32)), other)

        def virtual(file):
            layout = h5py.VirtualLayout(shape=(4,), dtype="f4")
            layout[:] = h5py.VirtualSource(str(other), "x", shape=(4,))
            file.create_virtual_dataset("x", layout)

        def cycle(file):
            file.create_group("a")["b"] = file["/"]

        secret = self.folder / "secret"
        secret.write_bytes(bytes(16))
        for name, fill, message in (
            (
                "external link",
                lambda f: f.__setitem__("x", h5py.ExternalLink(str(other), "x")),
                "tensor 'x': is a link",
            ),
            ("soft link", lambda f: f.__setitem__("x", h5py.SoftLink("/y")), "tensor 'x': is a link"),
            ("virtual", virtual, "tensor 'x': is virtual"),
            (
                "external data",
                lambda f: f.create_dataset("x", (4,), "f4", external=[(str(secret), 0, 16)]),
                "tensor 'x': is virtual, external",
            ),
            ("compressed", lambda f: f.create_dataset("x", data=np.ones(9999), compression="gzip"), "compressed"),
            ("terabytes", lambda f: f.create_dataset("x", (1 << 20, 1 << 20), "f4"), "without content"),
            (
                "terabytes in chunks",
                lambda f: f.create_dataset("x", (1 << 20, 1 << 20), "f4", chunks=(1, 1)),
                "tensor 'x'",
            ),
            ("text", lambda f: f.create_dataset("x", data="text"), "tensor 'x': dtype object is not one of"),
            ("null", lambda f: f.create_dataset("x", data=h5py.Empty("f4")), "tensor 'x': is not an array"),
            ("big-endian", lambda f: f.create_dataset("x", data=np.ones(3, ">f4")), "tensor 'x': dtype >f4"),
            ("compound", lambda f: f.create_dataset("x", (3,), [("a", "f4")]), "tensor 'x': dtype"),
            ("bytes", lambda f: f.create_dataset("x", data=np.zeros(3, "V2")), "tensor 'x': dtype .V2"),
            ("complex", lambda f: f.create_dataset("x", data=np.ones(3, "c8")), "tensor 'x': dtype complex64"),
            ("named type", lambda f: f.__setitem__("x", np.dtype("f4")), "tensor 'x': is not an array"),
            ("cycle", cycle, "more than 10000 groups and tensors"),
        ):
            with self.subTest(name):
                self.write_h5(fill)
                self.refused(f"model.weights.h5: .*{message}", open_h5, self.path)

    def test_other_files_are_rejected(self):
        for data, message in (
            (b"\x80\x04" + bytes(99), "is a pickle"),
            (b"PK\3\4" + bytes(99), "is a zip archive"),
            (pack(ONE, bytes(8)), "is not an HDF5 file"),
            (b"\x89HDF\r\n\x1a\n" + bytes(99), "cannot be read"),
        ):
            with self.subTest(message):
                self.refused(message, open_h5, self.write("model.weights.h5", data))
        self.path.unlink()
        self.refused("contains neither model.weights.h5 nor model.weights.json", open_h5, self.folder)

    def test_not_finite(self):
        self.write_h5(lambda file: file.create_dataset("x", data=np.array([0, np.inf])))
        self.refused(r"model.weights.h5: tensor 'x' is inf at \[1\]", open_h5(self.path).read, "x")

    def test_truncated(self):
        self.write_h5(lambda file: file.create_dataset("a/x", data=np.ones(1000, np.float32)))
        good = self.path.read_bytes()
        for length in range(0, len(good), 97):
            self.path.write_bytes(good[:length])
            self.refused("is empty|cannot be read|is not an HDF5", open_h5, self.path)


class TensorFlowTest(Folders):
    def save(self, arrays, prefix="bert_model.ckpt"):
        import tensorflow as tf

        names = list(arrays)
        prefix = str(self.folder / prefix)
        tf.raw_ops.SaveV2(
            prefix=prefix, tensor_names=names, shape_and_slices=[""] * len(names), tensors=[arrays[n] for n in names]
        )
        return prefix

    def test_checkpoints_without_their_slots(self):
        weights = {
            "bert/encoder/layer_0/attention/self/query/kernel": np.arange(12, dtype=np.float32).reshape(3, 4),
            "cls/seq_relationship/output_bias": np.float32([1, -1]),
            "half": np.ones((2, 2), ml_dtypes.bfloat16),
        }
        slots = {
            "bert/encoder/layer_0/attention/self/query/kernel/adam_m": np.ones((3, 4), np.float32),
            "bert/encoder/layer_0/attention/self/query/kernel/adam_v": np.ones((3, 4), np.float32),
            "cls/seq_relationship/output_bias/lamb_m": np.ones(2, np.float32),
            "global_step": np.int64(3),
        }
        prefix = self.save(weights | slots)
        for path in (prefix, prefix + ".index", self.folder):
            with open_tf1(path) as tensors:
                self.assertEqual(tensors.dtype("half"), "BF16")
                self.assertEqual(tensors.shape("half"), (2, 2))
                self.assert_same({name: tensors.read(name) for name in tensors.names}, weights)
        with self.assertRaisesRegex(ValueError, "closed"):
            tensors.read("half")

    def test_bad_checkpoints(self):
        self.refused("has 0 checkpoints", open_tf1, self.folder)
        self.refused("no such checkpoint", open_tf1, self.folder / "bert_model.ckpt")
        prefix = self.save({"x": np.array([0, np.nan], np.float32), "y": np.ones(1000, np.float32)})
        self.refused(r"tensor 'x' is nan at \[1\]", open_tf1(prefix).read, "x")
        data, index = pathlib.Path(prefix + ".data-00000-of-00001"), pathlib.Path(prefix + ".index")
        whole = data.read_bytes()
        data.write_bytes(whole[:-1])
        self.refused(
            "tensor 'y': shape .1000. ends at byte 4008, but bert_model.ckpt.data-00000-of-00001 has 4007",
            open_tf1,
            prefix,
        )
        data.write_bytes(whole[:-1] + b"\x80")
        self.refused("tensor 'y' cannot be read .*Checksum does not match", open_tf1(prefix).read, "y")
        text = index.read_bytes()
        for length in range(0, len(text), 7):
            index.write_bytes(text[:length])
            self.refused("index: cannot be read", open_tf1, prefix)
        self.save({"text": np.array([b"x"])}, "other")
        self.refused("tensor 'text': dtype string is not one of", open_tf1, self.folder / "other")

    def test_object_checkpoint_of_tf2(self):
        import tensorflow as tf

        prefix = tf.train.Checkpoint(x=tf.Variable(1.0)).write(str(self.folder / "object"))
        self.refused("is a TensorFlow 2 object checkpoint", open_tf1, prefix)

    def test_what_keras_writes(self):
        import keras

        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4), keras.layers.Dense(2, dtype="bfloat16")])
        model.save_weights(self.folder / "model.weights.h5")
        with open_h5(self.folder) as tensors:
            arrays = {name: tensors.read(name) for name in tensors.names}
        self.assertEqual(
            sorted(arrays), [f"layers/{layer}/vars/{i}" for layer in ("dense", "dense_1") for i in range(2)]
        )
        np.testing.assert_array_equal(arrays["layers/dense/vars/0"], model.layers[0].kernel.numpy())
        self.assertEqual(arrays["layers/dense_1/vars/0"].tobytes(), model.layers[1].kernel.numpy().tobytes())


if __name__ == "__main__":
    unittest.main()
