"""batching_params.pbtxt, parsed with the message of TF Serving."""

import unittest

from tests import helpers
from tfzoo.export import batching
from tfzoo.serve import messages


class BatchingTest(unittest.TestCase):
    def test_sizes_end_with_the_largest_batch_and_inputs_are_not_padded(self):
        folder = helpers.temporary_folder(self)
        batching.write(folder)
        path = folder / "batching_params.pbtxt"
        parameters = messages.read_text(str(path), messages.BatchingParameters, "batching_parameters_file")
        sizes = list(parameters.allowed_batch_sizes)
        self.assertEqual(sizes, sorted(sizes))
        self.assertEqual(sizes[-1], parameters.max_batch_size.value)  # TF Serving refuses anything else.
        self.assertFalse(parameters.pad_variable_length_inputs)


if __name__ == "__main__":
    unittest.main()
