"""The index of a TensorFlow checkpoint: what TensorFlow writes is read; what makes TensorFlow abort is refused."""

import os
import unittest

import numpy as np

from tests import helpers
from tfzoo.weights import tf1_index

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


def number(value: int) -> bytes:
    return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + number(value >> 7)


def block(entries) -> bytes:
    """Returns a block without shared beginnings of names, with one restart and a checksum of zeros."""
    parts = [number(0) + number(len(key)) + number(len(value)) + key + value for key, value in entries]
    return b"".join(parts) + bytes(4) + (1).to_bytes(4, "little")


def table(entries, compression: int = 0) -> bytes:
    first = block(entries)
    listed = block([(b"z", number(0) + number(len(first)))])
    trailer = bytes([compression, 0, 0, 0, 0])
    footer = number(0) + number(0) + number(len(first) + 5) + number(len(listed))
    magic = (0xDB4775248B80FB57).to_bytes(8, "little")
    return first + trailer + listed + bytes(5) + footer.ljust(40, b"\0") + magic


class IndexTest(unittest.TestCase):
    def setUp(self):
        from tensorflow.core.protobuf import tensor_bundle_pb2 as protocol

        self.index = helpers.temporary_folder(self) / "model.ckpt.index"
        self.header = protocol.BundleHeaderProto(num_shards=2).SerializeToString()
        self.entry = protocol.BundleEntryProto(dtype=1, shard_id=1, offset=8, size=24)
        for size in (2, 3):
            self.entry.shape.dim.add().size = size

    def read(self, data: bytes) -> dict[str, tf1_index.Entry]:
        self.index.write_bytes(data)
        return tf1_index.read_index(self.index)

    def changed(self, **fields) -> bytes:
        entry = type(self.entry)()
        entry.CopyFrom(self.entry)
        for name, value in fields.items():
            if name in ("size_of_axis", "unknown_rank"):
                entry.shape.unknown_rank = name == "unknown_rank"
                entry.shape.dim[0].size = value
            else:
                setattr(entry, name, value)
        return entry.SerializeToString()

    def test_entries(self):
        entries = self.read(table([(b"", self.header), (b"a", self.changed()), (b"b/c", self.changed(dtype=14))]))
        file = self.index.with_name("model.ckpt.data-00001-of-00002")
        self.assertEqual(
            entries,
            {"a": tf1_index.Entry(1, (2, 3), file, 8, 24), "b/c": tf1_index.Entry(14, (2, 3), file, 8, 24)},
        )

    def test_what_tensorflow_writes(self):
        import tensorflow as tf

        names = [f"layer_{i}/{'x' * (i % 7)}" for i in range(3000)]  # Several blocks.
        arrays = [np.zeros((i % 5, 2), np.float32) for i in range(3000)]
        prefix = str(self.index.with_suffix(""))
        tf.raw_ops.SaveV2(prefix=prefix, tensor_names=names, shape_and_slices=[""] * 3000, tensors=arrays)
        entries = tf1_index.read_index(self.index)
        self.assertEqual({n: e.shape for n, e in entries.items()}, {n: a.shape for n, a in zip(names, arrays)})
        self.assertEqual({e.size for e in entries.values()}, {0, 8, 16, 24, 32})

    def test_damage(self):
        good = table([(b"", self.header), (b"a", self.changed())])
        two = [(b"", self.header), (b"b", self.changed()), (b"a", self.changed())]
        for name, data, message in (
            ("empty", b"", "does not end as an index"),
            ("another end", good[:-1] + b"\0", "does not end as an index"),
            ("cut", good[9:], "a block|an entry"),
            ("compressed", table([(b"", self.header)], compression=1), "compressed"),
            ("an endless number", good[:-48] + b"\xff" * 40 + good[-8:], "a number does not end"),
            ("a block after the file", good[:-48] + (b"\0\0" + number(1 << 30)).ljust(40, b"\0") + good[-8:], "after"),
            ("an entry after its block", b"\0\x7f" + good[2:], "an entry ends after its block"),
            ("a name without beginning", b"\7" + good[1:], "an entry ends after its block"),
            ("no header", table([(b"a", self.changed())]), "its header has 0 shards"),
            ("many shards", table([(b"", b"\x08\xff\xff\xff\x7f")]), "its header has 268435455 shards"),
            ("another byte order", table([(b"", self.header + b"\x10\1")]), "byte order 1"),
            ("no order", table(two), "not in order"),
            ("a name twice", table([*two[:2], two[1]]), "not in order"),
            ("no protocol buffer", table([(b"", self.header), (b"a", b"\xff")]), "not a protocol buffer"),
            *(
                (field, table([(b"", self.header), (b"a", self.changed(**{field: value}))]), "negative size")
                for field, value in (
                    ("offset", -1),
                    ("size", -8),
                    ("size_of_axis", -2),
                    ("unknown_rank", 2),
                    ("shard_id", 2),
                )
            ),
        ):
            with self.subTest(name), self.assertRaisesRegex(ValueError, message):
                self.read(data)


if __name__ == "__main__":
    unittest.main()
