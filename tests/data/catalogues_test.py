"""Message catalogues of gettext, written here in the format of its manual and checked with Python's own reader."""

import gettext
import io
import pathlib
import struct
import unittest
from unittest import mock

from tests import helpers
from tfzoo.data import catalogues
from tfzoo.data.corpus import load_corpus
from tfzoo.errors import UserError

HEADER = "Content-Type: text/plain; charset={}\nPlural-Forms: {};\n"
GERMAN = "nplurals=2; plural=(n != 1)"


def catalogue(entries, encoding="UTF-8", plural=GERMAN, order="<"):
    """Returns the bytes of a .mo file; plural forms are tuples."""
    texts = {"": HEADER.format(encoding, plural)} | entries
    encoded = sorted(
        tuple("\0".join([text] if isinstance(text, str) else text).encode(encoding) for text in entry)
        for entry in texts.items()
    )
    count = len(encoded)
    tables, data, start = ([], []), b"", 28 + 16 * count
    for side in (0, 1):
        for entry in encoded:
            tables[side].append((len(entry[side]), start + len(data)))
            data += entry[side] + b"\0"
    numbers = [0x950412DE, 0, count, 28, 28 + 8 * count, 0, 28 + 16 * count]
    flat = [number for table in tables for pair in table for number in pair]
    return struct.pack(f"{order}{len(numbers) + len(flat)}I", *numbers, *flat) + data


MESSAGES = {f"Message {i}": f"Meldung {i}" for i in range(50)}


class CatalogueCase(unittest.TestCase):
    def setUp(self):
        self.folder = helpers.temporary_folder(self)
        self.enterContext(mock.patch.object(catalogues, "LOCALE_FOLDERS", (str(self.folder),)))

    def write(self, entries, language="de", domain="tool", **options):
        path = pathlib.Path(self.folder, language, "LC_MESSAGES", f"{domain}.mo")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(entries if isinstance(entries, bytes) else catalogue(entries, **options))
        return str(path)

    def texts(self, spec, **options):
        read = load_corpus(spec, cache_dir=None, **options)
        return sorted(tuple(document.sentences) for document in read.train + read.held_out)

    def refused(self, message, spec, **options):
        with self.assertRaises(UserError) as caught:
            load_corpus(spec, cache_dir=None, **options)
        text = str(caught.exception).replace(f"{self.folder}/", "")
        self.assertIn(message, text)
        self.assertNotIn("\n", text)


class PairsTest(CatalogueCase):
    def test_the_same_as_the_standard_library_reads(self):
        data = catalogue(MESSAGES)
        known = gettext.GNUTranslations(io.BytesIO(data))
        self.assertEqual(known.gettext("Message 7"), "Meldung 7")
        self.assertEqual(
            self.texts(self.write(data)), sorted((message, known.gettext(message)) for message in MESSAGES)
        )

    def test_byte_orders_and_encodings(self):
        entries = MESSAGES | {"Open": "Öffnen"}
        expected = self.texts(self.write(entries))
        self.assertIn(("Open", "Öffnen"), expected)
        for options in (dict(order=">"), dict(encoding="ISO-8859-1"), dict(encoding="UTF-8", plural="nonsense(")):
            self.assertEqual(self.texts(self.write(entries, **options)), expected, options)

    def test_what_is_kept(self):
        path = self.write(
            {
                # Format strings stay, lines are joined.
                "Cannot open %s:\n   %d": "%s kann nicht\ngeöffnet werden: %d\n",
                "menu\x04Quit": "Beenden",  # A context.
                "GNU tar": "GNU tar",  # Not a translation.
                "%s: %d": "%s : %d",  # No words.
                "Empty": "",
                ("%d file", "%d files"): ("%d Datei", "%d Dateien"),
            }
        )
        self.assertEqual(
            self.texts(path),
            [
                ("%d file", "%d Datei"),
                ("%d files", "%d Dateien"),
                ("Cannot open %s: %d", "%s kann nicht geöffnet werden: %d"),
                ("Quit", "Beenden"),
            ],
        )

    def test_plural_forms(self):
        message = ("%d file", "%d files")
        for plural, forms, expected in (
            ("nplurals=1; plural=0", ("%d 个文件",), [(m, "%d 个文件") for m in message]),
            (
                "nplurals=3; plural=(n==0 ? 0 : n==1 ? 1 : 2)",
                ("null a", "eins a", "viel a"),
                [("%d file", "eins a"), ("%d files", "null a"), ("%d files", "viel a")],
            ),
        ):
            with self.subTest(plural):
                self.assertEqual(
                    self.texts(self.write({message: forms, "a": "b"}, plural=plural)), [*expected, ("a", "b")]
                )


class InstalledTest(CatalogueCase):
    def test_languages_and_directions(self):
        self.write({"One. Two.": "Eins. Zwei.", "Three": "Drei"})
        self.write({"Three": "Drei", "Four": "Vier"}, domain="other")
        self.write({"Four": "四", "Five": "五"}, language="zh_CN")
        german = [("Four", "Vier"), ("One. Two.", "Eins. Zwei."), ("Three", "Drei")]
        self.assertEqual(self.texts("gettext:en-de"), german)
        self.assertEqual(self.texts("gettext:de-en"), sorted((b, a) for a, b in german))
        self.assertEqual(self.texts("gettext:de"), [("Drei",), ("Eins.", "Zwei."), ("Vier",)])
        self.assertEqual(self.texts("gettext:en"), [("Five",), ("Four",), ("One.", "Two."), ("Three",)])
        self.assertEqual(self.texts("gettext:zh_CN"), [("五",), ("四",)])
        self.assertEqual(self.texts(f"{self.folder}/*/LC_MESSAGES/tool.mo")[0], ("Five", "五"))

    def test_a_message_is_in_the_same_part_in_every_language_and_direction(self):
        names = [f"Message number {i}" for i in range(400)]
        for language in ("de", "fr"):
            self.write({name: f"{language} {name}" for name in names}, language)
        held_out = []
        for spec in ("gettext:en-de", "gettext:fr-en", "gettext:de", "gettext:en"):
            read = load_corpus(spec, cache_dir=None, held_out=0.1)
            held_out.append({document.sentences[-1].removeprefix("de ") for document in read.held_out})
        self.assertTrue(20 < len(held_out[0]) < 60)
        self.assertEqual(held_out, [held_out[0]] * 4)

    def test_unknown_languages(self):
        self.refused("contain no catalogues", "gettext:de")
        self.write(MESSAGES, "zh_CN")
        self.refused("no program has translations for 'zh' (there are zh_CN); specify another language", "gettext:zh")
        self.refused("no program has translations for 'xx'; specify", "gettext:en-xx")
        for wrong in ("gettext", "gettext:", "gettext:de-fr", "gettext:en-en", "gettext:en-", "gettext:en-de-fr"):
            self.refused(f"--corpus={wrong}: must be gettext:LANGUAGE or gettext:en-LANGUAGE or", wrong)


class PolicyTest(CatalogueCase):
    def test_invalid_text(self):
        path = self.write(catalogue(MESSAGES).replace(b"Meldung 7\0", b"Meldu\xff\xfe 7\0"))
        self.refused(
            "tool.mo:49: message 49 is invalid in the catalogue's encoding, UTF-8; compile", path[:-7] + "*.mo"
        )
        self.assertEqual(dict(self.texts(path, policy="skip")), {m: t for m, t in MESSAGES.items() if "7" != m[8:]})
        self.assertEqual(dict(self.texts(path, policy="replace"))["Message 7"], "Meldu\ufffd\ufffd 7")

    def test_invalid_files(self):
        good = self.write(MESSAGES, domain="good")
        data = catalogue(MESSAGES)
        for damaged, message in (
            (b"", "not a catalogue of gettext"),
            (b"text", "not a catalogue of gettext"),
            (data[:10], "the catalogue is truncated"),
            (data[:100], "the catalogue is truncated"),
            (data[:-9], "the catalogue is truncated"),
            (data.replace(b"UTF-8", b"UTF-x"), "unknown encoding 'UTF-x' in the header"),
            (data.replace(b"UTF-8", b"idna "), "unknown encoding 'idna' in the header"),
        ):
            with self.subTest(message, size=len(damaged)):
                self.write(damaged)
                self.refused(f"de/LC_MESSAGES/tool.mo:1: {message}", "gettext:en-de")
                for policy in ("skip", "replace"):
                    self.assertEqual(self.texts("gettext:en-de", policy=policy), self.texts(good))

    def test_flags(self):
        path = self.write(MESSAGES)
        self.refused("--raw_text: does not apply", path, raw=True)
        self.refused("exceeds max_bytes=99", path, max_bytes=99, max_line_bytes=50)


if __name__ == "__main__":
    unittest.main()
