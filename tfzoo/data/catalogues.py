"""Reads message catalogues of gettext (.mo files): the texts of programs and their translations.

    gettext:en-de               pairs of messages and their German translations, from the installed programs
    gettext:de-en               the same pairs in the other direction
    gettext:de, gettext:en      text in one language: the German translations, or the English messages
    locale/*/LC_MESSAGES/x.mo   pairs from the files that match a path or glob

Languages are named as in the folders LANGUAGE/LC_MESSAGES of `LOCALE_FOLDERS`: de, pt_BR, zh_CN. The message of a
program in the source code, which is almost always English, is the text, and the entry in the catalogue is its
translation. The format is described in section "The Format of GNU MO Files" of the manual of gettext.

- The header of a catalogue, contexts of messages, and pairs without words or with two equal sides are omitted.
- Of a message with plural forms, the form for the number 1 is paired with the singular, and the others with the plural.
- Format specifiers such as %s are kept; white space, including line breaks, becomes a single space.

A pair is a document with two sentences; in text in one language, each message is a document. Duplicates are omitted.
The hash of the message in the source code decides whether it is held out, in every language and direction.

| problem | strict | replace | skip |
|---|---|---|---|
| text that is invalid in the encoding of the catalogue | error | U+FFFD | drop the message |
| not a catalogue, a truncated catalogue, an unknown encoding | error | drop the file | drop the file |
"""

import gettext
import os
import pathlib
import re
import struct
from collections.abc import Iterator

from tfzoo.data import files, sentences
from tfzoo.data.documents import Corpus, Document
from tfzoo.errors import UserError, suggest
from tfzoo.files import read_bytes

VERSION = 1  # Incremented when the result for the same files changes.
INSTALLED = "gettext"
SUFFIX = ".mo"
SOURCE = "en"  # The language of the messages in source code.
LOCALE_FOLDERS = ("/usr/share/locale", "/usr/local/share/locale", "/opt/homebrew/share/locale")

# Of C, Python and Qt: %s, %1$-5lu, %(name)s, {name}.
_SPECIFIER = re.compile(r"%(\([^()]*\))?[-+ #0-9.*$'hlLqjzt]*[A-Za-z]|\{[^{}]*\}")
_MAGIC = {b"\xde\x12\x04\x95": "<", b"\x95\x04\x12\xde": ">"}


def is_catalogue(spec: str) -> bool:
    """Returns whether a source is gettext:LANGUAGE, or a path or glob of .mo files."""
    return spec.partition(":")[0] == INSTALLED or spec.endswith(SUFFIX)


def read(spec: str, *, policy: str, held_out: float, max_line_bytes: int, max_bytes: int) -> Corpus:
    """Reads the catalogues that `spec` names; the options are those of `files.read`.

    Raises:
      UserError: a language is not installed, a file cannot be read, or the input violates the policy.
    """
    reader = files.Reader(policy, max_line_bytes, max_bytes)
    prefix, _, names = spec.partition(":")
    languages = names.split("-") if prefix == INSTALLED else [SOURCE, ""]
    paths = _installed(spec, languages) if prefix == INSTALLED else files.paths_of(spec, [SUFFIX])
    sides = ["message" if language == SOURCE else "translation" for language in languages]
    reader.digest.update(f"gettext {VERSION} {sides}".encode())

    def documents() -> Iterator[tuple[str, Document]]:
        # Catalogues in many languages contain the same English messages.
        seen: set[bytes] | None = set() if languages == [SOURCE] else None
        for path in paths:
            domain = os.path.basename(path).removesuffix(SUFFIX)
            for message, translation in _pairs(reader, path, seen):
                texts = [message if side == "message" else translation for side in sides]
                if len(texts) == 2:
                    yield message, Document(domain, texts, separator="")
                else:
                    yield message, Document(domain, sentences.split(texts[0]))

    return files.assemble(spec, reader, documents(), held_out)


def _installed(spec: str, languages: list[str]) -> list[str]:
    """Returns the installed catalogues of a language, or of all languages for the English messages alone."""
    if len(languages) > 2 or (len(languages) == 2 and languages.count(SOURCE) != 1) or not all(languages):
        forms = ("LANGUAGE", f"{SOURCE}-LANGUAGE", f"LANGUAGE-{SOURCE}")
        raise UserError(f"--corpus={spec}: must be {' or '.join(f'{INSTALLED}:{form}' for form in forms)}")
    found: dict[str, list[str]] = {}
    for folder in LOCALE_FOLDERS:
        for path in sorted(pathlib.Path(folder).glob(f"*/LC_MESSAGES/*{SUFFIX}")):
            found.setdefault(path.parts[-3], []).append(os.fspath(path))
    if not found:
        raise UserError(
            f"--corpus={spec}: {', '.join(LOCALE_FOLDERS)} contain no catalogues; specify the path of {SUFFIX} files"
        )
    other = next((language for language in languages if language != SOURCE), None)
    if other is None:
        return [path for paths in found.values() for path in paths]
    if other not in found:
        variants = [language for language in found if language.startswith(f"{other}_")]
        hint = f" (there are {', '.join(variants)})" if variants else suggest(other, found)
        raise UserError(f"--corpus={spec}: no program has translations for {other!r}{hint}; specify another language")
    return found[other]


def _pairs(reader: files.Reader, path: str, seen: set[bytes] | None) -> Iterator[tuple[str, str]]:
    """Yields the (message, translation) of a catalogue that the policy keeps, without messages that are in `seen`, to
    which the others are added."""
    reader.counts["files"] += 1
    content = read_bytes(path)
    reader.counts["bytes_read"] += len(content)
    reader.check_size(path, len(content), None)
    reader.digest.update(content)
    try:
        entries = list(_entries(content))
        encoding, form_of_one = _header(dict(entries).get(b"", b""))
        reader.counts["messages"] = reader.counts.get("messages", 0) + len(entries)
    except files.Bad as bad:
        reader.handle(path, 1, bad)
        return
    for number, (message, translation) in enumerate(entries, 1):
        if not message or (seen and message in seen):
            continue
        try:
            originals = _decoded(reader, path, number, message.rpartition(b"\4")[2], encoding)
            forms = _decoded(reader, path, number, translation, encoding)
        except files.Dropped:
            continue
        for form, text in enumerate(forms):
            # Languages with a single form use it for the singular and the plural.
            chosen = originals if len(forms) == 1 else [originals[0 if form == form_of_one else -1]]
            for original in chosen:
                if original != text and _has_letter(original) and _has_letter(text):
                    if seen is not None:
                        seen.add(message)
                    yield original, text


def _entries(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yields the (message, translation) of a .mo file; raises files.Bad if the file is damaged."""
    order = _MAGIC.get(content[:4])
    if order is None:
        raise files.Bad("not_a_catalogue", "not a catalogue of gettext", "specify .mo files made by msgfmt")
    try:
        count, messages, translations = struct.unpack_from(f"{order}3I", content, 8)
        for i in range(count):
            texts = []
            for table in (messages, translations):
                length, start = struct.unpack_from(f"{order}2I", content, table + 8 * i)
                if start + length > len(content):
                    raise struct.error
                texts.append(content[start : start + length])
            yield texts[0], texts[1]
    except struct.error:
        raise files.Bad("damaged_catalogue", "the catalogue is truncated", "install or compile it again") from None


def _header(text: bytes) -> tuple[str, int]:
    """Returns (encoding, number of the plural form for the number 1) of a catalogue's header."""
    header = text.decode("latin-1")
    charset = re.search(r"charset=([^\s;]+)", header, re.IGNORECASE)
    encoding = charset[1] if charset else "utf-8"
    try:
        known = b"a%b".decode(encoding, errors="replace") == "a%b"
    except (LookupError, UnicodeError):
        known = False
    if not known:
        words = f"unknown encoding {encoding!r} in the header"
        raise files.Bad("unknown_encoding", words, "convert the catalogue to UTF-8")
    plural = re.search(r"plural\s*=\s*([^;\n]+)", header)
    try:
        return encoding, int(gettext.c2py(plural[1])(1)) if plural else 0
    except (ValueError, ZeroDivisionError):
        return encoding, 0


def _decoded(reader: files.Reader, path: str, number: int, data: bytes, encoding: str) -> list[str]:
    """Returns the forms of a message, of which plural forms are separated by NUL; raises files.Dropped."""
    try:
        text = data.decode(encoding)
        text.encode()  # Some encodings can represent lone surrogates.
    except UnicodeError:
        words = f"message {number} is invalid in the catalogue's encoding, {encoding}"
        reader.handle(path, number, files.Bad("invalid_encoding", words, "compile the catalogue again"))
        if reader.policy == "skip":
            raise files.Dropped from None
        text = data.decode(encoding, errors="replace").encode(errors="replace").decode()
    return [" ".join(form.split()) for form in text.split("\0")]


def _has_letter(text: str) -> bool:
    """Returns whether there is a letter outside of format specifiers."""
    return any(character.isalpha() for character in _SPECIFIER.sub("", text))
