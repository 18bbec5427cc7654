"""The files in serving/, parsed with the protocol buffers of TF Serving and checked field by field."""

import json
import pathlib
import re
import subprocess
import sys
import unittest

import yaml
from absl import flags as absl_flags
from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

from tests import helpers
from tfzoo import models, publish
from tfzoo.export import __main__ as export
from tfzoo.serve import __main__ as serve
from tfzoo.serve import messages

SERVING = helpers.ROOT / "serving"
IMAGE = "tensorflow/serving:2.20.0"
METRICS = "/monitoring/prometheus/metrics"
# The metrics of TF Serving that the dashboard may use, without the prefix.
KNOWN_METRICS = {
    "request_count", "request_latency", "runtime_latency", "batching_session:queuing_latency",
    "batching_session:input_batch_size", "batching_session:processed_batch_size",
}  # fmt: skip


def documents(name: str) -> list[dict]:
    """Returns the YAML documents of a file."""
    return list(yaml.safe_load_all((SERVING / name).read_text()))


def model_config(text: str) -> list:
    """Returns the models of a ModelServerConfig in text form."""
    return list(text_format.Parse(text, model_server_config_pb2.ModelServerConfig()).model_config_list.config)


class ConfigTest(unittest.TestCase):
    def test_models_config(self):
        bert, packages = model_config((SERVING / "models.config").read_text())
        self.assertIn(bert.name, models.FAMILIES)  # The default name of an export.
        self.assertEqual(bert.model_version_policy.latest.num_versions, 1)
        for model in (bert, packages):
            self.assertEqual(model.base_path, f"/models/{model.name}")  # TF Serving accepts only absolute paths.
            self.assertEqual(model.model_platform, "tensorflow")
        # A label of a version that is not loaded would be refused.
        self.assertLessEqual({*packages.version_labels.values()}, {*packages.model_version_policy.specific.versions})

    def test_batching_and_monitoring(self):
        texts = {
            name: [(SERVING / path).read_text()]
            for name, path in (("batching", "batching.config"), ("monitoring", "monitoring/monitoring.config"))
        }
        (config_map,) = documents("k8s/config.yaml")
        for name, found in texts.items():
            found.append(config_map["data"][f"{name}.config"])
        for text in texts["batching"]:
            batching = messages.parse_text(text, messages.BatchingParameters, "batching.config")
            self.assertEqual(batching.allowed_batch_sizes[-1], batching.max_batch_size.value)
            self.assertGreater(batching.max_enqueued_batches.value, 0)  # Otherwise the queue has no limit.
            self.assertFalse(batching.pad_variable_length_inputs)
        for text in texts["monitoring"]:
            monitoring = messages.parse_text(text, messages.MonitoringConfig, "monitoring.config").prometheus_config
            self.assertTrue(monitoring.enable)
            self.assertEqual(monitoring.path, METRICS)

    def test_tls_writes_certificates_and_configurations(self):
        folder = helpers.temporary_folder(self)
        subprocess.run(["sh", SERVING / "tls.sh", folder, "models.example"], check=True, capture_output=True)
        for role in ("server", "client"):
            checked = subprocess.run(
                ["openssl", "verify", "-CAfile", "ca.pem", "-purpose", f"ssl{role}", f"{role}.pem"],
                cwd=folder, capture_output=True, text=True,
            )  # fmt: skip
            self.assertEqual(checked.stdout, f"{role}.pem: OK\n", checked.stderr)
        shown = subprocess.run(
            ["openssl", "x509", "-in", folder / "server.pem", "-noout", "-ext", "subjectAltName"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        for name in ("DNS:localhost", "IP Address:127.0.0.1", "DNS:models.example"):
            self.assertIn(name, shown.stdout)
        for path in folder.glob("*.key"):
            self.assertEqual(path.stat().st_mode & 0o077, 0, path)
        for name, mutual in (("tls.config", False), ("mutual_tls.config", True)):
            ssl = messages.read_text(str(folder / name), messages.SSLConfig, "ssl_config_file")
            self.assertEqual(ssl.server_key, (folder / "server.key").read_text())
            self.assertEqual(ssl.server_cert, (folder / "server.pem").read_text())
            self.assertEqual(ssl.client_verify, mutual)
            self.assertEqual(ssl.custom_ca, (folder / "ca.pem").read_text() if mutual else "")


class ReadmeTest(unittest.TestCase):
    """Every command of the page has flags that exist, and every path that it names does."""

    def test_flags_and_paths(self):
        page = (SERVING / "README.md").read_text()
        own = absl_flags.FlagValues()
        for program in (serve, publish):
            program.define_flags(own)
        exports = absl_flags.FlagValues()
        export.define_flags(exports)
        helps = "".join(
            subprocess.run(
                [sys.executable, SERVING / name, "--help"], capture_output=True, text=True, check=True
            ).stdout
            for name in ("client.py", "load_test.py")
        )
        for flag in set(re.findall(r"--(\w+)", page)) - {"rm"}:  # Docker's.
            self.assertTrue(flag in own or flag in exports or re.search(rf"--{flag}\b", helps), flag)
        command = re.search(r"^CMD (\[.*\])$", (SERVING / "Dockerfile").read_text(), re.MULTILINE)
        flags = [flag.lstrip("-").partition("=")[0] for flag in json.loads(command[1])]
        self.assertLessEqual({*flags}, {*own})
        self.assertIn("host", flags)  # Loopback would be that of the container.
        for path in set(re.findall(r"(?<![\w/.])serving/[\w./-]*\w", page)):
            self.assertTrue((helpers.ROOT / path).exists(), path)


class ComposeTest(unittest.TestCase):
    def test_images_ports_limits_and_health(self):
        (compose,) = documents("docker-compose.yml")
        serving = compose["services"]["serving"]
        self.assertEqual(serving["image"], IMAGE)
        for name, service in compose["services"].items():
            self.assertRegex(service["image"], r":v?\d+\.\d+\.\d+$", name)
            self.assertEqual({*service["deploy"]["resources"]["limits"]}, {"cpus", "memory"}, name)
            for port in service["ports"]:
                self.assertTrue(port.startswith("127.0.0.1:"), port)
        self.assertEqual([port.rpartition(":")[2] for port in serving["ports"]], ["8500", "8501"])
        self.assertTrue(serving["init"])
        self.assertIn("/dev/tcp/127.0.0.1/8501", serving["healthcheck"]["test"][3])
        flags = dict(re.fullmatch(r"--(\w+)=?(.*)", flag).groups() for flag in serving["command"])
        self.assertEqual((flags["port"], flags["rest_api_port"]), ("8500", "8501"))

    def test_files_that_are_mounted_exist(self):
        (compose,) = documents("docker-compose.yml")
        for service in compose["services"].values():
            for volume in service["volumes"]:
                source = volume.partition(":")[0]
                if not source.startswith("$"):
                    self.assertTrue((SERVING / source).exists(), source)
            for flag in service.get("command", []):
                path = flag.partition("=")[2]
                if path.startswith("/serving/"):
                    self.assertTrue((SERVING / path.removeprefix("/serving/")).is_file(), flag)

    def test_prometheus_scrapes_the_server_and_the_dashboard_uses_metrics_of_tf_serving(self):
        (compose,), (prometheus,) = documents("docker-compose.yml"), documents("monitoring/prometheus.yml")
        (job,) = prometheus["scrape_configs"]
        self.assertEqual(job["metrics_path"], METRICS)
        self.assertEqual(job["static_configs"], [{"targets": ["serving:8501"]}])
        self.assertIn("serving", compose["services"])
        dashboard = json.loads((SERVING / "monitoring" / "dashboard.json").read_text())
        (grafana,) = documents("monitoring/grafana.yml")
        used = set()
        for panel in dashboard["panels"]:
            self.assertEqual(panel["datasource"]["uid"], grafana["datasources"][0]["uid"])
            for target in panel["targets"]:
                self.assertEqual(target["expr"].count("("), target["expr"].count(")"))
                used |= set(re.findall(r":tensorflow:serving:([\w:]+?)(?:_bucket|_sum)?(?=[\[{])", target["expr"]))
        self.assertEqual({re.sub("(?<=size)_count$", "", name) for name in used}, KNOWN_METRICS)


class KubernetesTest(unittest.TestCase):
    def setUp(self):
        files = sorted(path.name for path in (SERVING / "k8s").iterdir())
        everything = [document for name in files for document in documents(f"k8s/{name}")]
        self.kinds = {document["kind"]: document for document in everything}
        self.assertEqual(len(self.kinds), len(everything))
        self.pod = self.kinds["Deployment"]["spec"]["template"]
        (self.container,) = self.pod["spec"]["containers"]

    def test_versions_of_the_api(self):
        self.assertEqual(
            {kind: document["apiVersion"] for kind, document in self.kinds.items()},
            {
                "ConfigMap": "v1", "Service": "v1", "Deployment": "apps/v1",
                "HorizontalPodAutoscaler": "autoscaling/v2", "PodDisruptionBudget": "policy/v1",
                "ServiceMonitor": "monitoring.coreos.com/v1", "InferenceService": "serving.kserve.io/v1beta1",
            },
        )  # fmt: skip

    def test_selectors_ports_and_names_agree(self):
        labels, ports = self.pod["metadata"]["labels"], {port["name"]: port for port in self.container["ports"]}
        service, deployment = self.kinds["Service"], self.kinds["Deployment"]
        self.assertEqual(deployment["spec"]["selector"]["matchLabels"], labels)
        self.assertEqual(service["spec"]["selector"], labels)
        self.assertEqual(self.kinds["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"], labels)
        self.assertEqual(self.kinds["ServiceMonitor"]["spec"]["selector"]["matchLabels"], service["metadata"]["labels"])
        scaled = self.kinds["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
        self.assertEqual((scaled["kind"], scaled["name"]), ("Deployment", deployment["metadata"]["name"]))
        for port in service["spec"]["ports"]:
            self.assertEqual(ports[port["targetPort"]]["containerPort"], port["port"])
        (endpoint,) = self.kinds["ServiceMonitor"]["spec"]["endpoints"]
        self.assertEqual((endpoint["port"], endpoint["path"]), ("http", METRICS))

    def test_a_pod_is_stopped_after_the_endpoints_are_updated(self):
        seconds = int(self.container["lifecycle"]["preStop"]["exec"]["command"][1])
        self.assertGreater(self.pod["spec"]["terminationGracePeriodSeconds"], seconds)
        self.assertGreater(seconds, self.container["readinessProbe"]["periodSeconds"])

    def test_probes(self):
        self.assertEqual(self.container["image"], IMAGE)
        flags = [flag.partition("=")[0] for flag in self.container["args"]]
        self.assertIn("--enable_grpc_healthcheck_service", flags)  # For the probes of type grpc.
        for probe in ("startupProbe", "livenessProbe"):
            self.assertEqual(self.container[probe]["grpc"], {"port": 8500})
        script = self.container["readinessProbe"]["exec"]["command"][2]
        self.assertIn("AVAILABLE", script)
        (model,) = model_config(self.kinds["ConfigMap"]["data"]["models.config"])
        self.assertIn(f"/v1/models/{model.name} ", script)

    def test_files_that_the_flags_name_are_mounted(self):
        mounts = {mount["name"]: mount["mountPath"] for mount in self.container["volumeMounts"]}
        volumes = {volume["name"]: volume for volume in self.pod["spec"]["volumes"]}
        self.assertEqual(mounts.keys(), volumes.keys())
        config = self.kinds["ConfigMap"]
        self.assertEqual(volumes["config"]["configMap"]["name"], config["metadata"]["name"])
        for flag in self.container["args"]:
            path = pathlib.PurePosixPath(flag.partition("=")[2])
            if path.is_absolute():
                self.assertEqual(str(path.parent), mounts["config"])
                self.assertIn(path.name, config["data"])
        for model in model_config(config["data"]["models.config"]):
            self.assertTrue(model.base_path.startswith(f"{mounts['models']}/"))
            self.assertEqual({*model.version_labels}, {"stable", "canary"})

    def test_kserve_names_the_release_of_tf_serving(self):
        model = self.kinds["InferenceService"]["spec"]["predictor"]["model"]
        self.assertEqual(f"tensorflow/serving:{model['runtimeVersion']}", IMAGE)


if __name__ == "__main__":
    unittest.main()
