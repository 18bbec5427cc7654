"""serving/models.config, parsed with the protocol buffers of TF Serving."""

import pathlib
import unittest

from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

from tfzoo import models

CONFIG = pathlib.Path(__file__).parents[2] / "serving" / "models.config"


class ModelsConfigTest(unittest.TestCase):
    def test_names_the_folder_that_an_export_writes(self):
        server = text_format.Parse(CONFIG.read_text(), model_server_config_pb2.ModelServerConfig())
        (model,) = server.model_config_list.config
        self.assertIn(model.name, models.FAMILIES)  # The default name of an export.
        self.assertEqual(model.base_path, f"/models/{model.name}")  # TF Serving accepts only absolute paths.
        self.assertEqual(model.model_platform, "tensorflow")
        self.assertEqual(model.model_version_policy.latest.num_versions, 1)


if __name__ == "__main__":
    unittest.main()
