"""SentencePiece as the reference, a fast engine that must equal it, and what both leave out made lossless.

A text is encoded so that decoding gives it back, always:

- the model maps nothing (identity normaliser), keeps every space and falls back to bytes;
- SentencePiece writes a space as U+2581 inside pieces, so it would decode a *literal* U+2581 as a space. Here
  the text is cut at each U+2581, the parts are encoded alone, and the character becomes its three byte pieces;
- a control symbol's literal (`<|endoftext|>` in a document) is plain text in both engines.

The fast engine (gigatoken) is about thirty times SentencePiece's speed. It would parse control literals as the
symbols; it is therefore given a copy of the model in which their names contain NUL characters, and the rare text
with a NUL goes to SentencePiece. `Tokenizer.prove_fast` compares both on given texts; data_prep calls it on samples
of every shard.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path

import gigatoken
import numpy as np
import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from megatron_codemix.errors import UserError
from megatron_codemix.tokenizer.symbols import END_OF_TEXT, PAD, SPACE

MODEL_NAME = "tokenizer.model"
NORMAL, UNKNOWN_TYPE, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6
"""SentencePiece's piece types."""


class EngineMismatch(RuntimeError):
    """The fast engine and SentencePiece gave different ids for one text: a defect, never the user's mistake."""


def _parse(model: bytes, where: str):
    """The model's protocol buffer; UserError unless it is a lossless byte-fallback BPE model with our symbols."""
    proto = sentencepiece_model_pb2.ModelProto()  # pyright: ignore[reportAttributeAccessIssue] - made when protobuf is imported
    try:
        proto.ParseFromString(model)
    except Exception:
        raise UserError(f"{where}: is not a SentencePiece model; make one with 'codemix prep tokenizer PREP.yaml'") from None
    controls = {piece.piece for piece in proto.pieces if piece.type == CONTROL}
    missing = [symbol for symbol in (END_OF_TEXT, PAD) if symbol not in controls]
    if not proto.pieces or missing:
        named = f"has no control symbol {missing[0]}" if proto.pieces else "holds no pieces"
        raise UserError(f"{where}: this SentencePiece model {named}; make one with 'codemix prep tokenizer PREP.yaml'")
    normalizer = proto.normalizer_spec
    lossy = normalizer.precompiled_charsmap or normalizer.add_dummy_prefix or normalizer.remove_extra_whitespaces
    if lossy or not proto.trainer_spec.byte_fallback or proto.trainer_spec.model_type != proto.trainer_spec.BPE:
        raise UserError(
            f"{where}: this SentencePiece model is not lossless BPE (identity normaliser, byte fallback, no dummy prefix, "
            "no whitespace removal); make one with 'codemix prep tokenizer PREP.yaml'"
        )
    return proto


class Tokenizer:
    """A lossless SentencePiece BPE tokenizer; `Tokenizer.load` is the way in.

    Pickles as its model. Not for concurrent use by threads.
    """

    def __init__(self, model: bytes, where: str = "tokenizer") -> None:
        """model: contents of a `tokenizer.model`; where: names it in errors. Raises UserError for an unfit model."""
        self.model = model
        self.fingerprint: str = hashlib.sha256(model).hexdigest()
        """Hex sha256 of the model's bytes."""
        self.proto = _parse(model, where)
        self._reference = sentencepiece.SentencePieceProcessor()
        self._reference.LoadFromSerializedProto(model)
        pieces = self.proto.pieces
        self.vocab_size: int = len(pieces)
        self.special_ids: dict[str, int] = {piece.piece: i for i, piece in enumerate(pieces) if piece.type in (CONTROL, UNKNOWN_TYPE)}
        """Name → id of every reserved symbol."""
        self.end_of_text_id: int = self.special_ids[END_OF_TEXT]
        self.pad_id: int = self.special_ids[PAD]
        ids = {piece.piece: i for i, piece in enumerate(pieces)}
        self._space_ids = np.array([ids[f"<0x{byte:02X}>"] for byte in SPACE.encode()], dtype=np.uint32)

    def __reduce__(self):
        return Tokenizer, (self.model,)

    @classmethod
    def load(cls, path: Path) -> Tokenizer:
        """Read PATH, or PATH/tokenizer.model where it is a folder. Raises UserError."""
        path = Path(path)
        file = path / MODEL_NAME if path.is_dir() else path
        try:
            model = file.read_bytes()
        except OSError:
            raise UserError(f"{file}: no tokenizer here; make it with 'codemix prep tokenizer PREP.yaml'") from None
        return cls(model, str(file))

    @cached_property
    def _fast(self):
        renamed = type(self.proto)()
        renamed.CopyFrom(self.proto)
        for i, piece in enumerate(renamed.pieces):
            if piece.type in (CONTROL, UNKNOWN_TYPE):
                piece.piece = f"\0{i}\0"
        spec = renamed.trainer_spec
        spec.unk_piece, spec.bos_piece, spec.eos_piece, spec.pad_piece = (f"\0{i}\0" for i in range(4))
        return gigatoken.Tokenizer.from_sentencepiece(renamed.SerializeToString())

    def _encode_reference(self, text: str) -> np.ndarray:
        return np.array(self._reference.encode(text.encode("utf-8")), dtype=np.uint32)

    def _encode_fast(self, text: str) -> np.ndarray:
        return self._encode_reference(text) if "\0" in text else self._fast.encode(text)

    def _encode(self, text: str, engine: Callable[[str], np.ndarray]) -> np.ndarray:
        if SPACE not in text:
            return engine(text)
        parts: list[np.ndarray] = []
        for number, part in enumerate(text.split(SPACE)):
            if number:
                parts.append(self._space_ids)
            if part:
                parts.append(engine(part))
        return np.concatenate(parts)

    def encode(self, text: str) -> np.ndarray:
        """Ids of `text` by SentencePiece, 1-d uint32, without end of text; control literals are plain text.

        Raises UnicodeEncodeError for a lone surrogate (which is no text).
        """
        return self._encode(text, self._encode_reference)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The same ids as `encode`, by the fast engine: one 1-d uint32 array a text."""
        return [self._encode(text, self._encode_fast) for text in texts]

    def prove_fast(self, texts: Iterable[str]) -> None:
        """Raises EngineMismatch if the two engines differ on one of the texts."""
        for text in texts:
            reference, fast = self.encode(text), self._encode(text, self._encode_fast)
            if not np.array_equal(reference, fast):
                length = min(len(reference), len(fast))
                place = int(np.argmin(np.append(reference[:length] == fast[:length], False)))
                context = self.decode(reference[max(0, place - 8) : place + 8])
                raise EngineMismatch(
                    f"gigatoken {reference.size} != {fast.size} SentencePiece ids, first difference at token {place}, near {context!r}"
                )

    @cached_property
    def _token_bytes(self) -> list[bytes]:
        return [self._bytes_of(piece) for piece in self.proto.pieces]

    @staticmethod
    def _bytes_of(piece) -> bytes:
        if piece.type in (CONTROL, UNKNOWN_TYPE):
            return b""
        if piece.type == BYTE:
            return bytes([int(piece.piece[3:5], 16)])
        return piece.piece.replace(SPACE, " ").encode()

    def decode(self, ids: Iterable[int] | np.ndarray) -> str:
        """The text of `ids`; control symbols give nothing, and bytes that are no UTF-8 give U+FFFD."""
        table = self._token_bytes
        return b"".join([table[i] for i in np.asarray(ids).tolist()]).decode("utf-8", errors="replace")

    @cached_property
    def token_num_bytes(self) -> np.ndarray:
        """UTF-8 bytes each id stands for, int64 (vocab_size,); 0 for control symbols. Sums to a document's bytes."""
        return np.array([len(content) for content in self._token_bytes], dtype=np.int64)
