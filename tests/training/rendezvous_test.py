"""Workers that wait for each other: who is missing, what differs, and signals while they wait."""

import json
import signal
import socket
import subprocess
import sys
import threading
import unittest

from tests import helpers
from tfzoo import launch
from tfzoo.errors import UserError, WorkerLost
from tfzoo.training import rendezvous

# Arguments: addresses, the name of this task, flags, seconds.
SCRIPT = """
import json, sys
from tfzoo.training import rendezvous, signals
addresses, own, flags, seconds = map(json.loads, sys.argv[1:])
stop = signals.StopOnSignal(alone=False)
rendezvous.meet(addresses, own, "worker 0", flags, seconds)
print("met", flush=True)
"""


class RendezvousTest(unittest.TestCase):
    def setUp(self):
        self.addresses = {"worker": [f"127.0.0.1:{port}" for port in launch.free_ports(3)]}

    def meet(self, flags, seconds=600.0, first="worker 0"):
        """Meets in a thread for each of `flags`, by name; returns name -> None or the exception."""
        results = {}

        def run(name):
            try:
                patience = seconds + (name != first)  # The first worker gives up first.
                results[name] = rendezvous.meet(self.addresses, name, first, flags[name], patience)
            except Exception as error:
                results[name] = error

        threads = [threading.Thread(target=run, args=(name,)) for name in flags]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return results

    def start(self, own, flags=None, seconds=600):
        arguments = map(json.dumps, (self.addresses, own, flags or {}, seconds))
        process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, *arguments], cwd=helpers.ROOT, stdout=subprocess.PIPE, text=True
        )
        self.addCleanup(process.stdout.close)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        return process

    def test_all_meet(self):
        names = ["worker 0", "worker 1", "worker 2"]
        self.assertEqual(self.meet(dict.fromkeys(names, {"steps": 5})), dict.fromkeys(names))
        for address in self.addresses["worker"]:  # The ports are free again.
            socket.create_server(("127.0.0.1", int(address.rpartition(":")[2]))).close()

    def test_flags_that_differ_are_named_in_every_worker(self):
        flags = {f"worker {i}": {"steps": 5, "seed": i // 2, "dropout": 0.1} for i in range(3)}
        for name, error in self.meet(flags).items():
            self.assertIsInstance(error, UserError, name)
            differ = (
                "the workers' flags differ: --seed=0 in worker 0 and 1 in worker 2; start all of them with the same "
            )
            self.assertEqual(str(error), f"{differ}flags")

    def test_missing_workers_are_named(self):
        results = self.meet({"worker 0": {}, "worker 2": {}}, seconds=2.0)
        missing = self.addresses["worker"][1]
        self.assertIsInstance(results["worker 0"], WorkerLost)
        self.assertEqual(
            str(results["worker 0"]),
            f"worker 1 ({missing}): did not start within 2 s; start all workers, or raise --worker_timeout",
        )
        self.assertIsInstance(results["worker 2"], WorkerLost)

    def test_a_port_in_use(self):
        port = int(self.addresses["worker"][0].rpartition(":")[2])
        with socket.create_server(("127.0.0.1", port)):
            error = self.meet({"worker 0": {}})["worker 0"]
        self.assertRegex(
            str(error), rf"^TF_CONFIG: worker 0 cannot listen on 127.0.0.1:{port} \(address already in use\)"
        )

    def test_a_signal_ends_waiting_workers(self):
        for own, waits_for in (("worker 0", "worker 1"), ("worker 1", "worker 0")):
            process = self.start(own)
            self.assertRegex(process.stdout.readline(), rf"^waiting for {waits_for} \(127.0.0.1:\d+\)")
            process.send_signal(signal.SIGTERM)
            self.assertEqual(process.wait(helpers.PATIENCE), 3)
            self.assertIn("stopped by SIGTERM before the first step", process.stdout.read())

    def test_strangers_and_restarts(self):
        first = self.start("worker 0")
        first.stdout.readline()
        host, _, port = self.addresses["worker"][0].rpartition(":")
        strangers = (
            b"GET / HTTP/1.1\r\n\n",
            b"\n",
            b"[]\n",
            b'{"task": "worker 1"}\n',
            b"\xff\n",
            b"[" * 10_000 + b"\n",
            b"",
        )
        for said in strangers:
            with socket.create_connection((host, int(port))) as connection:
                connection.sendall(said)
        twice = b'{"task": "worker 0", "cluster": "", "flags": {}}\n'
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(twice)
            self.assertIn(b"worker 0 is not in the cluster of worker 0, or was started twice", connection.recv(9999))
        killed = self.start("worker 1")
        killed.stdout.readline()
        killed.kill()
        killed.wait()
        others = [self.start("worker 1"), self.start("worker 2")]
        self.assertEqual([each.wait(helpers.PATIENCE) for each in (first, *others)], [0, 0, 0])

    def test_servers(self):
        addresses = {"chief": self.addresses["worker"][:1], "ps": self.addresses["worker"][1:]}
        with self.assertRaisesRegex(WorkerLost, r"^ps 0 \(.*\), ps 1 \(.*\): did not start within 1 s"):
            rendezvous.wait_for_servers(addresses, "chief 0", 1.0)
        ports = [int(address.rpartition(":")[2]) for address in addresses["ps"]]
        with socket.create_server(("127.0.0.1", ports[0])), socket.create_server(("127.0.0.1", ports[1])):
            rendezvous.wait_for_servers(addresses, "chief 0", 600.0)


if __name__ == "__main__":
    unittest.main()
