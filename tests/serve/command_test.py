"""python -m tfzoo.serve: its flags, and a server in a process of its own that follows its models.config and drains."""

import json
import pathlib
import re
import signal
import socket
import subprocess
import sys
import threading
import unittest
import urllib.request

import grpc
import numpy as np

from tests import helpers
from tests.serve import onnx_folders
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
            ([one, f"--ssl_config_file={folder}/no"], f"--ssl_config_file={folder}/no: cannot be read (no such file"),
            ([one, "--grpc_channel_arguments=a"], "--grpc_channel_arguments=a: a has no value; write NAME=VALUE,"),
            ([one, "--max_tensor_elements=0"], "--max_tensor_elements=0: must be from 1 to "),
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


class Server:
    """A server in a process of its own, with an ONNX model `linear` that a models.config names."""

    def __init__(self, folder: pathlib.Path, *arguments: str):
        self.folder, self.config, self.socket = folder, folder / "models.config", folder / "grpc.sock"
        self.configure(1)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        command = [
            *(sys.executable, "-m", "tfzoo.serve", "--port=0", f"--grpc_socket_path={self.socket}"),
            *(f"--rest_api_port={self.port}", f"--model_config_file={self.config}"),
            *("--model_config_file_poll_wait_seconds=1", *arguments),
        ]
        self.log = open(folder / "log", "wb")
        self.process = subprocess.Popen(command, cwd=helpers.ROOT, stderr=self.log)

    def configure(self, version: int) -> None:
        """Serves one version alone."""
        path = self.folder / "linear"
        if not (path / str(version)).exists():
            onnx_folders.save_linear(path / str(version), float(version))
        partial = self.folder / "partial.config"
        partial.write_text(
            f'model_config_list {{ config {{ name: "linear" base_path: "{path}" model_platform: "onnx" '
            f"model_version_policy {{ specific {{ versions: {version} }} }} }} }}"
        )
        partial.rename(self.config)

    def get(self, path: str) -> bytes:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=60) as response:
            return response.read()

    def wait_for_version(self, version: int) -> None:
        while self.process.poll() is None:
            try:
                states = json.loads(self.get("/v1/models/linear"))["model_version_status"]
            except OSError:
                continue
            if [(each["version"], each["state"]) for each in states][0] == (str(version), "AVAILABLE"):
                return
        raise AssertionError((self.folder / "log").read_text())


class ProcessTest(unittest.TestCase):
    def test_it_follows_its_configuration_and_loses_no_request_when_it_stops(self) -> None:
        server = Server(helpers.temporary_folder(self))
        self.addCleanup(server.log.close)
        self.addCleanup(server.process.kill)
        server.wait_for_version(1)
        self.assertEqual(json.loads(server.get("/readyz")), {"status": "ready"})
        answers: list[float] = []
        refused: list[grpc.StatusCode] = []
        message = messages.PredictRequest(model_spec={"name": "linear"})
        message.inputs["x"].CopyFrom(tensors.to_proto(np.zeros(1, np.float32)))
        data = message.SerializeToString()

        def ask() -> None:
            """Sends requests until the server refuses one."""
            with grpc.insecure_channel(f"unix:{server.socket}") as channel:
                call = channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
                while True:
                    try:
                        response = messages.PredictResponse.FromString(call(data, timeout=60))
                    except grpc.RpcError as error:
                        refused.append(error.code())
                        return
                    answers.append(response.outputs["y"].float_val[0])

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        server.configure(2)
        server.wait_for_version(2)
        while answers[-1] != 2:
            pass
        server.process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join()
        self.assertEqual(server.process.wait(helpers.PATIENCE), 0)
        # Requests that are not accepted are refused; none is cancelled or fails while versions change.
        self.assertEqual(refused, [grpc.StatusCode.UNAVAILABLE] * 4)
        self.assertEqual(set(answers), {1.0, 2.0})
        log = (server.folder / "log").read_text()
        self.assertRegex(log, r"INFO gRPC at unix:.*grpc.sock\n")
        self.assertIsNone(re.search("Traceback|ERROR", log), log)


if __name__ == "__main__":
    unittest.main()
