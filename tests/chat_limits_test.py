"""Hostile chat templates and conversations: limits of time, memory, output and nesting, and renderings after them."""

import concurrent.futures
import os
import re
import unittest
from unittest import mock

from tfzoo.chat import sandbox
from tfzoo.chat.provenance import OWN, USER, Text, own, who
from tfzoo.chat.template import ChatTemplate
from tfzoo.errors import UserError

USER_SAYS = [{"role": "user", "content": "a"}]


class Letters:
    """A tokenizer of letters."""

    vocab = ["<s>", *map(chr, range(1, 0x250))]
    special_ids = [0]
    bos_id, eos_id, unknown_id = 0, None, None

    def encode(self, texts, special=()):
        return [[ord(letter) for letter in text] for text in texts]


def text(source: str, messages=USER_SAYS) -> str:
    return ChatTemplate(source, Letters(), Letters().encode).text(messages)


class LimitsTest(unittest.TestCase):
    def refused(self, sources):
        """Each template is refused for its reason, and the next one is rendered."""
        sandbox.close()
        for source, words in sources.items():
            with self.subTest(source), self.assertRaisesRegex(UserError, rf"\Athe chat template: .*({words}).*\Z"):
                text(source)
            self.assertEqual(text("{{ messages[0].content }}b"), "ab")
        sandbox.close()

    @mock.patch.object(sandbox, "SECONDS", 1)
    def test_templates_that_do_not_end(self):
        self.refused(
            {
                "{% for i in range(99999) %}" * 3 + "{% endfor %}" * 3: "needs more than 1 s",
                "{{ 9 ** (9 ** 9) }}": "needs more than 1 s",
                "{% set n = namespace(x=[]) %}{% for i in range(99) %}{% set n.x = [n.x, n.x] %}{% endfor %}"
                "{{ n.x | tojson }}": "needs more than 1 s",
            }
        )

    @mock.patch.object(sandbox, "SECONDS", 60)  # Beyond what the slowest machine needs to reach the other limits.
    @mock.patch.object(sandbox, "MEMORY", 1 << 29)
    def test_templates_that_exceed_memory_or_depth(self):
        self.refused(
            {
                "{{ ('x' * 9999999).replace('x', 'y' * 9999999) }}": "MemoryError|OverflowError",
                "{{ '%9999999999d' % 1 }}": "MemoryError",
                "{{ '{:9999999999}'.format(1) }}": "MemoryError",
                "{{ 'x' | center(9999999999) }}": "MemoryError",
                "{{ ([0] * 9999999999) | length }}": "MemoryError",
                "{{ messages[0].content * 9999999 }}" * 2: "MemoryError|OverflowError",
                "{% macro f(x) %}{{ f([x]) }}{% endmacro %}{{ f(1) }}": "RecursionError",
                "{% set n = namespace(x=[]) %}{% for i in range(99999) %}{% set n.x = [n.x] %}{% endfor %}"
                "{{ n.x }}": "RecursionError|ends its",
            }
        )

    def test_a_template_whose_compilation_does_not_end(self):
        with mock.patch.object(sandbox, "SECONDS", 1), mock.patch.object(sandbox, "MEMORY", 1 << 28):
            sandbox.close()
            with self.assertRaisesRegex(UserError, r"\Athe chat template(, line 1)?: is not a template \(.*"):
                text("{% if x %}y{% endif %}" * 1_000_000)
        sandbox.close()

    def test_nested_messages(self):
        nested: object = "a"
        for _ in range(100_000):
            nested = [nested]
        with self.assertRaisesRegex(UserError, r"\Amessages\[0\].content.{,80}: is nested too deeply .more than 64"):
            text("", [{"role": "user", "content": nested}])
        with self.assertRaisesRegex(UserError, r"\Amessages\[0\]: is .{,400}, not an object"):
            text("", [nested])

    def test_values_arrive_unchanged(self):
        values = [None, True, False, 0, -1, 2**70, 0.5, 1e300, "", "\ud800\0\u2028\n", [], {}, [{"b": [1]}, "x"]]
        context = {"x": values, "y": {"key": "value"}}
        source = "{{ [x, y] | string }}"
        self.assertEqual(sandbox.render(source, context), str([values, {"key": "value"}]))
        mixed = Text("abc", bytes([OWN, USER, USER]))
        rendered = sandbox.render("{{ x }}d", {"x": mixed})
        self.assertEqual((rendered, list(who(rendered))), ("abcd", [OWN, USER, USER, OWN]))
        self.assertEqual(sandbox.render("{{ x == 'a' }}", {"x": own("a")}), "True")

    def test_threads_and_forks(self):
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            parts = pool.map(lambda i: sandbox.render("{{ x }}" * (i + 1), {"x": str(i)}), range(200))
            self.assertEqual(list(parts), [str(i) * (i + 1) for i in range(200)])
        child = os.fork()
        if not child:
            try:
                os._exit(sandbox.render("{{ x }}", {"x": "b"}) != "b")
            finally:
                os._exit(1)
        self.assertEqual(sandbox.render("{{ x }}", {"x": "a"}), "a")
        self.assertEqual(os.waitpid(child, 0)[1], 0)

    def test_a_reply_is_never_that_of_an_earlier_request(self):
        sandbox.check("")
        with mock.patch.object(sandbox.select, "poll", side_effect=KeyboardInterrupt):
            self.assertRaises(KeyboardInterrupt, sandbox.render, "a", {})
        self.assertEqual(sandbox.render("b", {}), "b")

    def test_templates_see_no_environment_variables(self):
        with mock.patch.dict(os.environ, {"HF_TOKEN": "secret"}):
            sandbox.close()
            sandbox.check("")
            process = sandbox._process._process.pid
            with open(f"/proc/{process}/environ", "rb") as file:
                names = set(re.findall(rb"(?:^|\0)([^=\0]+)=", file.read()))
        self.assertIn(b"PYTHONPATH", names)
        self.assertNotIn(b"HF_TOKEN", names)


if __name__ == "__main__":
    unittest.main()
