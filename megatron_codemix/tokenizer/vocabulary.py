"""What every kind of tokenizer says about its ids, and how a reserved symbol is found under another name."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from megatron_codemix.errors import UserError
from megatron_codemix.tokenizer.symbols import BEGIN_OF_TEXT, END_OF_TEXT

MODEL_NAME = "tokenizer.model"
"""File of a SentencePiece model."""
JSON_NAME = "tokenizer.json"
"""File of a Hugging Face tokenizer."""
REMEDY = "make one with 'codemix prep tokenizer PREP.yaml' (tokenizer.from_file takes over one that exists)"


def is_panic(error: BaseException) -> bool:
    """Whether it is a panic of a library's Rust code, which derives from BaseException alone and is exported by no module."""
    return type(error).__name__ == "PanicException"


class EngineMismatch(RuntimeError):
    """The fast engine and the reference gave different ids for one text: a defect, never the user's mistake."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The ids of a tokenizer."""

    token_bytes: list[bytes]
    """UTF-8 bytes (or a part of a character's) each id stands for; none for control symbols."""
    byte_ids: list[int]
    """Ids that stand for a byte for want of a piece: byte fallback; in a byte-level vocabulary, what is no whole character."""
    special_ids: dict[str, int]
    """Name → id of every control symbol, and of every reserved symbol that another one stands for."""
    control_names: list[str]
    """The names that the model itself knows, hence what a text could spell."""
    end_of_text_id: int
    pad_id: int


class Reference(Protocol):
    """A tokenizer as its own library runs it."""

    library: str
    """Whose ids count."""
    vocabulary: Vocabulary
    space_ids: np.ndarray | None
    """uint32: what the fast engine's caller puts in place of a literal U+2581, of which the engine makes a space; None: nothing."""

    def encode(self, text: str) -> np.ndarray:
        """Ids, 1-d uint32; control symbols' literals are plain text. Raises UnicodeEncodeError for a lone surrogate."""
        ...

    def fast_form(self) -> str | None:
        """tokenizer.json for the fast engine, in which no text without NUL spells a control symbol; None: it has no such kind."""
        ...


LEAST_FILLED = 0.9
"""Share of a model's vocabulary that its tokenizer must fill; publishers round up, but not by more than this leaves."""
FILLER = "<unused_entry_{number}>"
"""Name of an id that a model's vocabulary has and its tokenizer has not."""


def room_for(symbols: Sequence[str], used: int, entries: int | None, where: str) -> tuple[list[str], list[str]]:
    """(those of the missing reserved `symbols` for which a vocabulary of `entries` has room, names of fillers for the rest of it).

    used: ids that are taken. None: room for all, no fillers. Raises UserError where the tokenizer cannot be that model's.
    """
    if entries is None:
        return list(symbols), []
    if used > entries:
        problem = f"has {used:,} ids, more than the {entries:,} entries of the model's vocabulary"
    elif used < LEAST_FILLED * entries and used + len(symbols) != entries:  # else it has room for these symbols, and no other
        problem = f"has {used:,} ids, and the model's vocabulary {entries:,} entries"
    else:
        kept = list(symbols)[: entries - used]
        return kept, [FILLER.format(number=number) for number in range(used + len(kept), entries)]
    raise UserError(f"{where}: {problem}: it does not fit; give the tokenizer that belongs to the model")


_OTHER_NAMES: dict[str, tuple[str, ...]] = {
    END_OF_TEXT: ("<|end_of_text|>", "</s>", "<eos>"),
    BEGIN_OF_TEXT: ("<|begin_of_text|>", "<s>", "<bos>"),
}


def stand_in(symbol: str, controls: Collection[str]) -> str | None:
    """The control symbol of another tokenizer that means `symbol`: itself, `<|x|>` for `<x>`, or what common ones call it."""
    candidates = [symbol, *_OTHER_NAMES.get(symbol, ())]
    if not symbol.startswith("<|"):
        candidates.append(f"<|{symbol[1:-1]}|>")
    return next((name for name in candidates if name in controls), None)


def with_reserved_first(reserved: Sequence[str], aliases: dict[str, int], controls: dict[str, int]) -> dict[str, int]:
    """Name → id: reserved symbols in their order, then the model's own others."""
    known = {**controls, **aliases}
    return {**{name: known[name] for name in reserved if name in known}, **known}
