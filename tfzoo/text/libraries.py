"""The tokenizers of exported models, with the libraries tokenizers and sentencepiece instead of TensorFlow.

Ids, offsets and texts equal those of tfzoo.text. `open_tokenizer` reads tokenizer.json, or else a SentencePiece model.
"""

import dataclasses
import functools
import json
import pathlib
import threading
import unicodedata
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import sentencepiece
import tokenizers

from tfzoo import json_files
from tfzoo.errors import UserError, one_line
from tfzoo.json_files import Field
from tfzoo.text import sentencepiece_files, settings, token_files, untrusted
from tfzoo.text.components import schema
from tfzoo.text.framing import PAIR, TEXT, Frame
from tfzoo.text.matches import Match, Matcher, Piece, unsupported
from tfzoo.text.settings import MAX_TOKENS, ROLES, SENTENCEPIECE_FILES, TOKENIZER_FILE
from tfzoo.text.token_files import AddedToken

_ELSE = "specify the SavedModel of this model, or the model"
_ADDED = {"content": Field(str, required=True), "special": Field(bool, required=True)}


@dataclasses.dataclass(frozen=True)
class Encoded:
    """The tokens of a text: their ids and, if they were asked for, their offsets in code points of the text."""

    ids: Sequence[int]
    offsets: Sequence[tuple[int, int]] = ()


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """The tokens of a vocabulary.

    Attributes:
      pieces: the tokens as they are in the vocabulary.
      continues: whether a token continues a word, [V], if the vocabulary marks such tokens; otherwise None.
      special_ids: the ids of special tokens, which do not represent text.
      mask_id: the id of the mask token; None without one.
      texts: () -> the text of each token; "" for special tokens that do not become text.
      decode: ids -> their text.
    """

    pieces: Sequence[str]
    continues: np.ndarray | None
    special_ids: Sequence[int]
    mask_id: int | None
    texts: Callable[[], list[str]]
    decode: Callable[[Sequence[int]], str]


class LibraryTokenizer:
    """Texts to ids, without the special tokens around them, and back.

    Attributes:
      has_offsets: whether tokens have offsets.
      pad_id: the id used for padding.
      role_ids: {role of settings.ROLES: id} of the special tokens that exist.
      special: {id: name} of the special tokens.
    """

    has_offsets = True
    pad_id: int
    role_ids: dict[str, int]
    special: dict[int, str]

    def encode(self, texts: Sequence[str], offsets: bool = False, special: Sequence[str] = ()) -> list[Encoded]:
        """Returns the tokens of each text.

        Args:
          texts: the texts.
          offsets: whether to return the offsets of tokens, if the tokenizer has them.
          special: special tokens that are recognized where they are written in a text. Others are plain text.

        Raises:
          UserError: `special` contains a text that is not a special token, or one that cannot be found exactly.
        """
        raise NotImplementedError

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of ids without special tokens, except those for unknown and masked words."""
        raise NotImplementedError

    def id_of(self, token: str) -> int | None:
        """Returns the id of a token; None if it is not in the vocabulary."""
        raise NotImplementedError

    @property
    def pieces(self) -> list[str]:
        """The tokens as they are in the vocabulary, by id.

        Raises:
          UserError: there are too many.
        """
        raise NotImplementedError

    def vocabulary(self) -> Vocabulary:
        """Returns the tokens with what answers need to know of them."""
        raise NotImplementedError

    def frame(self, pair: bool) -> Frame:
        """Returns the special tokens around a text, or around two, that the tokenizer's files state.

        Raises:
          UserError: they do not state them.
        """
        raise NotImplementedError


def open_tokenizer(folder: pathlib.Path, fingerprint: str | None = None) -> LibraryTokenizer:
    """Returns the tokenizer of an artifact.

    Args:
      folder: the folder of its files.
      fingerprint: that of the exported tokenizer, with which a SentencePiece model is compared.

    Raises:
      UserError: the folder contains no tokenizer, or a damaged one, or one whose ids the libraries do not reproduce
        exactly.
    """
    if (folder / TOKENIZER_FILE).is_file():
        return JsonTokenizer(folder / TOKENIZER_FILE)
    if any((folder / name).is_file() for name in (*SENTENCEPIECE_FILES, "source.spm")):
        return SentencePieceTokenizer(folder, fingerprint)
    raise UserError(
        f"--model_dir={_artifact(folder)}: its tokenizer has neither a {TOKENIZER_FILE} nor a SentencePiece model; "
        f"{_ELSE}"
    )


def _artifact(folder: pathlib.Path) -> pathlib.Path:
    return folder.parent if folder.name == "tokenizer" else folder


class JsonTokenizer(LibraryTokenizer):
    """tokenizer.json, read by the library tokenizers; see open_tokenizer."""

    def __init__(self, path: pathlib.Path):
        record = schema.read(path)
        for token in record.get("added_tokens") or ():
            json_files.check(token, _ADDED, f"{path}: added_tokens")
        with untrusted.library_errors(path):
            self._tokenizer = tokenizers.Tokenizer.from_str(json.dumps(record))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._path, self._post_processor = path, record.get("post_processor") or {}
        model = record["model"]
        self._continuing = model["continuing_subword_prefix"] if model.get("type") == "WordPiece" else None
        self.pad_id = (record.get("padding") or {}).get("pad_id", 0)
        added = self._tokenizer.get_added_tokens_decoder()
        self.special = {i: token.content for i, token in added.items() if token.special}
        self._late = {token.content for token in added.values() if token.special and token.normalized}
        stated = settings.read(path.parent)
        texts = {role: settings.token_text(stated.get(name)) for role, name in ROLES.items()}
        ids = {role: self._tokenizer.token_to_id(text) for role, text in texts.items() if text is not None}
        self.role_ids = {role: i for role, i in ids.items() if i is not None}
        self._known = {name: i for i, name in self.special.items()}
        self._known |= {texts[role]: i for role, i in self.role_ids.items()}
        self._dropped = token_files.dropped_ids(self.special, self.role_ids)
        self._lock = threading.Lock()  # encode_special_tokens is a property of the tokenizer.
        self._some: dict[frozenset[str], tokenizers.Tokenizer] = {}

    def encode(self, texts: Sequence[str], offsets: bool = False, special: Sequence[str] = ()) -> list[Encoded]:
        token_files.check_special(special, self._known)
        tokenizer, as_text = self._tokenizer, True
        if special:
            written = {name for name in self.special.values() if any(name in text for text in texts)}
            if written | self._late <= {*special}:
                as_text = False
            else:  # The library recognises all special tokens or none.
                tokenizer = self._recognizing(frozenset(special))
        with self._lock, untrusted.library_errors(self._path):
            tokenizer.encode_special_tokens = as_text
            found = tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [Encoded(text.ids, text.offsets if offsets else ()) for text in found]

    def _recognizing(self, special: frozenset[str]) -> tokenizers.Tokenizer:
        """Returns a tokenizer for which those in `special` are not special, so that it always recognizes them."""
        if special not in self._some:
            record = json.loads(self._tokenizer.to_str())
            for token in record["added_tokens"]:
                token["special"] = token["special"] and token["content"] not in special
            if len(self._some) > 8:
                self._some.clear()
            self._some[special] = tokenizers.Tokenizer.from_str(json.dumps(record))
        return self._some[special]

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode([i for i in ids if i not in self._dropped], skip_special_tokens=False)

    def id_of(self, token: str) -> int | None:
        return self._tokenizer.token_to_id(token)

    @functools.cached_property
    def pieces(self) -> list[str]:  # type: ignore[override]
        size = 1 + max(self._tokenizer.get_vocab().values(), default=-1)
        if size > MAX_TOKENS:
            raise UserError(f"{self._path}: has the id {size - 1}, but at most {MAX_TOKENS} tokens are supported")
        return [self._tokenizer.id_to_token(i) or "" for i in range(size)]

    def vocabulary(self) -> Vocabulary:
        ids = [*self._tokenizer.get_vocab().values()]
        if len(set(ids)) < len(ids):
            raise UserError(f"{self._path}: two tokens have the same id; export the model again")
        pieces, mask_id = self.pieces, self.role_ids.get("mask")
        special = [*self.special, *(i for i in (mask_id,) if i is not None)]
        special += [i for i, piece in enumerate(pieces) if not piece]
        continues = None
        if self._continuing is not None:
            continues = np.array([piece.startswith(self._continuing) for piece in pieces])

        def texts() -> list[str]:
            found = self._tokenizer.decode_batch([[i] for i in range(len(pieces))], skip_special_tokens=True)
            for i in special:
                found[i] = ""
            return found

        return Vocabulary(pieces, continues, special, mask_id, texts, self.decode)

    def frame(self, pair: bool) -> Frame:
        parts: list[int | str] = []
        segments = []
        special = self._post_processor.get("special_tokens", {})
        for part in self._post_processor.get("pair" if pair else "single", ()):
            ((kind, value),) = part.items()
            if kind == "Sequence":
                parts.append(TEXT if value["id"] == "A" else PAIR)
                segments.append(value["type_id"])
            elif value["id"] not in special:
                raise UserError(f"{self._path}: post_processor: has no ids of {value['id']!r}; export the model again")
            else:
                ids = special[value["id"]]["ids"]
                parts += ids
                segments += [value["type_id"]] * len(ids)
        if not parts:
            raise UserError(f"{self._path}: has no template of special tokens; export the model again")
        return Frame(tuple(parts), tuple(segments))


class SentencePieceTokenizer(LibraryTokenizer):
    """A SentencePiece model of any of the kinds of tfzoo.text.sentencepiece, read by the library sentencepiece.

    Text that XLNet and ALBERT clean is cleaned with the Unicode tables of this Python, and in TensorFlow with those of
    its ICU: characters that Unicode added between the two versions may differ. See also open_tokenizer.
    """

    def __init__(self, folder: pathlib.Path, fingerprint: str | None = None):
        self._definition = made = sentencepiece_files.read(folder)
        self._folder = _artifact(folder)
        if fingerprint not in (None, made.fingerprint()):
            raise UserError(
                f"--model_dir={self._folder}: the tokenizer was exported with options that its files do not state; "
                f"{_ELSE}"
            )
        try:
            self._library = self._bare = sentencepiece.SentencePieceProcessor(model_proto=made.op_model)
            self._library.encode("a")
            if made.bare_model is not None:
                self._bare = sentencepiece.SentencePieceProcessor(model_proto=made.bare_model)
        except RuntimeError as error:
            raise UserError(f"{made.name}: the model cannot be used ({one_line(error, 200)}); get it again") from None
        self.role_ids, self.pad_id = made.role_ids, made.role_ids.get("pad", 0)
        self.special = {i: made.tokens[i][0] for i in made.special_ids}
        self._known = {name: i for i, name in self.special.items() if name}
        self._splits_text = made.prefix == "first" and bool(made.added)
        self.has_offsets = not (made.row.cleans or made.row.vocab or self._splits_text)
        self._splits = made.without_commas(self._library.encode)
        self._matchers: dict[frozenset[str], list[Matcher]] = {}
        self._matching(frozenset())

    def _matching(self, special: frozenset[str]) -> list[Matcher]:
        """Returns what finds the added tokens in texts, and the special tokens in `special`."""
        if special not in self._matchers:
            made = self._definition
            matched = {token.content: token for token in made.added if not token.special or token.content in special}
            matched |= {name: AddedToken(name, made.ids[name]) for name in special if name not in matched}
            if reason := unsupported([*matched.values()]):
                raise UserError(f"--model_dir={self._folder}: {reason}, which only TensorFlow reproduces; {_ELSE}")
            # Tokens that are matched in normalised texts are matched after the others.
            both = ([token for token in matched.values() if token.normalized is late] for late in (False, True))
            if len(self._matchers) > 100:
                self._matchers.clear()
            self._matchers[special] = [Matcher(tokens) for tokens in both if tokens]
        return self._matchers[special]

    def id_of(self, token: str) -> int | None:
        return self._definition.ids.get(token)

    def frame(self, pair: bool) -> Frame:
        raise UserError(
            f"{self._definition.name}: does not state which special tokens are around a text; export the model again"
        )

    def encode(self, texts: Sequence[str], offsets: bool = False, special: Sequence[str] = ()) -> list[Encoded]:
        token_files.check_special(special, self._known)
        matchers = self._matching(frozenset(special))
        rows = [_parts(text, matchers) for text in texts]
        pieces = [part for row in rows for part in row if isinstance(part, Piece)]
        found = iter(self._encode_aligned(pieces) if offsets and self.has_offsets else self._encode(pieces))
        result = []
        for row in rows:
            ids: list[int] = []
            places: list[tuple[int, int]] = []
            for part in row:
                encoded = next(found) if isinstance(part, Piece) else Encoded([part.id], [(part.start, part.end)])
                ids += encoded.ids
                places += encoded.offsets
            result.append(Encoded(ids, places if offsets and self.has_offsets else ()))
        return result

    @functools.cached_property
    def pieces(self) -> list[str]:  # type: ignore[override]
        return [text for text, _ in self._definition.tokens]

    def vocabulary(self) -> Vocabulary:
        return Vocabulary(self.pieces, None, [*self.special], self.role_ids.get("mask"), self._texts, self.decode)

    def decode(self, ids: Sequence[int]) -> str:
        made, space = self._definition, sentencepiece_files.SPACE
        surfaces = self._surfaces
        # A model with a larger vocabulary may write ids that have no token.
        text = b"".join(surfaces[i] for i in ids if i < len(surfaces)).decode(errors="surrogateescape")
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

    def _encode_aligned(self, pieces: Sequence["Piece"]) -> list[Encoded]:
        protos = self._library.encode([piece.text for piece in pieces], out_type="immutable_proto")
        return [
            Encoded(
                self._renumbered([token.id for token in proto.pieces]),
                [(piece.start + token.begin, piece.start + token.end) for token in proto.pieces],
            )
            for piece, proto in zip(pieces, protos, strict=True)
        ]

    def _encode(self, pieces: Sequence["Piece"]) -> list[Encoded]:
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


def _parts(text: str, matchers: Sequence[Matcher]) -> list[Piece | Match]:
    """Returns the tokens that are found in a text, and the pieces between them."""
    parts: list[Piece | Match] = [Piece(text, 0)]
    for matcher in matchers:
        parts = [found for part in parts for found in (matcher.split(part) if isinstance(part, Piece) else (part,))]
    return parts
