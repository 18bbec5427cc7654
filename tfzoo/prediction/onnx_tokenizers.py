"""The tokenizers of ONNX artifacts, with the libraries tokenizers and sentencepiece instead of TensorFlow.

Ids, offsets and texts equal those of tfzoo.text. `open_tokenizer` reads tokenizer.json, or else a SentencePiece model.
"""

import dataclasses
import functools
import json
import pathlib
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import sentencepiece
import tokenizers

from tfzoo import json_files
from tfzoo.errors import UserError, one_line
from tfzoo.json_files import Field
from tfzoo.onnx_decoding.tokens import frame_of
from tfzoo.prediction.decoding import Vocabulary
from tfzoo.text import sentencepiece_files, settings, untrusted
from tfzoo.text.components import schema
from tfzoo.text.framing import Frame
from tfzoo.text.settings import MAX_TOKENS, SENTENCEPIECE_FILES, TOKENIZER_FILE
from tfzoo.text.token_files import AddedToken

_SAVED_MODEL = "specify the SavedModel of this model"
_ADDED = {"content": Field(str, required=True), "special": Field(bool, required=True)}
# Unicode white space, as in tfzoo.text.pieces.
_SPACE = "\t\n\v\f\r \x85\xa0\u1680" + "".join(map(chr, range(0x2000, 0x200B))) + "\u2028\u2029\u202f\u205f\u3000"


@dataclasses.dataclass(frozen=True)
class Encoded:
    """The tokens of a text: their ids and, if they were asked for, their offsets in code points of the text."""

    ids: Sequence[int]
    offsets: Sequence[tuple[int, int]] = ()


class OnnxTokenizer:
    """Texts to ids, without the special tokens around them.

    Attributes:
      has_offsets: whether tokens have offsets.
      pad_id: the id used for padding.
    """

    has_offsets = True
    pad_id: int

    def encode(self, texts: Sequence[str], offsets: bool = False) -> list[Encoded]:
        """Returns the tokens of each text; with `offsets` also their offsets, if the tokenizer has them."""
        raise NotImplementedError

    def id_of(self, token: str) -> int | None:
        """Returns the id of a token; None if it is not in the vocabulary."""
        raise NotImplementedError

    def vocabulary(self) -> Vocabulary:
        """Returns the tokens."""
        raise NotImplementedError

    def frame(self, pair: bool) -> Frame:
        """Returns the special tokens around a text, or around two, that the tokenizer's files state.

        Raises:
          UserError: they do not state them.
        """
        raise NotImplementedError


def open_tokenizer(folder: pathlib.Path, masks: bool, fingerprint: str | None = None) -> OnnxTokenizer:
    """Returns the tokenizer of an artifact.

    Args:
      folder: the folder `tokenizer` of the artifact.
      masks: whether the mask token is recognized where it is written in a text. Other special tokens are text where
        they are written in a text.
      fingerprint: that of the exported tokenizer, with which a SentencePiece model is compared.

    Raises:
      UserError: there is no tokenizer, it is damaged, or it cannot be reproduced exactly.
    """
    if (folder / TOKENIZER_FILE).is_file():
        return JsonTokenizer(folder / TOKENIZER_FILE, masks)
    if any((folder / name).is_file() for name in (*SENTENCEPIECE_FILES, "source.spm")):
        return SentencePieceTokenizer(folder, masks, fingerprint)
    raise UserError(
        f"--model_dir={folder.parent}: its tokenizer has neither a {TOKENIZER_FILE} nor a SentencePiece model; "
        f"{_SAVED_MODEL}"
    )


class JsonTokenizer(OnnxTokenizer):
    """tokenizer.json, read by the library tokenizers; see open_tokenizer."""

    def __init__(self, path: pathlib.Path, masks: bool):
        record = schema.read(path)
        mask = settings.token_text(settings.read(path.parent).get("mask_token"))
        for token in record.get("added_tokens") or ():
            json_files.check(token, _ADDED, f"{path}: added_tokens")
            # Other special tokens are text where they are written in a text.
            token["special"] = token["special"] and not (masks and token["content"] == mask)
        with untrusted.library_errors(path):
            self._tokenizer = tokenizers.Tokenizer.from_str(json.dumps(record))
        self._path, self._record = path, record
        self._tokenizer.encode_special_tokens = True
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._mask_id = None if mask is None else self._tokenizer.token_to_id(mask)
        self.pad_id = (record.get("padding") or {}).get("pad_id", 0)

    def encode(self, texts: Sequence[str], offsets: bool = False) -> list[Encoded]:
        with untrusted.library_errors(self._path):
            found = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [Encoded(text.ids, text.offsets if offsets else ()) for text in found]

    def id_of(self, token: str) -> int | None:
        return self._tokenizer.token_to_id(token)

    def vocabulary(self) -> Vocabulary:
        ids = [*self._tokenizer.get_vocab().values()]
        size = 1 + max(ids, default=-1)
        if size > MAX_TOKENS:
            raise UserError(f"{self._path}: has the id {size - 1}, but at most {MAX_TOKENS} tokens are supported")
        if len(set(ids)) < len(ids):
            raise UserError(f"{self._path}: two tokens have the same id; export the model again")
        pieces = [self._tokenizer.id_to_token(i) or "" for i in range(size)]
        special = [token["id"] for token in json.loads(self._tokenizer.to_str())["added_tokens"] if token["special"]]
        special += [i for i in (self._mask_id,) if i is not None]
        special += [i for i, piece in enumerate(pieces) if not piece]
        model = self._record["model"]
        continues = None
        if model.get("type") == "WordPiece":
            continues = np.array([piece.startswith(model["continuing_subword_prefix"]) for piece in pieces])

        def texts() -> list[str]:
            found = self._tokenizer.decode_batch([[i] for i in range(size)], skip_special_tokens=True)
            for i in special:
                found[i] = ""
            return found

        return Vocabulary(pieces, continues, special, self._mask_id, texts, self._tokenizer.decode)

    def frame(self, pair: bool) -> Frame:
        return frame_of(self._record.get("post_processor") or {}, pair, self._path)


class SentencePieceTokenizer(OnnxTokenizer):
    """A SentencePiece model of any of the kinds of tfzoo.text.sentencepiece, read by the library sentencepiece.

    Text that XLNet and ALBERT clean is cleaned with the Unicode tables of this Python, and in TensorFlow with those of
    its ICU: characters that Unicode added between the two versions may differ. See also open_tokenizer.
    """

    def __init__(self, folder: pathlib.Path, masks: bool, fingerprint: str | None = None):
        self._definition = made = sentencepiece_files.read(folder)
        if fingerprint not in (None, made.fingerprint()):
            raise UserError(
                f"--model_dir={folder.parent}: the tokenizer was exported with options that its files do not state; "
                f"{_SAVED_MODEL}"
            )
        try:
            self._library = self._bare = sentencepiece.SentencePieceProcessor(model_proto=made.op_model)
            self._library.encode("a")
            if made.bare_model is not None:
                self._bare = sentencepiece.SentencePieceProcessor(model_proto=made.bare_model)
        except RuntimeError as error:
            raise UserError(f"{made.name}: the model cannot be used ({one_line(error, 200)}); get it again") from None
        self._mask_id = made.role_ids.get("mask")
        self.pad_id = made.role_ids.get("pad", 0)
        self._splits_text = made.prefix == "first" and bool(made.added)
        self.has_offsets = not (made.row.cleans or made.row.vocab or self._splits_text)
        self._splits = made.without_commas(self._library.encode)
        matched = {token.content: token for token in made.added if not token.special}
        if masks and self._mask_id is not None:
            mask = made.tokens[self._mask_id][0]
            added = {token.content: token for token in made.added}
            matched[mask] = added.get(mask, AddedToken(mask, self._mask_id))
        _check_matches(folder, [*matched.values()])
        # Tokens that are matched in normalised texts are matched after the others.
        both = ([token for token in matched.values() if token.normalized is late] for late in (False, True))
        self._matchers = [_Matcher(tokens) for tokens in both if tokens]

    def id_of(self, token: str) -> int | None:
        return self._definition.ids.get(token)

    def frame(self, pair: bool) -> Frame:
        raise UserError(
            f"{self._definition.name}: does not state which special tokens are around a text; export the model again"
        )

    def encode(self, texts: Sequence[str], offsets: bool = False) -> list[Encoded]:
        rows = [self._parts(text) for text in texts]
        pieces = [part for row in rows for part in row if isinstance(part, _Piece)]
        found = iter(self._encode_aligned(pieces) if offsets and self.has_offsets else self._encode(pieces))
        result = []
        for row in rows:
            ids: list[int] = []
            places: list[tuple[int, int]] = []
            for part in row:
                encoded = next(found) if isinstance(part, _Piece) else Encoded([part.id], [(part.start, part.end)])
                ids += encoded.ids
                places += encoded.offsets
            result.append(Encoded(ids, places if offsets and self.has_offsets else ()))
        return result

    def vocabulary(self) -> Vocabulary:
        pieces = [text for text, _ in self._definition.tokens]
        special = list(self._definition.special_ids)
        return Vocabulary(pieces, None, special, self._mask_id, self._texts, self.decode)

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of ids, as SentencePiece.detokenize of tfzoo.text.sentencepiece."""
        made, space = self._definition, sentencepiece_files.SPACE
        text = b"".join(self._surfaces[i] for i in ids).decode(errors="surrogateescape")
        if made.suffixed:
            text = text.removesuffix(space)
        elif made.strips:
            text = text.lstrip(space)
        elif made.prefixed:
            text = text.removeprefix(space)
        text = text.replace(space, " ")
        if made.row.vocab:
            text = text.strip()
        return text.encode(errors="surrogateescape").decode(errors="replace")

    @functools.cached_property
    def _surfaces(self) -> list[bytes]:
        return self._definition.surfaces()

    def _texts(self) -> list[str]:
        return [self.decode([i]) for i in range(len(self._surfaces))]

    def _parts(self, text: str) -> list["_Piece | _Match"]:
        parts: list[_Piece | _Match] = [_Piece(text, 0)]
        for matcher in self._matchers:
            parts = [
                found for part in parts for found in (matcher.split(part) if isinstance(part, _Piece) else (part,))
            ]
        return parts

    def _encode_aligned(self, pieces: Sequence["_Piece"]) -> list[Encoded]:
        protos = self._library.encode([piece.text for piece in pieces], out_type="immutable_proto")
        return [
            Encoded(
                self._renumbered([token.id for token in proto.pieces]),
                [(piece.start + token.begin, piece.start + token.end) for token in proto.pieces],
            )
            for piece, proto in zip(pieces, protos, strict=True)
        ]

    def _encode(self, pieces: Sequence["_Piece"]) -> list[Encoded]:
        made, texts = self._definition, [piece.text for piece in pieces]
        if made.vocab is not None:
            return [Encoded(self._look_up(text)) for text in texts]
        if made.row.cleans:
            rows = self._library.encode([self._cleaned(text) for text in texts])
            return [Encoded([new for i in ids for new in self._splits.get(i, (i,))]) for ids in rows]
        if self._splits_text:
            rows = [(self._bare if piece.start else self._library).encode(piece.text) for piece in pieces]
        else:
            rows = self._library.encode(texts)
        return [Encoded(self._renumbered(ids)) for ids in rows]

    def _renumbered(self, ids: list[int]) -> list[int]:
        return ids if self._definition.new_ids is None else self._definition.new_ids[ids].tolist()

    def _look_up(self, text: str) -> list[int]:
        """Encodes a text for Marian: a language code before it, such as >>fra<<, is one token."""
        end = text.find("<<", 2) + 2 if text.startswith(">>") else 0
        end = 0 if end < 4 else end
        names = [text[:end]] if end else []
        names += self._library.encode(text[end:], out_type=str)
        vocab: Mapping[str, int] = self._definition.vocab or {}
        return [vocab.get(name, self._definition.unknown) for name in names]

    def _cleaned(self, text: str) -> str:
        """Applies the preprocessing of XLNet's and ALBERT's own code."""
        text = " ".join(text.split()).replace("``", '"').replace("''", '"')
        if not self._definition.keep_accents:
            text = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
        return text.lower() if self._definition.lowercase else text


@dataclasses.dataclass(frozen=True)
class _Piece:
    """A piece of a text, and where it starts."""

    text: str
    start: int


@dataclasses.dataclass(frozen=True)
class _Match:
    """An added token in a text: its id, and its start and end with the white space that belongs to it."""

    id: int
    start: int
    end: int


class _Matcher:
    """Finds added tokens in pieces of texts, as tfzoo.text.added does.

    Args:
      tokens: the tokens, at least one; see _check_matches.
    """

    def __init__(self, tokens: Sequence[AddedToken]):
        self._tokens = {token.content: token for token in tokens}
        self._any: Any = _pattern(tokens)
        self._left = _pattern([token for token in tokens if token.lstrip])

    def split(self, piece: _Piece) -> Iterator[_Piece | _Match]:
        """Yields the pieces between the tokens, and the tokens."""
        text, done = piece.text, 0
        while match := self._any.search(text, done):
            start = match.start()
            if self._left is not None:
                # A token to which white space before it belongs begins earlier than any other at the same place.
                begin = done + len(text[done:start].rstrip(_SPACE))
                if begin < start and (left := self._left.match(text, start)):
                    match, start = left, begin
            token, end = self._tokens[match[0]], match.end()
            while token.rstrip and end < len(text) and text[end] in _SPACE:
                end += 1
            yield _Piece(text[done:start], piece.start + done)
            yield _Match(token.id, piece.start + start, piece.start + end)
            done = end
        yield _Piece(text[done:], piece.start + done)


def _pattern(tokens: Sequence[AddedToken]) -> re.Pattern | None:
    """Returns the pattern of the tokens' texts, of which the longest one is matched; None without tokens."""
    contents = sorted((token.content for token in tokens), key=lambda content: (-len(content), content))
    return re.compile("|".join(map(re.escape, contents))) if contents else None


def _check_matches(folder: pathlib.Path, tokens: Sequence[AddedToken]) -> None:
    """Raises UserError for tokens that _Matcher does not find exactly as TensorFlow does."""
    for token in tokens:
        around = token.content[0] in _SPACE and any(other.lstrip for other in tokens)
        if token.single_word or around:
            reason = "is matched as a whole word" if token.single_word else "begins with white space"
            raise UserError(
                f"--model_dir={folder.parent}: the added token {token.content!r} {reason}, which only TensorFlow "
                f"reproduces; {_SAVED_MODEL}"
            )
