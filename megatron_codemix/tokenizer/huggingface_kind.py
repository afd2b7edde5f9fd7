"""A lossless tokenizer.json as the `tokenizers` library runs it: byte-level BPE, or BPE over characters with byte fallback.

Its file is in a canonical form that `importing` writes: no normaliser, nothing added around a text, spaces written as spaces.
What stands for a reserved symbol under another name is in its post-processor, which adds nothing.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from tokenizers import Tokenizer as Backend

from megatron_codemix.errors import UserError
from megatron_codemix.tokenizer.symbols import END_OF_TEXT, PAD, RESERVED, SPACE
from megatron_codemix.tokenizer.vocabulary import REMEDY, Vocabulary, is_panic, with_reserved_first

BYTE_NAMES = [f"<0x{byte:02X}>" for byte in range(256)]


def byte_alphabet() -> dict[str, int]:
    """Character → byte, as GPT-2 writes bytes in its vocabulary: printable ones as they are, the others from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {**{chr(byte): byte for byte in printable}, **{chr(256 + number): byte for number, byte in enumerate(others)}}


_ALPHABET = byte_alphabet()


def parse_json(content: bytes, where: str) -> dict[str, Any]:
    """The parts of a tokenizer.json. Raises UserError where it is none."""
    try:
        parsed = json.loads(content)
        assert isinstance(parsed["model"]["type"], str) and isinstance(parsed["added_tokens"], list)
    except (ValueError, KeyError, TypeError, AssertionError, RecursionError):  # the last: nested without end
        raise UserError(f"{where}: is not a tokenizer.json of Hugging Face; give one, or a SentencePiece model") from None
    return parsed


def is_byte_level(parsed: dict[str, Any]) -> bool:
    """Whether the vocabulary is of bytes in GPT-2's alphabet."""
    return parsed["model"].get("byte_fallback") is not True


def aliases_of(parsed: dict[str, Any]) -> dict[str, int]:
    """Reserved symbol → id, as the post-processor of the canonical form records it."""
    processor = parsed.get("post_processor") or {}
    return {name: entry["ids"][0] for name, entry in (processor.get("special_tokens") or {}).items()}


def _check(parsed: dict[str, Any], where: str) -> None:
    aliases = aliases_of(parsed)
    plain = parsed["model"]["type"] == "BPE" and parsed.get("normalizer") is None
    if not plain or not {END_OF_TEXT, PAD} <= aliases.keys():
        raise UserError(f"{where}: this tokenizer.json was not taken over yet; give it as tokenizer.from_file to 'codemix prep tokenizer'")


class HuggingFaceKind:
    """See `vocabulary.Reference`."""

    library = "tokenizers"

    def __init__(self, model: bytes, where: str) -> None:
        """model: contents of a tokenizer.json in the canonical form; where: names it in errors. Raises UserError for others."""
        self.model, self._where = model, where
        self._parsed = parse_json(model, where)
        _check(self._parsed, where)
        try:
            self._backend = Backend.from_str(model.decode("utf-8"))
        except BaseException as error:  # whatever the library raises
            if not isinstance(error, Exception) and not is_panic(error):
                raise
            raise UserError(f"{where}: the tokenizers library cannot read it ({one_line(error)}); {REMEDY}") from None
        self._backend.encode_special_tokens = True  # so that a literal is a text like any other
        self.vocabulary = self._vocabulary()
        ids = self._parsed["model"]["vocab"]
        self.space_ids = None
        if not is_byte_level(self._parsed):
            self.space_ids = np.array([ids[BYTE_NAMES[byte]] for byte in SPACE.encode()], dtype=np.uint32)

    def _vocabulary(self) -> Vocabulary:
        added = self._parsed["added_tokens"]
        ids: dict[str, int] = self._parsed["model"]["vocab"]
        table = [b""] * (1 + max(*ids.values(), *(token["id"] for token in added)))
        spell = _byte_level_bytes if is_byte_level(self._parsed) else _fallback_bytes
        for name, number in ids.items():
            table[number] = spell(name)
        for token in added:
            table[token["id"]] = b"" if token["special"] else token["content"].encode()
        controls = {token["content"]: token["id"] for token in added if token["special"]}
        if is_byte_level(self._parsed):
            byte_ids = [number for number, content in enumerate(table) if not _is_text(content)]
        else:
            byte_ids = [ids[name] for name in BYTE_NAMES]
        aliases = aliases_of(self._parsed)
        return Vocabulary(
            token_bytes=table,
            byte_ids=byte_ids,
            special_ids=with_reserved_first(RESERVED, aliases, controls),
            control_names=list(controls),
            end_of_text_id=aliases[END_OF_TEXT],
            pad_id=aliases[PAD],
        )

    def encode(self, text: str) -> np.ndarray:
        """See `vocabulary.Reference`."""
        try:
            return np.array(self._backend.encode(text, add_special_tokens=False).ids, dtype=np.uint32)
        except TypeError:  # what the library makes of a lone surrogate
            text.encode("utf-8")
            raise
        except BaseException as error:
            if not is_panic(error):
                raise
            raise UserError(
                f"{self._where}: its pre-tokenizer's pattern cannot be run on the text {text[:40]!r} ({one_line(error)}); "
                "give another tokenizer, or train one"
            ) from None

    def fast_form(self) -> str | None:
        """See `vocabulary.Reference`."""
        form = json.loads(self.model)
        model, vocab = form["model"], form["model"]["vocab"]
        if self.space_ids is not None:
            if form["pre_tokenizer"] is not None:
                return None
            model["vocab"] = vocab = {_escaped(name): number for name, number in vocab.items()}
            model["merges"] = [[_escaped(left), _escaped(right)] for left, right in model["merges"]]
            form["normalizer"] = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
        for token in form["added_tokens"]:
            if token["special"]:
                name = token["content"]
                token["content"] = f"\0{token['id']}\0"
                if name in vocab:
                    vocab[token["content"]] = vocab.pop(name)
                if model.get("unk_token") == name:
                    model["unk_token"] = token["content"]
            elif self.space_ids is not None:
                token["content"] = _escaped(token["content"])
        form["post_processor"] = None
        return json.dumps(form, ensure_ascii=False)


def one_line(error: BaseException) -> str:
    """What a library says, as part of a line."""
    return " ".join(str(error).split())[:200]


def _escaped(name: str) -> str:
    return name.replace(" ", SPACE)


def _is_text(content: bytes) -> bool:
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _byte_level_bytes(name: str) -> bytes:
    try:
        return bytes([_ALPHABET[character] for character in name])
    except KeyError:  # an added token, which is written as it is
        return name.encode()


def _fallback_bytes(name: str) -> bytes:
    return bytes([int(name[3:5], 16)]) if name in _FALLBACKS else name.encode()


_FALLBACKS = frozenset(BYTE_NAMES)
