"""python -m tfzoo.serve: its flags, and a server in a process of its own that follows its models.config."""

import pathlib
import unittest

import numpy as np

from tests import helpers
from tests.serve import onnx_folders
from tests.serve.process import ServerProcess, wait_until
from tfzoo.serve import __main__ as serve
from tfzoo.serve import flags, messages, tensors

PAGE = helpers.ROOT / "docs" / "serve.md"


class FlagsTest(unittest.TestCase):
    def test_the_page_has_the_table_of_the_flags(self) -> None:
        self.assertIn(flags.table(), PAGE.read_text(encoding="utf-8"))

    def test_wrong_use_is_one_line(self) -> None:
        folder = helpers.temporary_folder(self)
        text = folder / "config.txt"
        text.write_text("nonsense")
        keys = folder / "keys"
        keys.write_text("key\n")
        keys.chmod(0o644)
        one = "--model_base_path=/models/m"  # Nothing is served: all of these are refused before.
        relative = folder / "relative.config"
        relative.write_text('model_config_list { config { name: "m" base_path: "m" model_platform: "tensorflow" } }')
        padded = folder / "padded.txt"
        padded.write_text("pad_variable_length_inputs: true")
        for arguments, message in (
            ([], "specify either --model_base_path or --model_config_file"),
            ([one, f"--model_config_file={text}"], "specify either --model_base_path or --model_config_file"),
            ([f"--model_config_file={text}"], f"--model_config_file={text}: is not a ModelServerConfig in text form "),
            ([one, "--port=70000"], "--port=70000: is not a port; give a number from 0 to 65535"),
            ([one, "--port=0"], "--port=0: the server would listen nowhere; set --port, --grpc_socket_path or --rest"),
            (
                [one, "--port=8500", "--rest_api_port=8500"],
                "--rest_api_port=8500: is the port of gRPC, too; choose another",
            ),
            ([one, f"--batching_parameters_file={text}"], f"--batching_parameters_file={text}: has no effect without "),
            (
                [one, "--enable_batching", f"--batching_parameters_file={padded}"],
                f"--batching_parameters_file={padded}: pad_variable_length_inputs pads with the first element",
            ),
            ([one, "--use_alts_credentials"], "--use_alts_credentials=True: is not supported; use --ssl_config_file"),
            ([one, f"--api_key_file={keys}"], f"--api_key_file={keys}: everybody can read it; chmod o-r {keys}"),
            (
                [one, f"--ssl_config_file={folder}/no"],
                f"--ssl_config_file={folder}/no: no such file or directory; check",
            ),
            ([one, "--grpc_channel_arguments=a"], "--grpc_channel_arguments=a: a has no value; write NAME=VALUE,"),
            ([one, "--max_tensor_elements=0"], "--max_tensor_elements=0: must be at least 1"),
            (
                [f"--model_config_file={relative}", f"--grpc_socket_path={folder}/s"],
                "Expected model m to have an absolute path or URI; got base_path()=m; correct the configuration",
            ),
        ):
            code, out, err = helpers.run(serve, *arguments)
            self.assertEqual((code, out), (2, ""), arguments)
            self.assertIn(f"error: {message}", err)
        code, out, _ = helpers.run(serve, "--version")
        self.assertRegex(out, r"^tfzoo \d")
        self.assertEqual(code, 0)

    def test_flags_without_an_effect_are_warned_of(self) -> None:
        with self.assertLogs("tfzoo.serve", "WARNING") as logs:
            code, _, _ = helpers.run(serve, "--model_base_path=/m", "--num_tflite_pools=3", "--port=-1")
        self.assertEqual(code, 2)
        self.assertEqual(
            logs.records[0].getMessage(), "--num_tflite_pools=3 has no effect: TensorFlow Lite models are not served"
        )


class ProcessTest(unittest.TestCase):
    """A server of an ONNX graph, so that its process need not import TensorFlow."""

    def setUp(self) -> None:
        self.folder = helpers.temporary_folder(self)
        for version in (1, 2):
            onnx_folders.save_linear(self.folder / "linear" / str(version), float(version))
        self.config = self.folder / "models.config"
        self.configure(1)
        monitoring = self.folder / "monitoring.config"
        monitoring.write_text("prometheus_config { enable: true }")
        self.server = ServerProcess(
            f"--model_config_file={self.config}",
            "--model_config_file_poll_wait_seconds=1",
            "--enable_batching",
            f"--monitoring_config_file={monitoring}",
        )
        self.addCleanup(self.server.close)

    def configure(self, version: int) -> None:
        """Serves one version alone, with the label `stable`."""
        partial = self.folder / "partial.config"
        partial.write_text(
            f'model_config_list {{ config {{ name: "linear" base_path: "{self.folder / "linear"}" '
            f'model_platform: "onnx" model_version_policy {{ specific {{ versions: {version} }} }} '
            f'version_labels {{ key: "stable" value: {version} }} }} }}'
        )
        partial.rename(self.config)

    def predict(self) -> float:
        request = messages.PredictRequest(model_spec={"name": "linear", "version_label": "stable"})
        request.inputs["x"].CopyFrom(tensors.to_proto(np.zeros(1, np.float32)))
        answer = self.server.method("PredictionService/Predict")(request.SerializeToString(), timeout=helpers.PATIENCE)
        return messages.PredictResponse.FromString(answer).outputs["y"].float_val[0]

    def test_it_follows_its_configuration_without_failing_a_request(self) -> None:
        answers = [self.predict()]
        self.configure(2)
        while answers[-1] != 2:
            answers.append(self.predict())
        self.assertEqual(set(answers), {1.0, 2.0})
        wait_until(lambda: self.server.available("linear") == [2])
        self.config.write_text("nonsense")
        wait_until(lambda: "ERROR --model_config_file=" in self.server.log())
        self.assertEqual(self.predict(), 2.0)
        status, metrics = self.server.ask("GET", "/monitoring/prometheus/metrics")
        self.assertEqual(status, 200)
        self.assertIn(b':tensorflow:serving:request_count{model_name="linear",status="OK"}', metrics)
        libraries = pathlib.Path(f"/proc/{self.server.process.pid}/maps").read_text()
        self.assertIn("onnxruntime", libraries)
        self.assertNotIn("tensorflow", libraries)
        self.server.terminate()
        self.assertEqual(self.server.wait(), 0)
        self.assertNotIn("Traceback", self.server.log())


if __name__ == "__main__":
    unittest.main()
