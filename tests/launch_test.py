"""Starts, monitors and terminates several processes as one; the commands here are short and do not use TensorFlow."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import unittest

import pytest

from tests.helpers import PATIENCE, temporary_folder
from tfzoo import launch
from tfzoo.errors import UserError
from tfzoo.training import distribution

ROOT = pathlib.Path(__file__).resolve().parents[1]


def started(*flags, code, **options):
    command = [sys.executable, "-m", "tfzoo.launch", *flags, "--", sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def run(*flags, code):
    """(exit code, stdout, stderr)"""
    process = started(*flags, code=code)
    out, err = process.communicate(timeout=PATIENCE)
    return process.returncode, out, err


class LaunchTest(unittest.TestCase):
    def test_each_worker_has_its_place_and_its_prefix(self):
        code, out, err = run("--workers=3", code="import os; print(os.environ['TF_CONFIG']); print('sí')")
        self.assertEqual((code, err), (0, ""))
        lines = out.splitlines()
        found = {}
        for line in lines:
            name, _, rest = line.partition("] ")
            if rest.startswith("{"):
                found[name] = json.loads(rest)
        self.assertEqual(sorted(found), ["[worker 0", "[worker 1", "[worker 2"])
        clusters = [json.dumps(config["cluster"]) for config in found.values()]
        self.assertEqual(len(set(clusters)), 1)
        (kind,) = json.loads(clusters[0])
        addresses = json.loads(clusters[0])[kind]
        self.assertEqual((kind, len(set(addresses))), ("worker", 3))
        for name, config in found.items():
            self.assertEqual(config["task"], {"type": "worker", "index": int(name[-1])})
            self.assertIn(f"{name}] sí", lines)

    def test_one_that_dies_ends_all(self):
        dying = "import os, signal, time\nif '\"index\": 1' in os.environ['TF_CONFIG']: {}\ntime.sleep(86400)"
        for death, expected in (
            ("os.kill(os.getpid(), signal.SIGKILL)", 5),
            ("raise ValueError", 1),
            ("raise SystemExit(2)", 2),
            ("raise SystemExit(4)", 4),
            ("raise SystemExit(77)", 5),
        ):
            code, _, err = run("--workers=2", code=dying.format(death))  # It ends before worker 0 would end by itself.
            self.assertEqual(code, expected, err)
            self.assertRegex(
                err,
                r"\[launch\] worker 1 (was terminated by SIGKILL|ended with exit code \d+); terminating the others\n",
            )

    @pytest.mark.faults
    def test_one_that_heeds_no_signal_is_killed(self):
        code, _, err = run(
            "--workers=2",
            code="""
            import os, signal, time
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            print("ready", flush=True)
            if '"index": 0' in os.environ["TF_CONFIG"]:
                raise SystemExit(4)
            time.sleep(86400)
            """,
        )
        self.assertEqual(code, 4, err)

    def test_signals_are_passed_on_once(self):
        for number in (signal.SIGTERM, signal.SIGINT):
            process = started(
                "--workers=2",
                code="""
                import signal, sys, time
                got = []
                for number in (signal.SIGTERM, signal.SIGINT):
                    signal.signal(number, lambda number, _: got.append(number))
                print("ready", flush=True)
                while not got:
                    time.sleep(0.01)
                time.sleep(0.3)  # A second one would be seen.
                print("got", *map(int, got), flush=True)
                sys.exit(3)
                """,
            )
            for _ in range(2):
                self.assertIn("ready", process.stdout.readline())
            process.send_signal(number)
            out, err = process.communicate(timeout=PATIENCE)
            self.assertEqual(process.returncode, 3, err)
            self.assertEqual(sorted(out.splitlines()), [f"[worker {i}] got {int(number)}" for i in range(2)])

    def test_a_parameter_servers_run_outlives_a_worker(self):
        code, out, err = run(
            "--workers=2",
            "--parameter_servers=1",
            code=f"""
            import json, os, pathlib, signal, time
            task = json.loads(os.environ["TF_CONFIG"])["task"]
            note = pathlib.Path({str(temporary_folder(self) / "pid")!r})
            if task == {{"type": "worker", "index": 0}}:
                note.with_suffix(".new").write_text(str(os.getpid()))
                note.with_suffix(".new").rename(note)
                os.kill(os.getpid(), signal.SIGKILL)
            if task["type"] != "chief":
                time.sleep(86400)
            try:
                while not note.exists() or not os.kill(int(note.read_text()), 0):
                    time.sleep(0.01)
            except ProcessLookupError:  # The end of worker 0 has been seen.
                print(task["type"], "is done")
            """,
        )
        self.assertEqual((code, out), (0, "[chief 0] chief is done\n"), err)
        self.assertIn("worker 0 was terminated by SIGKILL; the others continue", err)

    def test_wrong_use(self):
        for argv, message in (
            (["--workers=2"], "the command is missing"),
            (["--workers=0", "--", "true"], "--workers=0: must be from 1 to 256"),
            (["--", "true"], "--workers is required"),
            (["--workers=1", "--", "/no/such/program"], "/no/such/program: cannot be started"),
        ):
            result = subprocess.run([sys.executable, "-m", "tfzoo.launch", *argv], capture_output=True, text=True)
            self.assertEqual((result.returncode, result.stderr.count("\n")), (2, 1), result.stderr)
            self.assertIn(message, result.stderr)

    def test_nothing_is_left_behind(self):
        process = started("--workers=2", code="import os, time; print(os.getpid(), flush=True); time.sleep(86400)")
        pids = [int(process.stdout.readline().split("] ")[1]) for _ in range(2)]
        process.send_signal(signal.SIGTERM)  # The default action of this signal terminates the process.
        process.communicate(timeout=PATIENCE)
        self.assertEqual(process.returncode, 5)
        for pid in pids:
            self.assertRaises(ProcessLookupError, os.kill, pid, 0)

    def test_free_ports(self):
        ports = launch.free_ports(20)
        self.assertEqual(len(set(ports)), 20)


class ClusterTest(unittest.TestCase):
    def config(self, kind="worker", index=0, **cluster):
        return json.dumps({"cluster": cluster or {"worker": ["a:1", "b:1"]}, "task": {"type": kind, "index": index}})

    def test_who_is_chief(self):
        def chief(strategy, *args, **kwargs):
            return distribution.read_cluster(strategy, self.config(*args, **kwargs)).is_chief

        self.assertTrue(distribution.read_cluster("default", "").is_chief)
        self.assertTrue(chief("multi_worker"))
        self.assertFalse(chief("multi_worker", index=1))
        both = dict(chief=["a:1"], worker=["b:1"])
        self.assertTrue(chief("multi_worker", "chief", **both))
        self.assertFalse(chief("multi_worker", "worker", **both))
        self.assertTrue(chief("default", worker=["a:1"]))

    def test_who_serves(self):
        cluster = dict(chief=["a:1"], worker=["b:1"], ps=["c:1"])
        for kind, expected in (("chief", False), ("worker", True), ("ps", True)):
            text = self.config(kind, **cluster)
            self.assertEqual(distribution.read_cluster("parameter_server", text).serves, expected)

    def test_the_manifests(self):
        script = (ROOT / "docs/distributed/kubernetes.yaml").read_text().split("- |\n")[1].split("exec ")[0]
        result = subprocess.run(
            ["sh", "-ec", script + 'echo "$TF_CONFIG"'],
            env=os.environ | {"JOB_COMPLETION_INDEX": "1"},
            capture_output=True,
            text=True,
            check=True,
        )
        cluster = distribution.read_cluster("multi_worker", result.stdout)
        self.assertEqual((cluster.index, len(cluster.addresses["worker"])), (1, 2))
        script = (ROOT / "docs/distributed/train.sbatch").read_text()
        script = script.replace("srun --kill-on-bad-exit=1", "").replace(
            "exec python", 'echo "$TF_CONFIG"; exit; python'
        )
        result = subprocess.run(
            ["bash", "-c", "scontrol() { echo node1; echo node2; }\n" + script],
            env=os.environ | {"SLURM_PROCID": "1", "SLURM_JOB_NODELIST": "node[1-2]"},
            capture_output=True,
            text=True,
            check=True,
        )
        cluster = distribution.read_cluster("multi_worker", result.stdout)
        self.assertEqual((cluster.index, cluster.addresses), (1, {"worker": ["node1:2222", "node2:2222"]}))

    def test_wrong_use(self):
        for strategy, text, message in (
            (
                "multi_worker",
                "",
                "--strategy=multi_worker: TF_CONFIG is not set; start the run with `python -m tfzoo.launch",
            ),
            ("parameter_server", "", "--parameter_servers=1"),
            ("multi_worker", "{", r"TF_CONFIG='\{': is not JSON"),
            ("multi_worker", '{"cluster": {"worker": ["a:1"], "worker": ["b:1"]}}', "the key 'worker' appears twice"),
            ("multi_worker", "[1]", r"TF_CONFIG: \[1\] has no cluster"),
            ("multi_worker", '{"cluster": {}}', "has no cluster"),
            (
                "multi_worker",
                '{"cluster": {"wroker": ["a:1"]}}',
                r"'wroker' is not one of .* \(did you mean worker\?\)",
            ),
            (
                "multi_worker",
                '{"cluster": {"worker": {"0": "a:1"}}}',
                "worker is {'0': 'a:1'}, not a list of addresses",
            ),
            ("multi_worker", '{"cluster": {"worker": []}}', r"worker is \[\], not a list of addresses"),
            *(
                ("multi_worker", json.dumps({"cluster": {"worker": [address]}}), "of a worker is not HOST:PORT")
                for address in ("a", "a:", ":1", "a:b", "a:0", "a:65536", "a:" + "9" * 5000, 5, None)
            ),
            ("multi_worker", self.config(worker=["a:1", "a:1"]), "the address 'a:1' is listed twice"),
            *(
                (
                    "multi_worker",
                    json.dumps({"cluster": {"worker": ["a:1"]}, "task": task}),
                    "no type that is in the cl",
                )
                for task in (None, "worker", {}, {"type": 5, "index": 0}, {"type": "chief", "index": 0})
            ),
            *(
                ("multi_worker", self.config(index=index), "has no index from 0 to 1; it must be JSON of the form")
                for index in (2, -1, "0", 0.0, True, None)
            ),
            ("multi_worker", self.config("ps", ps=["a:1"], worker=["b:1"]), "list only workers"),
            ("parameter_server", self.config(), "list chief, worker and ps"),
            ("default", self.config(), "--strategy=default: TF_CONFIG lists several tasks; use"),
        ):
            with self.subTest(text), self.assertRaisesRegex(UserError, message) as caught:
                distribution.read_cluster(strategy, text)
            self.assertEqual(str(caught.exception).count("\n"), 0)
            self.assertLess(len(str(caught.exception)), 600)


if __name__ == "__main__":
    unittest.main()
