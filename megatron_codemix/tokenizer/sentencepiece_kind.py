"""A lossless SentencePiece model, BPE or unigram, as SentencePiece runs it.

What SentencePiece leaves out is added here, so that decoding gives back every text:

- it writes a space as U+2581 inside pieces, and would decode a *literal* U+2581 as a space: texts are cut there, the parts
  encoded alone, and the character becomes its three byte pieces;
- its unigram search adds the pieces' log-probabilities up in single precision over a whole text, so that ties (and all of a
  long document) depend on rounding. Here scores are multiples of 1/1024 and texts are cut at line ends into parts of at
  most 512 characters, so that all sums are exact, in any engine (Kudo 2018, arXiv:1804.10959, for the model itself).
"""

from __future__ import annotations

import math
import re

import numpy as np
import orjson
import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from megatron_codemix.errors import UserError
from megatron_codemix.tokenizer.symbols import END_OF_TEXT, PAD, RESERVED, SPACE
from megatron_codemix.tokenizer.vocabulary import REMEDY, Vocabulary, stand_in, with_reserved_first

NORMAL, UNKNOWN_TYPE, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""SentencePiece's piece types."""
UNIGRAM, BPE = 1, 2
"""SentencePiece's model types."""
SCORE_STEP = 1024
"""Unigram scores are multiples of 1 / this."""
LEAST_SCORE = -22.0
"""Least unigram score: 512 unknown characters, at 10 below it each, still add up exactly in single precision."""
PART = r"[\s\S]{1,512}(?<=\n)(?!\n)|[\s\S]{1,512}"
"""What a unigram model is given at a time: as many whole lines as fit into 512 characters, or 512 characters."""


def parse_proto(model: bytes, where: str):
    """The model's protocol buffer. Raises UserError where it is none."""
    proto = sentencepiece_model_pb2.ModelProto()  # pyright: ignore[reportAttributeAccessIssue] - made when protobuf is imported
    try:
        proto.ParseFromString(model)
    except Exception:
        raise UserError(f"{where}: is not a SentencePiece model; {REMEDY}") from None
    if not proto.pieces:
        raise UserError(f"{where}: this SentencePiece model holds no pieces; {REMEDY}")
    # protobuf hands out bytes where a string is no UTF-8
    if any(isinstance(piece.piece, bytes) or not piece.piece or not math.isfinite(piece.score) for piece in proto.pieces):
        raise UserError(f"{where}: this SentencePiece model is damaged (a piece is no text, or its score no number); {REMEDY}")
    return proto


def _check(proto, where: str) -> None:
    controls = {piece.piece for piece in proto.pieces if piece.type == CONTROL}
    for symbol, named in ((END_OF_TEXT, proto.trainer_spec.eos_piece), (PAD, proto.trainer_spec.pad_piece)):
        if symbol not in controls and named not in controls:
            raise UserError(f"{where}: this SentencePiece model has no control symbol {symbol}; {REMEDY}")
    normalizer, trainer = proto.normalizer_spec, proto.trainer_spec
    lossy = normalizer.precompiled_charsmap or normalizer.add_dummy_prefix or normalizer.remove_extra_whitespaces
    spaces = not normalizer.escape_whitespaces or trainer.treat_whitespace_as_suffix
    if lossy or spaces or not trainer.byte_fallback or trainer.model_type not in (UNIGRAM, BPE):
        raise UserError(
            f"{where}: this SentencePiece model is not lossless BPE or unigram (identity normaliser, byte fallback, no dummy prefix, "
            f"no whitespace removal); {REMEDY}"
        )
    if sorted(piece.piece for piece in proto.pieces if piece.type == BYTE) != sorted(f"<0x{byte:02X}>" for byte in range(256)):
        raise UserError(f"{where}: this SentencePiece model has not the 256 byte pieces; {REMEDY}")
    if not any(piece.type == UNKNOWN_TYPE for piece in proto.pieces):
        raise UserError(f"{where}: this SentencePiece model has no symbol for the unknown; {REMEDY}")
    if trainer.model_type == UNIGRAM and not all(_is_exact(piece) for piece in proto.pieces):
        raise UserError(f"{where}: this unigram model was not made for exact sums; {REMEDY}")


def _is_exact(piece) -> bool:
    return piece.type != USER_DEFINED and piece.score >= LEAST_SCORE and float(piece.score * SCORE_STEP).is_integer()


def literal_cut(names: list[str]) -> str:
    """A regular expression of first characters behind which a text must be cut, lest it spell a byte piece or one of `names`."""
    rest: dict[str, list[str]] = {"<": ["0x[0-9A-F]{2}>"]}
    for name in names:
        rest.setdefault(name[0], []).append(re.escape(name[1:]))
    return "|".join(f"{re.escape(first)}(?={'|'.join(tails)})" for first, tails in rest.items())


class SentencePieceKind:
    """See `vocabulary.Reference`."""

    library = "sentencepiece"

    def __init__(self, model: bytes, where: str) -> None:
        """model: contents of a tokenizer.model; where: names it in errors. Raises UserError for an unfit model."""
        self.model = model
        self.proto = parse_proto(model, where)
        _check(self.proto, where)
        self.is_unigram: bool = self.proto.trainer_spec.model_type == UNIGRAM
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(model)
        except RuntimeError as error:
            raise UserError(f"{where}: SentencePiece cannot read this model ({str(error).splitlines()[0]}); {REMEDY}") from None
        self.pieces: list[tuple[str, int]] = [(piece.piece, piece.type) for piece in self.proto.pieces]
        """(piece, type) of every id."""
        self.unknown_name: str = next(name for name, kind in self.pieces if kind == UNKNOWN_TYPE)
        self.vocabulary = self._vocabulary()
        ids = {name: number for number, (name, kind) in enumerate(self.pieces) if kind == BYTE}
        self.space_ids = np.array([ids[f"<0x{byte:02X}>"] for byte in SPACE.encode()], dtype=np.uint32)
        self._parts = re.compile(PART)
        self._literals = re.compile(literal_cut(self.vocabulary.control_names))

    def _vocabulary(self) -> Vocabulary:
        controls = {name: number for number, (name, kind) in enumerate(self.pieces) if kind in (CONTROL, UNKNOWN_TYPE)}
        aliases = {symbol: controls[name] for symbol in RESERVED if (name := stand_in(symbol, controls))}
        trainer = self.proto.trainer_spec
        for symbol, named in ((END_OF_TEXT, trainer.eos_piece), (PAD, trainer.pad_piece)):
            if symbol not in controls:
                aliases[symbol] = controls[named]
        return Vocabulary(
            token_bytes=[_bytes_of(name, kind) for name, kind in self.pieces],
            byte_ids=[number for number, (_, kind) in enumerate(self.pieces) if kind == BYTE],
            special_ids=with_reserved_first(RESERVED, aliases, controls),
            control_names=list(controls),
            end_of_text_id=aliases[END_OF_TEXT],
            pad_id=aliases[PAD],
        )

    def encode(self, text: str) -> np.ndarray:
        """See `vocabulary.Reference`."""
        if not self.is_unigram:
            return self._around_spaces(text)
        parts: list[np.ndarray] = []
        for line in self._parts.findall(text):
            start = 0
            for found in self._literals.finditer(line):
                parts.append(self._around_spaces(line[start : found.end()]))
                start = found.end()
            parts.append(self._around_spaces(line[start:] if start else line))
        return np.concatenate(parts) if parts else np.empty(0, np.uint32)

    def _around_spaces(self, text: str) -> np.ndarray:
        if SPACE not in text:
            return np.array(self._processor.encode(text.encode("utf-8")), dtype=np.uint32)
        parts: list[np.ndarray] = []
        for number, part in enumerate(text.split(SPACE)):
            if number:
                parts.append(self.space_ids)
            if part:
                parts.append(np.array(self._processor.encode(part.encode("utf-8")), dtype=np.uint32))
        return np.concatenate(parts)

    def fast_form(self) -> str | None:
        """See `vocabulary.Reference`; unigram has none."""
        if self.is_unigram:
            return None
        names = [f"\0{number}\0" if kind in (CONTROL, UNKNOWN_TYPE) else name for number, (name, kind) in enumerate(self.pieces)]
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        matched_whole = [
            {"id": number, "content": names[number].replace(SPACE, " "), **flags, "special": kind == CONTROL}
            for number, (_, kind) in enumerate(self.pieces)
            if kind in (CONTROL, USER_DEFINED)
        ]
        model = {
            "type": "BPE",
            "unk_token": next(names[number] for number, (_, kind) in enumerate(self.pieces) if kind == UNKNOWN_TYPE),
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": {name: number for number, name in enumerate(names)},
            "merges": self.merges(),
        }
        spaces = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
        return orjson.dumps({"version": "1.0", "added_tokens": matched_whole, "normalizer": spaces, "model": model}).decode()

    def merges(self) -> list[tuple[str, str]]:
        """BPE: every pair of ordinary pieces that is an ordinary piece, in the order in which SentencePiece would join them."""
        scores = {piece.piece: piece.score for piece in self.proto.pieces if piece.type == NORMAL}
        best_first = sorted(scores, key=scores.__getitem__, reverse=True)
        found = [
            (left, right)
            for name in best_first
            for cut in range(len(name) - 1, 0, -1)
            if (right := name[cut:]) in scores and (left := name[:cut]) in scores
        ]
        if len(set(scores.values())) < len(scores):  # of pieces of one score the longer left part comes first
            found.sort(key=lambda merge: (-scores[merge[0] + merge[1]], -len(merge[0])))
        return found


def _bytes_of(name: str, kind: int) -> bytes:
    if kind in (CONTROL, UNKNOWN_TYPE):
        return b""
    if kind == BYTE:
        return bytes([int(name[3:5], 16)])
    return name.replace(SPACE, " ").encode()
