"""The page, and the OpenAPI description, which schemathesis compares with the server."""

import http.client
import json
import re
import subprocess
import sys
import unittest

import pytest

from tests import helpers
from tests.serve import servers
from tfzoo.serve.rest import openai, openapi, tf_serving
from tfzoo.serve.rest import server as rest_server
from tfzoo.serve.rest.http import Settings

# Not positive_data_acceptance: a description does not say whether rows fit the signature of a model.
CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,"
    "negative_data_rejection"
)


def get(path: str, address: str = ""):
    host, _, port = (address or servers.rest_address()).rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=helpers.PATIENCE)
    connection.request("GET", path)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, answer.headers, content


class PageTest(unittest.TestCase):
    def test_pages_load_nothing_from_elsewhere(self):
        for path in ("/", "/docs"):
            status, headers, content = get(path)
            self.assertEqual((status, headers["content-type"]), (200, "text/html; charset=utf-8"))
            self.assertIn("default-src 'none'", headers["content-security-policy"])
            self.assertNotRegex(content, rb"https?://|//[a-z]+\.|@import|innerHTML|document.write")

    def test_it_can_be_turned_off(self):
        core = servers.core()
        settings = Settings(max_request_bytes=2**20, max_requests=core.max_inside)
        app = rest_server.application(core, settings, has_page=False)
        server = rest_server.Server(app, rest_server.listen("127.0.0.1", 0), None)
        self.addCleanup(server.stop, 1)
        for path in ("/", "/page/models"):
            self.assertEqual(get(path, f"127.0.0.1:{server.port}")[0], 404)
        self.assertNotIn(b'href="/"', get("/docs", f"127.0.0.1:{server.port}")[2])

    def test_the_data_of_the_page(self):
        models = {model["name"]: model for model in json.loads(get("/page/models")[2])["models"]}
        three = models["half_plus_three"]
        self.assertEqual(
            [(each["version"], each["state"]) for each in three["versions"]], [(5, "AVAILABLE"), (3, "AVAILABLE")]
        )
        self.assertEqual(three["signatures"]["several"]["inputs"], {
            "ids": {"dtype": "DT_INT64", "shape": [-1, 3]}, "scale": {"dtype": "DT_DOUBLE", "shape": []},
        })  # fmt: skip
        first, *_ = models["half_plus_two"]["signatures"]
        self.assertEqual(first, "serving_default")  # The form chooses it.
        self.assertIsNone(models["old_style"]["signatures"]["serving_default"]["inputs"]["x"]["shape"])


class DescriptionTest(unittest.TestCase):
    def test_it_describes_the_routes_and_no_others(self):
        described = json.loads(get("/openapi.json")[2])
        routes = [*openai.routes(servers.core()), *tf_serving.routes(servers.core())]
        used = set()
        for path, operations in described["paths"].items():
            example = path.format_map({"model": "m", "version": "1", "label": "x"})
            for method in operations.keys() - {"parameters"}:
                matching = [r for r in routes if r.method == method.upper() and r.pattern.fullmatch(example)]
                self.assertTrue(matching or path in ("/livez", "/readyz"), f"{method} {path}")
                used |= {id(route) for route in matching}
        self.assertEqual({route.pattern.pattern for route in routes if id(route) not in used}, set())
        page = get("/docs")[2].decode()
        for path in described["paths"]:
            self.assertIn(f"<code>{path}</code>", page)

    def test_metrics_are_described_where_there_are_any(self):
        self.assertIn("/metrics", openapi.description([], "/metrics")["paths"])
        self.assertNotIn(None, openapi.description([], None)["paths"])

    @pytest.mark.faults
    def test_schemathesis_finds_it_consistent(self):
        command = [sys.executable, "-m", "schemathesis.cli", "run", f"http://{servers.rest_address()}/openapi.json"]
        command += [f"--checks={CHECKS}", "--phases=examples,coverage,fuzzing", "--max-examples=5", "--seed=1"]
        done = subprocess.run([*command, "--no-color"], capture_output=True, text=True, timeout=helpers.PATIENCE)
        self.assertEqual(done.returncode, 0, (done.stdout + done.stderr)[-8000:])
        tested = re.search(r"(\d+) generated, \1 passed", done.stdout)
        self.assertGreater(int(tested[1]), 500, done.stdout[-2000:])


if __name__ == "__main__":
    unittest.main()
