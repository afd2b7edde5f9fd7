"""The tokenizer that the rest of the project knows: whatever its kind, lossless, and fast with the reference's ids.

A text is encoded so that decoding gives it back, always, and a control symbol's literal (`<|endoftext|>` in a document) is
plain text. `encode` is the reference: SentencePiece for a tokenizer.model, Hugging Face's `tokenizers` for a tokenizer.json.
`encode_batch` is gigatoken, wherever it has such a kind. It would parse control literals as the symbols; it is therefore given
a copy in which their names contain NUL characters, and the rare text with a NUL goes to the reference. `prove_fast` compares
both on given texts; data_prep calls it on samples of every shard.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from megatron_codemix.errors import UserError
from megatron_codemix.tokenizer.fast import FastEngine
from megatron_codemix.tokenizer.huggingface_kind import HuggingFaceKind
from megatron_codemix.tokenizer.sentencepiece_kind import SentencePieceKind
from megatron_codemix.tokenizer.symbols import SPACE
from megatron_codemix.tokenizer.vocabulary import JSON_NAME, MODEL_NAME, REMEDY, EngineMismatch, is_panic


def file_name_of(model: bytes) -> str:
    """What a file with the contents `model` is called: tokenizer.json or tokenizer.model."""
    return JSON_NAME if model[:1] == b"{" else MODEL_NAME


def find_model(path: Path) -> Path:
    """PATH itself, or where it is a folder its tokenizer.model, else its tokenizer.json (there or not)."""
    path = Path(path)
    if not path.is_dir():
        return path
    found = [path / name for name in (MODEL_NAME, JSON_NAME) if (path / name).is_file()]
    return found[0] if found else path / MODEL_NAME


class Tokenizer:
    """A lossless tokenizer; `Tokenizer.load` is the way in.

    Pickles as its model. Not for concurrent use by threads.
    """

    def __init__(self, model: bytes, where: str = "tokenizer") -> None:
        """model: contents of a tokenizer.model or a canonical tokenizer.json; where: names it in errors.

        Raises UserError for an unfit model.
        """
        self.model = model
        self.fingerprint: str = hashlib.sha256(model).hexdigest()
        """Hex sha256 of the model's bytes."""
        self.reference: SentencePieceKind | HuggingFaceKind = _kind(model)(model, where)
        vocabulary = self.reference.vocabulary
        self.token_bytes: list[bytes] = vocabulary.token_bytes
        """UTF-8 bytes (or a part of a character's) that each id stands for; none for control symbols."""
        self.vocab_size: int = len(vocabulary.token_bytes)
        self.special_ids: dict[str, int] = vocabulary.special_ids
        """Name → id of every control symbol. Every reserved symbol is among them, by itself or by what stands for it."""
        self.end_of_text_id: int = vocabulary.end_of_text_id
        self.pad_id: int = vocabulary.pad_id
        self._fast_form: str | None = None
        self._form_is_made = False

    def __reduce__(self):
        return _restored, (self.model, self._form())  # which costs more to make than to pass on

    @classmethod
    def load(cls, path: Path) -> Tokenizer:
        """Read a tokenizer.model or tokenizer.json, or the folder of one. Raises UserError."""
        file = find_model(path)
        try:
            model = file.read_bytes()
        except OSError:
            raise UserError(f"{file}: no tokenizer here; {REMEDY}") from None
        return cls(model, str(file))

    @property
    def file_name(self) -> str:
        """What a file of `model` is called."""
        return file_name_of(self.model)

    def _form(self) -> str | None:
        if not self._form_is_made:
            self._fast_form, self._form_is_made = self.reference.fast_form(), True
        return self._fast_form

    @cached_property
    def _fast(self) -> FastEngine | None:
        form = self._form()
        try:
            return None if form is None else FastEngine(form)
        except BaseException as error:  # gigatoken's own, of several classes: a pre-tokenizer it does not know
            if not isinstance(error, Exception) and not is_panic(error):
                raise
            return None

    @property
    def library(self) -> str:
        """What `encode_batch` runs on: 'gigatoken', or the reference where gigatoken has no such kind."""
        return self.reference.library if self._fast is None else "gigatoken"

    def encode(self, text: str) -> np.ndarray:
        """Ids of `text` by the reference, 1-d uint32, without end of text; control literals are plain text.

        Raises UnicodeEncodeError for a lone surrogate (which is no text).
        """
        return self.reference.encode(text)

    def _encode_fast(self, text: str) -> np.ndarray:
        if self._fast is None or "\0" in text:
            return self.reference.encode(text)
        if self.reference.space_ids is None or SPACE not in text:
            return self._fast.encode(text)
        parts: list[np.ndarray] = []
        for number, part in enumerate(text.split(SPACE)):
            if number:
                parts.append(self.reference.space_ids)
            if part:
                parts.append(self._fast.encode(part))
        return np.concatenate(parts)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The same ids as `encode`, by the fast engine: one 1-d uint32 array a text."""
        if self._fast is None:
            return [self.reference.encode(text) for text in texts]
        return self._fast.batch(self._encode_fast, texts)

    def prove_fast(self, texts: Iterable[str]) -> None:
        """Raises EngineMismatch if the two engines differ on one of the texts."""
        if self._fast is None:
            return
        for text in texts:
            reference, fast = self.encode(text), self._encode_fast(text)
            if not np.array_equal(reference, fast):
                length = min(len(reference), len(fast))
                place = int(np.argmin(np.append(reference[:length] == fast[:length], False)))
                context = self.decode(reference[max(0, place - 8) : place + 8])
                raise EngineMismatch(
                    f"gigatoken {fast.size} != {reference.size} {self.reference.library} ids, first difference at token {place}, "
                    f"near {context!r}"
                )

    def decode(self, ids: Iterable[int] | np.ndarray) -> str:
        """The text of `ids`; control symbols give nothing, and bytes that are no UTF-8 give U+FFFD."""
        table = self.token_bytes
        return b"".join([table[i] for i in np.asarray(ids).tolist()]).decode("utf-8", errors="replace")

    @cached_property
    def token_num_bytes(self) -> np.ndarray:
        """UTF-8 bytes each id stands for, int64 (vocab_size,); 0 for control symbols. Sums to a document's bytes."""
        return np.array([len(content) for content in self.token_bytes], dtype=np.int64)


def _kind(model: bytes) -> type[SentencePieceKind] | type[HuggingFaceKind]:
    return HuggingFaceKind if file_name_of(model) == JSON_NAME else SentencePieceKind


def _restored(model: bytes, fast_form: str | None) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer._fast_form, tokenizer._form_is_made = fast_form, True
    return tokenizer
