"""Every field of a tokenizer.json's components is checked before it is compiled. Without TensorFlow."""

import copy
import unittest

from tfzoo.errors import UserError
from tfzoo.text.components import schema

RECORD = {
    "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "x"}, {"type": "NFC"}]},
    "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "a"}, "behavior": "Isolated", "invert": False},
    "post_processor": {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [],
        "special_tokens": {"[CLS]": {"id": "[CLS]", "ids": [1], "tokens": ["[CLS]"]}},
    },
    "decoder": {"type": "Sequence", "decoders": [{"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
    "model": {"type": "BPE", "vocab": {"a": 0}, "merges": [], "unk_token": None, "fuse_unk": False, "dropout": None},
    "padding": {"pad_token": "[PAD]", "pad_id": 0},
}


class SchemaTest(unittest.TestCase):
    def test_fields_of_the_wrong_type(self):
        schema.check(RECORD, "t.json")
        for place, value, message in (
            (("normalizer", "normalizers"), {}, "t.json: normalizer: normalizers is {}, not a list"),
            (("normalizer", "normalizers", 0), [], r"normalizers is \[\[\], .*, not a list in which each item is an"),
            (("normalizer", "normalizers", 0, "prepend"), 3, "t.json: normalizer: prepend is 3, not a string; correct"),
            (
                ("pre_tokenizer", "pattern"),
                1,
                "pattern is 1, not a string or an object in which each value is a string",
            ),
            (("pre_tokenizer", "invert"), "no", "t.json: pre_tokenizer: invert is 'no', not true or false"),
            (("post_processor", "single", 0), "x", "single is .*, not a list in which each item is an object"),
            (
                ("post_processor", "single", 0, "SpecialToken"),
                [1],
                "single is .*not a list in which each item is an obj",
            ),
            (("post_processor", "single", 0, "SpecialToken", "id"), 1, "post_processor: id is 1, not a string"),
            (("post_processor", "special_tokens", "[CLS]", "ids"), [-1], r"'\[CLS\]': ids is \[-1\], not a list in"),
            (("decoder", "decoders", 0, "start"), 10**30, "decoder: start is 1.*, not a whole number from 0 to 2,147"),
            (("decoder", "type"), None, ""),
            (("model", "merges"), "a b", "t.json: model: merges is 'a b', not a list"),
            (("model", "unk_token"), [], r"t.json: model: unk_token is \[\], not a string"),
            (("padding", "pad_id"), "0", "t.json: padding: pad_id is '0', not a whole number"),
        ):
            record = copy.deepcopy(RECORD)
            inner = record
            for name in place[:-1]:
                inner = inner[name]
            inner[place[-1]] = value
            with self.subTest(place):
                if not message:
                    schema.check(record, "t.json")
                    continue
                with self.assertRaisesRegex(UserError, message):
                    schema.check(record, "t.json")


if __name__ == "__main__":
    unittest.main()
