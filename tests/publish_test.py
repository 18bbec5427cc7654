"""python -m tfzoo.publish: versions and labels in a server's folder."""

import json
import pathlib
import shutil
import unittest
from unittest import mock

from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

from tests import helpers
from tfzoo import publish
from tfzoo.errors import CheckFailed
from tfzoo.export import manifest
from tfzoo.export import publish as replaying


def artifact(folder: pathlib.Path, version: int, name: str = "toy", kind: str = "savedmodel") -> pathlib.Path:
    """Writes a folder with a correct manifest; it contains no model."""
    folder = folder / kind / name / str(version)
    (folder / "variables").mkdir(parents=True)
    (folder / "saved_model.pb").write_bytes(b"\x08" + bytes([version]))  # A SavedModel without graphs.
    (folder / "variables" / "weights").write_bytes(b"weights")
    _write_manifest(folder, kind, name, version)
    return folder


def _write_manifest(folder: pathlib.Path, kind: str, name: str, version: int) -> None:
    manifest.write(folder, {"kind": kind, "name": name, "version": version, "signatures": {}, "tolerances": {}})


class PublishTest(unittest.TestCase):
    def setUp(self):
        self.folder = helpers.temporary_folder(self)
        self.to = self.folder / "models"
        self.replayed = self.enterContext(mock.patch.object(replaying, "replay"))

    def publish(self, *arguments, code: int = 0) -> str:
        got, out, err = helpers.run(publish, *arguments, f"--to={self.to}")
        self.assertEqual(got, code, err)
        return err if code else out

    def served(self, name: str = "toy"):
        """Returns the entry of a model in models.config as (base_path, platform, versions, labels)."""
        text = (self.to / "models.config").read_text()
        config = text_format.Parse(text, model_server_config_pb2.ModelServerConfig())
        (model,) = [model for model in config.model_config_list.config if model.name == name]
        versions = list(model.model_version_policy.specific.versions)
        return model.base_path, model.model_platform, versions, dict(model.version_labels)

    def test_versions_labels_and_rollbacks(self):
        one, two, three = (artifact(self.folder, version) for version in (1, 2, 3))
        base = f"{self.to}/toy"
        self.publish(f"--artifact={one}")
        self.assertEqual(self.served(), (base, "tensorflow", [1], {}))
        self.assertEqual((self.to / "toy" / "1" / "variables" / "weights").read_bytes(), b"weights")
        self.replayed.assert_called_once_with([one])
        self.publish(f"--artifact={two}", "--label=canary")
        self.assertEqual(self.served(), (base, "tensorflow", [1, 2], {"canary": 2}))
        self.publish(f"--artifact={two}")
        # TF Serving refuses to move a label to a version that it has not loaded.
        out = self.publish(f"--artifact={three}", "--label=canary")
        self.assertIn("toy: version 3 will be loaded; repeat the command when it is available", out)
        self.assertEqual(self.served(), (base, "tensorflow", [2, 3], {"canary": 2}))
        self.publish(f"--artifact={three}", "--label=canary")
        self.assertEqual(self.served(), (base, "tensorflow", [2, 3], {"canary": 3}))
        out = self.publish("--rollback=toy")
        self.assertIn("toy: version 1 answers requests without a label", out)
        self.assertEqual(self.served(), (base, "tensorflow", [1, 3], {"canary": 3}))
        self.publish("--rollback=toy", "--label=canary")
        self.assertEqual(self.served(), (base, "tensorflow", [1, 2, 3], {"canary": 3}))
        self.publish("--rollback=toy", "--label=canary")
        self.assertEqual(self.served(), (base, "tensorflow", [1, 2], {"canary": 2}))
        self.publish("--rollback=toy", "--label=canary")
        self.assertEqual(self.served(), (base, "tensorflow", [1], {}))
        err = self.publish("--rollback=toy", code=2)
        self.assertIn("--rollback=toy: no version was published without a label before version 1", err)
        err = self.publish("--rollback=toy", "--label=canary", code=2)
        self.assertIn("no version was published under the label canary yet", err)
        self.assertEqual(self.served(), (base, "tensorflow", [1], {}))
        self.assertEqual(self.replayed.call_count, 3)  # Each version once, when it was copied.

    def test_other_models_and_settings_of_the_configuration_are_kept(self):
        self.to.mkdir()
        (self.to / "models.config").write_text(
            'model_config_list { config { name: "other" base_path: "/o" model_platform: "tensorflow" '
            "logging_config { sampling_config { sampling_rate: 0.5 } } } }"
        )
        self.publish(f"--artifact={artifact(self.folder, 1, kind='onnx')}", "--base_path=/models/")
        self.assertEqual(self.served("other")[0], "/o")
        self.assertIn("sampling_rate: 0.5", (self.to / "models.config").read_text())
        self.assertEqual(self.served(), ("/models/toy", "onnx", [1], {}))

    def test_refusals_leave_nothing_behind(self):
        one = artifact(self.folder, 1)
        self.publish(f"--artifact={one}")
        before = sorted(self.to.rglob("*"))
        self.assertIn("specify either an artifact", self.publish(code=2))
        self.assertIn("is not an artifact", self.publish(f"--artifact={self.folder}", code=2))
        self.assertIn("is not an absolute path", self.publish(f"--artifact={one}", "--base_path=models", code=2))
        self.assertIn("--label=a b", self.publish(f"--artifact={one}", "--label=a b", code=2))
        self.assertIn(
            "not one of savedmodel, onnx", self.publish(f"--artifact={artifact(self.folder, 1, kind='litert')}", code=2)
        )
        outside = artifact(self.folder, 7, name="../up")
        self.assertIn("name is '../up'", self.publish(f"--artifact={outside}", code=4))

        changed = artifact(self.folder / "others", 1)
        (changed / "saved_model.pb").write_bytes(b"\x08\x09")
        (changed / "manifest.json").unlink()
        _write_manifest(changed, "savedmodel", "toy", 1)
        self.assertIn("already exists with other content", self.publish(f"--artifact={changed}", code=2))

        edited = artifact(self.folder, 2)
        stated = json.loads((edited / "manifest.json").read_text())
        (edited / "manifest.json").write_text(json.dumps(stated | {"version": 3}))
        self.assertIn("its SHA-256 differs", self.publish(f"--artifact={edited}", code=4))
        shutil.rmtree(edited)
        damaged = artifact(self.folder, 2)
        (damaged / "saved_model.pb").write_bytes(b"damaged")
        self.assertIn("saved_model.pb", self.publish(f"--artifact={damaged}", code=4))
        self.replayed.side_effect = CheckFailed("nothing was published: verify.py exited with code 4")
        shutil.rmtree(damaged)
        self.publish(f"--artifact={artifact(self.folder, 2)}", code=4)
        self.assertEqual(sorted(self.to.rglob("*")), before)
        self.assertEqual(self.served()[2], [1])

    def test_savedmodels_and_onnx_artifacts_do_not_share_a_name(self):
        self.publish(f"--artifact={artifact(self.folder, 1)}")
        err = self.publish(f"--artifact={artifact(self.folder, 2, kind='onnx')}", "--label=canary", code=2)
        self.assertIn("contains SavedModels and ONNX artifacts", err)
        self.assertEqual(self.served()[2:], ([1], {}))


if __name__ == "__main__":
    unittest.main()
