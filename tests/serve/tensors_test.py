"""Tensors in messages are those that TensorFlow reads and writes; damaged and hostile ones are refused."""

import ml_dtypes
import numpy as np
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2

from tfzoo.serve import messages, tensors
from tfzoo.serve.errors import StatusError
from tfzoo.serve.servable import TensorSpec

ARRAYS = [
    np.array([[0.1, np.nan], [np.inf, -0.0]], np.float32),
    np.array([1e300, -2.5]),
    np.array([], np.float32).reshape(0, 3),
    *(np.array([[0, 1, 100]], dtype) for dtype in "int8 uint8 int16 uint16 int32 uint32 int64 uint64".split()),
    np.array([-(2**63), 2**63 - 1]),
    np.array(2**64 - 1, np.uint64),
    np.array([True, False]),
    np.array([1.5, -2.0, 65504], np.float16),
    np.array([1.5, -3.0], ml_dtypes.bfloat16),
    np.array([1 + 2j], np.complex64),
    np.array([1 - 2j, 3j], np.complex128),
    np.array([[b"", b"a\x00\xff"], [b"x" * 300, b"b"]], object),
    np.array(b"scalar", object),
]


def read(proto, max_elements: int = 2**20) -> np.ndarray:
    return tensors.to_array(messages.TensorProto.FromString(proto.SerializeToString()), "x", max_elements)


class TensorsTest(tf.test.TestCase):
    def test_they_read_what_tensorflow_writes_and_the_reverse(self) -> None:
        for array in ARRAYS:
            ours = read(tf.make_tensor_proto(array))
            np.testing.assert_array_equal(ours, array)
            self.assertEqual((ours.dtype, ours.shape), (array.dtype, array.shape))
            for as_content in (False, True):
                proto = tensors.to_proto(array, as_content)
                self.assertEqual(bool(proto.tensor_content), as_content and array.size > 0)
                theirs = tensor_pb2.TensorProto.FromString(proto.SerializeToString())
                np.testing.assert_array_equal(tensors.to_array(proto, "x", 2**20), array)
                if not (as_content and array.dtype == object):  # TensorFlow's Python reads no strings from there.
                    np.testing.assert_array_equal(tf.make_ndarray(theirs), array)

    def test_strings_in_tensor_content_are_those_of_the_runtime(self) -> None:
        value = np.array([b"x" * 300, b"", b"yz"], object)
        proto = tensor_pb2.TensorProto.FromString(tensors.to_proto(value, as_content=True).SerializeToString())
        constant = tf.raw_ops.ParseTensor(serialized=proto.SerializeToString(), out_type=tf.string)
        self.assertAllEqual(constant, value)

    def test_an_incomplete_list_ends_with_its_last_value(self) -> None:
        for values, expected in (([1.0, 2.0], [1, 2, 2, 2]), ([7.0], [7, 7, 7, 7]), ([], [0, 0, 0, 0])):
            proto = tensor_pb2.TensorProto(dtype=1, float_val=values)
            proto.tensor_shape.dim.add(size=4)
            self.assertAllEqual(read(proto), expected)
        proto = tensor_pb2.TensorProto(dtype=7)
        proto.tensor_shape.dim.add(size=2)
        self.assertEqual(read(proto).tolist(), [b"", b""])

    def test_a_value_is_repeated_only_so_often(self) -> None:
        for fields, most in (
            (dict(dtype=1, float_val=[1.0, 2.0]), 2**22),
            (dict(dtype=4, int_val=[1, 2]), 2**24),
            (dict(dtype=7, string_val=[b"a", b"b" * 4064]), 2**12),  # A string takes 32 more bytes.
        ):
            proto = tensor_pb2.TensorProto(**fields)
            proto.tensor_shape.dim.add(size=2 + most)
            array = read(proto, 2**26)
            self.assertEqual((array[0], array[-1]), (array[0], array[1]))
            proto.tensor_shape.dim[0].size += 1
            with self.assertRaisesRegex(StatusError, f"the last value of a list stands for at most {most} more$"):
                read(proto, 2**26)

    def test_what_is_damaged_or_too_large_is_refused(self) -> None:
        def proto(dtype, *sizes, **fields):
            message = tensor_pb2.TensorProto(dtype=dtype, **fields)
            for size in sizes:
                message.tensor_shape.dim.add(size=size)
            return message

        unknown_rank = proto(1, float_val=[1])
        unknown_rank.tensor_shape.unknown_rank = True
        for bad in (
            proto(1, -1, float_val=[1]),
            proto(1, 2**21, float_val=[1]),
            proto(1, 2**40, 2**40, float_val=[1]),
            proto(1, 0, 2**62, 2**62),
            proto(1, 0, 2**61),
            proto(1, *[1] * 255, float_val=[1]),
            proto(1, 2, tensor_content=b"1234567"),
            proto(7, 2, tensor_content=b"\x01"),
            proto(7, 1, tensor_content=b"\xff" * 40),
            proto(7, 1, tensor_content=b"\x05abc"),
            proto(0, 1),
            proto(20, 1),  # A resource.
            proto(99, 1),
            unknown_rank,
        ):
            with self.assertRaisesRegex(StatusError, "^tensor parsing error: x") as raised:
                read(bad)
            self.assertEqual(raised.exception.code, "INVALID_ARGUMENT")

    def test_types_and_shapes_are_those_of_the_signature(self) -> None:
        spec = TensorSpec("x:0", np.dtype(np.float32), (None, 3), 1)
        tensors.check("x", np.zeros((2, 3), np.float32), spec)
        tensors.check("x", np.zeros(7, np.float32), TensorSpec("x:0", np.dtype(np.float32), None, 1))
        with self.assertRaisesRegex(StatusError, r"^Expects arg\[x\] to be float but int64 is provided$"):
            tensors.check("x", np.zeros((2, 3), np.int64), spec)
        for shape in ((3,), (2, 4), (1, 2, 3)):
            with self.assertRaisesRegex(StatusError, r'Input "x" has the shape .* incompatible with \[\?, 3\]$'):
                tensors.check("x", np.zeros(shape, np.float32), spec)


if __name__ == "__main__":
    tf.test.main()
