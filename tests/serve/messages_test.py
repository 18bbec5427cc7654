"""The messages of the embedded server are those of TF Serving's package, and come without TensorFlow."""

import subprocess
import sys
import unittest

from tfzoo.errors import UserError
from tfzoo.serve import messages


class MessagesTest(unittest.TestCase):
    def test_they_come_without_tensorflow(self) -> None:
        code = "import sys; from tfzoo.serve import messages; sys.exit('tensorflow' in sys.modules)"
        subprocess.run([sys.executable, "-c", code], check=True)

    def test_configuration_files_in_text_form(self) -> None:
        text = "max_batch_size { value: 32 } allowed_batch_sizes: 8 allowed_batch_sizes: 32 # as in TF Serving's guide"
        parameters = messages.parse_text(text, messages.BatchingParameters, "batching.txt")
        self.assertEqual(parameters.max_batch_size.value, 32)
        self.assertEqual(list(parameters.allowed_batch_sizes), [8, 32])
        self.assertFalse(parameters.HasField("num_batch_threads"))
        keys = 'server_key: "k" server_cert: "c" custom_ca: "a" client_verify: true'
        self.assertTrue(messages.parse_text(keys, messages.SSLConfig, "ssl.txt").client_verify)
        monitoring = 'prometheus_config { enable: true path: "/metrics" }'
        self.assertEqual(
            messages.parse_text(monitoring, messages.MonitoringConfig, "m.txt").prometheus_config.path, "/metrics"
        )
        with self.assertRaisesRegex(UserError, "^--ssl_config_file=x: is not a SSLConfig in text form"):
            messages.parse_text("server_kay: 'k'", messages.SSLConfig, "--ssl_config_file=x")


if __name__ == "__main__":
    unittest.main()
