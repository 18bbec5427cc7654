"""Tables and patterns that would make native libraries crash or hang are refused; natural ones are accepted."""

import base64
import random
import subprocess
import sys
import unittest

import tokenizers

from tests.text.charsmaps import chain, model, natural, table
from tfzoo.errors import UserError
from tfzoo.text import untrusted
from tfzoo.text.settings import SPLIT_PATTERNS

RULES = ("nmt_nfkc", "nfkc", "nmt_nfkc_cf", "nfkc_cf")
# Reads models in hexadecimal, one a line, and texts with every byte; prints how many models the library accepts.
READ = r"""
import sys, sentencepiece
used = 0
for line in sys.stdin:
    try:
        library = sentencepiece.SentencePieceProcessor(model_proto=bytes.fromhex(line))
    except RuntimeError:
        continue
    used += 1
    for text in [bytes([a]) + b"bc" + bytes([b]) for a in range(256) for b in (0, 97, 204, 255)]:
        library.encode(text)
print(used)
"""


class CharsmapTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.models, cls.tables = zip(*map(natural, RULES))

    def test_natural_tables(self):
        for content in self.tables:
            untrusted.check_charsmap(content)
        for content in (chain(1, {1: 0}), chain(64, {64: 0}), chain(33, dict.fromkeys(range(2, 34), 0))):
            untrusted.check_charsmap(content)
        many = {0: dict.fromkeys(range(1, 256), 1), 1: dict.fromkeys(range(256), 2), 2: {}}
        untrusted.check_charsmap(table(many, {2: 0}))  # Keys that share a state.

    def test_hostile_tables(self):
        smallest = bytes.fromhex("04000000 00feff7f 0000")
        for message, content in (
            ("a position outside itself", smallest),
            ("a position outside itself", table({0: {97: 5}}, {})),
            ("a position outside itself", table({0: {0: 5}}, {})),  # NUL is a byte of a text, too.
            ("a position outside itself", b"\0\x08\0\0" + chain(1, {1: 0})[4:]),  # The state ends within 256 units.
            ("no end within 1000 bytes", chain(1, {1: 2})),
            ("no end within 1000 bytes", chain(1, {1: 2**31 - 1})),
            ("no end within 1000 bytes", chain(1, {1: 0}, b"xxxx")),
            ("no end within 1000 bytes", chain(1, {1: 0}, b"x" * 1001 + b"\0")),
            ("can't decode", chain(1, {1: 0}, b"\xff\0")),
            ("keys of more than 64 bytes", table({0: {97: 0}}, {})),
            ("more than 32 in one another", table({0: {97: 1}, 1: {98: 0}}, {1: 0})),
            ("keys of more than 64 bytes", chain(65, {65: 0})),
            ("more than 32 in one another", chain(33, dict.fromkeys(range(1, 34), 0))),
            ("more than 1000000 keys", table({0: dict.fromkeys(range(1, 256), 0)}, {})),
            ("more than 1000000 keys", table({i: {97: i + 1, 98: i + 1} for i in range(40)} | {40: {}}, {40: 0})),
            ("claims 0 of", bytes(12)),
            ("claims 4 of 8", bytes.fromhex("04000000 00000000")),
            ("claims 3 of", bytes.fromhex("03000000 00000000")),
            ("claims 4294967292 of", b"\xfc\xff\xff\xff" + bytes(2000)),
            ("claims 0 of 2", b"\0\0"),
        ):
            with self.subTest(message, content=content[:12]), self.assertRaisesRegex(ValueError, message):
                untrusted.check_charsmap(content)

    def test_what_is_accepted_does_not_crash_the_library(self):
        """Natural tables and small ones with changed units: each is refused, or the library reads it safely."""
        rng, accepted = random.Random(0), []
        small = [chain(3, {1: 0, 3: 2}, b"x\0y\0"), table({0: {97: 1, 98: 1}, 1: {99: 2}, 2: {}}, {1: 0, 2: 0})]
        for content in [*small * 150, *self.tables * 5]:
            changed = bytearray(content)
            used = [at for at in range(4, len(content) - 4, 4) if content[at : at + 4] != b"\0\0\0\x80"]
            for _ in range(rng.choice((1, 1, 3))):
                changed[rng.choice(used) + rng.randrange(4)] ^= 1 << rng.randrange(8)
            try:
                untrusted.check_charsmap(bytes(changed))
            except ValueError:
                continue
            accepted.append(model(bytes(changed)).hex())
        self.assertGreater(len(accepted), 50)
        self.assertLess(len(accepted), 300)
        done = subprocess.run([sys.executable, "-c", READ], input="\n".join(accepted), capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stderr[-500:])
        self.assertGreater(int(done.stdout), 50)


class PatternTest(unittest.TestCase):
    def test_natural_patterns(self):
        for pattern in (
            *SPLIT_PATTERNS.values(), " {2,}", r"\p{L}+|\p{N}{1,2}|[^\s\w]", r"\s?[!-/:-~！-／：-～]+",
            r" ?[^(\s|[.,!?…。，、])]+", r"\d{1,3}(?=(?:\d{3})*\b)", "(?:abc)*", "[]a(+]+", "[(?]+", "(a|b)?c+",
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{M}]*[\p{Ll}\p{M}]+(?i:'s|'t|'re)?|\p{N}{1,3}|\s*[\r\n]+|\s+(?!\S)|\s+",
        ):  # fmt: skip
            with self.subTest(pattern):
                untrusted.check_pattern(pattern)

    def test_exponential_patterns(self):
        for pattern in (
            "(a+)+b", "(a|a)*b", "(a?){30}a", "((a*)b?)*", "a{2,3}+b", "(a{1,2}?)*", "((a+))+", "(a+(?i))+", "a**",
            "(?=a*)*", "x[[a](a+)+](a+)+", r"x[\](a+)+](a+)+", r"(?:\w|\d)+$", "(?:(?:a{9})?){9}", "(a{2}?)*",
        ):  # fmt: skip
            with self.subTest(pattern), self.assertRaisesRegex(ValueError, "may take exponential time"):
                untrusted.check_pattern(pattern)
        for pattern, message in (
            ("(?:a{1000}){1000}", "more than 10,000 characters once"),
            ("a{99999}", "more than 10,000 characters once"),
            ("(" * 60 + ")" * 60, "more than 50 groups"),
            ("a" * 20_001, "has 20,001 characters"),
            (r"(a)\1+", r"contains \\1"),
            (r"\g<0>", r"contains \\g"),
            (r"\c[(a+)+]", r"contains \\c"),
            ("(?<n>a+)+", "contains \\(\\?<"),
            ("(?x)a# [\n(a+)+]", "contains \\(\\?x"),
            ("(?#[)(a+)+", "contains \\(\\?#"),
        ):
            with self.subTest(pattern[:30]), self.assertRaisesRegex(ValueError, message):
                untrusted.check_pattern(pattern)

    def test_tokenizer_json(self):
        hostile = {"Regex": "(a+)+b"}
        precompiled = base64.b64encode(bytes.fromhex("0400000000feff7f0000")).decode()
        for name, part in (
            ("normalizer", {"type": "Sequence", "normalizers": [{"type": "Replace", "pattern": hostile}]}),
            ("pre_tokenizer", {"type": "Split", "pattern": hostile, "behavior": "Isolated"}),
            ("decoder", {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": hostile, "content": ""}]}),
            ("normalizer", {"type": "Precompiled", "precompiled_charsmap": precompiled}),
            ("normalizer", {"type": "Precompiled", "precompiled_charsmap": "*"}),
        ):
            with self.assertRaisesRegex(UserError, f"^x.json: {name}: .*; correct the file, or get it again$"):
                untrusted.check_tokenizer_json({"model": {}, name: part}, "x.json")
        whole = base64.b64encode(chain(1, {1: 0})).decode()
        untrusted.check_tokenizer_json({"normalizer": {"type": "Precompiled", "precompiled_charsmap": whole}}, "x.json")

    def test_a_panic_is_one_line(self):
        tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="a"))
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex("(a+)+(?=b)"), "isolated")
        with self.assertRaisesRegex(UserError, "^x.json: the tokenizers library fails .*; get the file again$"):
            with untrusted.library_errors("x.json"):
                tokenizer.encode("a" * 40)
        with self.assertRaises(KeyboardInterrupt), untrusted.library_errors("x.json"):
            raise KeyboardInterrupt


if __name__ == "__main__":
    unittest.main()
