"""Fill-in-the-middle on the fragments of documents that lie in a window (Bavarian et al. 2022, arXiv 2207.14255, section 3).

A fragment is what of a document, or of a file behind `<file_sep>`, lies in the window. Its text is cut at two places that are drawn
uniformly from those between (and around) its characters, and the three parts are encoded again, each alone, as a user's will be:

    PSM   <fim_prefix> prefix <fim_suffix> suffix <fim_middle> middle
    SPM   <fim_prefix> <fim_suffix> suffix <fim_middle> prefix middle      the paper's variant, which shares PSM's sentinels

The window keeps its length: what is too long is cut at its end, and what is missing there is filled up with `<fim_pad>`. Where a
fragment begins or ends inside a character, those tokens stay at the fragment's end as they are. Other control symbols in a fragment
count as one character.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from megatron_codemix.batches.block import Block, number_documents
from megatron_codemix.batches.objectives.draws import uniform
from megatron_codemix.batches.objectives.part import Context
from megatron_codemix.config import FimConfig
from megatron_codemix.config.objective import FIM_SYMBOLS
from megatron_codemix.config.section import exact_share

_SEPARATORS = ("<repo_name>", "<file_name>", "<file_sep>")
_DRAWS = 4
"""Of each fragment, at the place of its first token: is it rearranged, in which form, and the two cuts."""
_LONGEST_CHARACTER = 4
_FIRST_SURROGATE, _NUM_SURROGATES = 0xD800, 0x800
"""UTF-8 has no surrogates, so that they can stand for control symbols in a text."""
_CONTROL = re.compile("([\ud800-\udfff])")
_SURROGATE_BYTES = re.compile(b"\xed[\xa0-\xbf][\x80-\xbf]")
_PREFIX, _MIDDLE, _SUFFIX = range(3)


@dataclass
class _Fragment:
    """One that is rearranged."""

    row: int
    start: int
    end: int
    """Tokens [start, end) of the window."""
    is_spm: bool
    head: np.ndarray
    tail: np.ndarray
    """Tokens at the ends that are parts of characters."""
    texts: tuple[str, str, str]
    """Prefix, middle and suffix."""
    has_controls: bool
    """Whether surrogates stand in them."""


class FillInTheMiddle:
    """Rearranges fragments; a window is changed behind its first rearranged fragment only."""

    def __init__(self, settings: FimConfig, context: Context) -> None:
        self._context, tokenizer = context, context.tokenizer
        self._rates = context.rates(settings.rate)
        self._spm = float(exact_share(settings.spm))
        prefix, middle, suffix, self._pad = (tokenizer.special_ids[name] for name in FIM_SYMBOLS)
        self._sentinels = (prefix, middle, suffix)
        self._bytes = tokenizer.token_bytes
        self._num_bytes = tokenizer.token_num_bytes
        self._separates = np.zeros(len(self._bytes), bool)
        self._separates[
            [tokenizer.end_of_text_id, *(tokenizer.special_ids[name] for name in _SEPARATORS if name in tokenizer.special_ids)]
        ] = True
        controls = np.flatnonzero(context.is_control).tolist()[:_NUM_SURROGATES]
        self._controls = controls
        self._placeholders = {
            number: chr(_FIRST_SURROGATE + place).encode("utf-8", "surrogatepass") for place, number in enumerate(controls)
        }

    def apply(self, block: Block) -> None:
        """See `Part.apply`."""
        fragments = list(self._chosen(block))
        if not fragments:
            return
        encoded = self._encode([(text, fragment.has_controls) for fragment in fragments for text in fragment.texts])
        rows: dict[int, list[tuple[_Fragment, list[np.ndarray]]]] = {}
        for number, fragment in enumerate(fragments):
            rows.setdefault(fragment.row, []).append((fragment, encoded[3 * number : 3 * number + 3]))
        if block.padding is None:
            block.padding = np.zeros(block.tokens.shape, bool)
        for row, changes in rows.items():
            self._rewrite(block, row, changes)
        number_documents(block.tokens[:, :-1], self._context.tokenizer.end_of_text_id, block.document_ids)
        block.document_ids += block.padding[:, :-1]

    def _chosen(self, block: Block) -> Iterator[_Fragment]:
        separates = self._separates[block.tokens]
        begins = ~separates
        begins[:, 1:] &= separates[:, :-1]
        ends = ~separates
        ends[:, :-1] &= separates[:, 1:]
        rows, starts = np.nonzero(begins)
        stops = np.nonzero(ends)[1] + 1
        keys = self._context.keys(block, "fim")[rows]
        draws = uniform(keys[:, None], (_DRAWS * starts)[:, None] + np.arange(_DRAWS))
        chosen = np.flatnonzero(draws[:, 0] < self._rates[np.asarray(block.source_ids)][rows])
        for row, start, stop, (_, form, *cuts) in zip(
            rows[chosen].tolist(), starts[chosen].tolist(), stops[chosen].tolist(), draws[chosen].tolist(), strict=True
        ):
            ids = block.tokens[row, start:stop]
            read = self._text(ids.tolist())
            if read is None:
                continue
            text, head, tail, has_controls = read
            first, second = sorted(int(cut * (len(text) + 1)) for cut in cuts)
            texts = text[:first], text[first:second], text[second:]
            yield _Fragment(row, start, stop, form < self._spm, ids[:head], ids[len(ids) - tail :], texts, has_controls)

    def _text(self, ids: list[int]) -> tuple[str, int, int, bool] | None:
        """Text of the tokens, how many at either end are parts of characters, whether there are control symbols; None: no text to cut."""
        table = self._bytes
        parts = [table[number] for number in ids]
        data, has_controls = b"".join(parts), b"" in parts
        if has_controls:
            if not all(part or number in self._placeholders for number, part in zip(ids, parts, strict=True)):
                return None
            if _SURROGATE_BYTES.search(data):  # bytes that are no text, but would be read as control symbols below
                return None
            parts = [part or self._placeholders[number] for number, part in zip(ids, parts, strict=True)]
            data = b"".join(parts)
        errors = "surrogatepass" if has_controls else "strict"
        for cut in range(2 * _LONGEST_CHARACTER - 1):
            for head in range(max(0, cut - _LONGEST_CHARACTER + 1), min(cut, _LONGEST_CHARACTER - 1) + 1):
                tail = cut - head
                if head + tail >= len(parts):
                    return None
                front, back = len(b"".join(parts[:head])), len(b"".join(parts[len(parts) - tail :]))
                try:
                    return data[front : len(data) - back].decode("utf-8", errors), head, tail, has_controls
                except UnicodeDecodeError:
                    continue
        return None

    def _encode(self, texts: list[tuple[str, bool]]) -> list[np.ndarray]:
        """Ids of each text, with control symbols where their surrogates stand, if it may have any."""
        pieces = [_CONTROL.split(text) if may_have else [text] for text, may_have in texts]
        plain = iter(self._context.tokenizer.encode_batch([part for split in pieces for part in split[::2]]))
        encoded = []
        for split in pieces:
            parts = [next(plain)]
            for surrogate in split[1::2]:
                parts += [np.array([self._controls[ord(surrogate) - _FIRST_SURROGATE]], parts[0].dtype), next(plain)]
            encoded.append(parts[0] if len(parts) == 1 else np.concatenate(parts))
        return encoded

    def _rewrite(self, block: Block, row: int, changes: list[tuple[_Fragment, list[np.ndarray]]]) -> None:
        """Write a window anew, in its own length."""
        assert block.padding is not None
        before, before_kinds = block.tokens[row].copy(), block.kinds[row].copy()
        tokens, kinds, done = [], [], 0
        for fragment, parts in changes:
            tokens.append(before[done : fragment.start])
            kinds.append(before_kinds[done : fragment.start])
            here = slice(fragment.start, fragment.end)
            ids, its_kinds = self._rearranged(fragment, parts, before[here], before_kinds[here])
            tokens.append(ids)
            kinds.append(its_kinds)
            done = fragment.end
        tokens.append(before[done:])
        kinds.append(before_kinds[done:])
        whole, whole_kinds = np.concatenate(tokens, dtype=before.dtype, casting="unsafe"), np.concatenate(kinds)
        length = len(before)
        missing = max(0, length - len(whole))
        block.tokens[row, : length - missing] = whole[:length]
        block.kinds[row, : length - missing] = whole_kinds[:length]
        if missing:
            block.tokens[row, length - missing :] = self._pad
            block.kinds[row, length - missing :] = whole_kinds[-1]
            block.padding[row, length - missing :] = True

    def _rearranged(
        self, fragment: _Fragment, parts: list[np.ndarray], before: np.ndarray, kinds: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Tokens of a fragment in their new order, and the kind of each: that of the segment in which its first byte lies."""
        prefix = np.concatenate((fragment.head, parts[_PREFIX])) if len(fragment.head) else parts[_PREFIX]
        suffix = np.concatenate((parts[_SUFFIX], fragment.tail)) if len(fragment.tail) else parts[_SUFFIX]
        middle = parts[_MIDDLE]
        marks = [np.array([number], np.uint32) for number in self._sentinels]
        if fragment.is_spm:
            order = [marks[_PREFIX], marks[_SUFFIX], suffix, marks[_MIDDLE], prefix, middle]
        else:
            order = [marks[_PREFIX], prefix, marks[_SUFFIX], suffix, marks[_MIDDLE], middle]
        tokens = np.concatenate(order)
        if (kinds == kinds[0]).all():
            return tokens, np.full(len(tokens), kinds[0])
        found = self._kinds((prefix, middle, suffix), before, kinds)
        if fragment.is_spm:
            places = [found[_PREFIX][:1], found[_SUFFIX], found[_MIDDLE][:1], found[_PREFIX][1:], found[_MIDDLE][1:]]
        else:
            places = [found[_PREFIX], found[_SUFFIX], found[_MIDDLE]]
        return tokens, np.concatenate(places)

    def _kinds(self, parts: tuple[np.ndarray, ...], before: np.ndarray, kinds: np.ndarray) -> list[np.ndarray]:
        """Of each part (in the order of the text): kind of its sentinel, which is that of its first byte, then of its tokens."""
        old_starts = np.cumsum(self._num_bytes[before]) - self._num_bytes[before]
        begin, found = 0, []
        for part in parts:
            sizes = self._num_bytes[part]
            starts = begin + np.concatenate(([0], np.cumsum(sizes) - sizes))
            found.append(kinds[np.maximum(np.searchsorted(old_starts, starts, side="right") - 1, 0)])
            begin += int(sizes.sum())
        return found
