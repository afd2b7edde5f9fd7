"""Where the documents of a batch lie: computed from document ids beside attention, never shipped as an S×S mask.

A document may have a prefix, which all of it sees. So position i sees position j where both are of one document and j ≤ i or j
is of the prefix. With a sliding window of W besides, only where |i − j| < W.

Shapes: B windows of a micro-batch, S positions, R = S/C of them on each of C context-parallel ranks (kernels/context.py).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from megatron_codemix.kernels.context import zigzag_rows

_KEPT_LAYOUTS = 4


@dataclass(frozen=True)
class Pieces:
    """Runs of neighbouring query rows that lie in one document (and one chunk), window after window, with the keys that they see.

    The last key of a piece is its last query's own, so query i of n sees all of the piece's keys but the last n − 1 − i, and with a
    sliding window of W the last W of these. Of a piece that lies in a prefix every query sees all keys: those of the whole prefix.
    """

    query_lengths: tuple[int, ...]
    """Query rows of each piece; they sum to B·R."""
    key_lengths: tuple[int, ...]
    """Keys of each piece: from the document's start in the window, or from the first that its first query sees, to the piece's end."""
    keys: Tensor | None
    """int64 (Σ key_lengths,): the keys, as rows of the B·S; None: all of them, in order, each once."""
    in_prefix: tuple[bool, ...]
    """Whether each piece lies in a prefix."""


class DocumentLayout:
    """The documents of one micro-batch, in the forms that attention operators need. Each is computed once, when asked for."""

    def __init__(self, document_ids: Tensor, size: int = 1, rank: int = 0, sliding_window: int | None = None) -> None:
        """document_ids: int64 (B, S); equal neighbours belong to one document. Or int64 (2, B, S): ids, and 1 where a position
        is of its document's prefix. size, rank: whose queries, under context parallelism.

        sliding_window: how many positions of its document one sees, itself among them; None: all.
        """
        if document_ids.ndim not in (2, 3) or (document_ids.ndim == 3 and document_ids.size(0) != 2):
            raise ValueError(f"document ids have the shape (windows, positions), not {tuple(document_ids.shape)}")
        self.prefix: Tensor | None = None
        """bool (B, S); None: no document has one."""
        if document_ids.ndim == 3:
            document_ids, prefix = document_ids.unbind()
            self.prefix = prefix.bool()
        self.document_ids, self.size, self.rank, self.sliding_window = document_ids, size, rank, sliding_window

    @cached_property
    def has_pieces(self) -> bool:
        """Whether `pieces` can say it: prefixes are where documents begin, and nothing slides over them."""
        if self.prefix is None:
            return True
        prefix = self.prefix.cpu()
        inside = ~_opens(self.document_ids.cpu())[:, 1:]
        return self.sliding_window is None and not bool((prefix[:, 1:] & ~prefix[:, :-1] & inside).any())

    @cached_property
    def pieces(self) -> Pieces:
        """What each run of this rank's queries sees. Copies from the device to the host."""
        assert self.has_pieces, "prefixes that lie elsewhere, or under a sliding window, need a mask"
        ids = self.document_ids.cpu()
        windows, positions = ids.shape
        opens = _opens(ids)
        # every key's place among all B·S, and the place of the key that opens its document
        place = torch.arange(ids.numel()).view(windows, positions)
        opened = place.where(opens, 0).flatten().cummax(0).values.view(windows, positions)
        rows = zigzag_rows(positions, self.size, self.rank)
        begins = opens[:, rows]
        begins[:, 0] = True
        begins[:, 1:] |= rows[1:] != rows[:-1] + 1
        prefix = None if self.prefix is None else self.prefix.cpu()
        if prefix is not None:
            begins[:, 1:] |= prefix[:, rows[1:]] != prefix[:, rows[:-1]]
        begin = begins.flatten().nonzero().flatten()
        query_lengths = torch.diff(begin, append=torch.tensor([begins.numel()]))
        lengths = tuple(query_lengths.tolist())
        if self.size == 1 and prefix is None:
            return Pieces(lengths, lengths, keys=None, in_prefix=(False,) * len(lengths))
        first, own = opened[:, rows].flatten()[begin], place[:, rows].flatten()[begin]
        if self.sliding_window is not None:
            first = first.maximum(own - self.sliding_window + 1)
        end = own + query_lengths
        flags = torch.zeros_like(begin, dtype=torch.bool) if prefix is None else prefix[:, rows].flatten()[begin]
        if prefix is not None:
            end = end.where(~flags, _prefix_ends(opens, prefix)[:, rows].flatten()[begin])
        key_lengths = end - first
        within = torch.arange(int(key_lengths.sum())) - (key_lengths.cumsum(0) - key_lengths).repeat_interleave(key_lengths)
        keys = (first.repeat_interleave(key_lengths) + within).to(self.document_ids.device)
        return Pieces(lengths, tuple(key_lengths.tolist()), keys, tuple(flags.tolist()))

    @cached_property
    def mask(self) -> Tensor:
        """bool (B, 1, R, S), True where the rank's row i may look at j: the same document, and j no later than i, nor too far back."""
        ids, slides = self.document_ids, self.sliding_window
        if self.size == 1 and self.prefix is None:
            same = (ids[:, :, None] == ids[:, None, :]).tril_().unsqueeze_(1)
            return same if slides is None else same.triu_(1 - slides)
        rows = zigzag_rows(ids.size(1), self.size, self.rank).to(ids.device)
        same = ids[:, rows, None] == ids[:, None, :]
        behind = rows[:, None] - torch.arange(ids.size(1), device=ids.device)
        seen = behind >= 0 if self.prefix is None else (behind >= 0) | self.prefix[:, None, :]
        if slides is not None:
            seen = seen & (behind.abs() < slides)
        return same.logical_and_(seen).unsqueeze_(1)


def _opens(ids: Tensor) -> Tensor:
    """bool (B, S): where a document begins in its window."""
    opens = torch.ones_like(ids, dtype=torch.bool)
    opens[:, 1:] = ids[:, 1:] != ids[:, :-1]
    return opens


def _prefix_ends(opens: Tensor, prefix: Tensor) -> Tensor:
    """int64 (B, S): of each position of a prefix the place, among all B·S, of the first behind that is not of it."""
    total = opens.numel()
    stops = torch.arange(total).where((opens | ~prefix).flatten(), total)
    later = torch.cat((stops[1:], torch.tensor([total])))
    return later.flip(0).cummin(0).values.flip(0).view_as(opens)


class DocumentLayouts:
    """The layouts of the last few micro-batches, so that all layers of a model share one.

    The key is the memory of the document ids, which an entry keeps alive: it cannot be mistaken for
    another micro-batch's, and activation recompute, which hands back another tensor object over the
    same memory, finds it again. Several micro-batches may be in flight.
    """

    def __init__(self, sliding_window: int | None = None) -> None:
        """sliding_window: of the model whose layers share them."""
        self.sliding_window = sliding_window
        self._kept: OrderedDict[tuple[Hashable, ...], DocumentLayout] = OrderedDict()

    def of(self, document_ids: Tensor, size: int = 1, rank: int = 0) -> DocumentLayout:
        """The layout of these document ids, (B, S) or with prefixes (2, B, S), for the queries of rank `rank` of `size`: made or found."""
        version = 0 if document_ids.is_inference() else document_ids._version
        key = (document_ids.data_ptr(), version, document_ids.shape, document_ids.stride(), size, rank)
        layout = self._kept.get(key)
        if layout is None:
            layout = self._kept[key] = DocumentLayout(document_ids, size, rank, self.sliding_window)
            while len(self._kept) > _KEPT_LAYOUTS:
                self._kept.popitem(last=False)
        return layout
