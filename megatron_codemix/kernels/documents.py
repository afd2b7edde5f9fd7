"""Where the documents of a batch lie: computed from document ids beside attention, never shipped as an S×S mask.

Shapes: B windows of a micro-batch, S positions.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from functools import cached_property

import torch
from torch import Tensor

_KEPT_LAYOUTS = 4


class DocumentLayout:
    """The documents of one micro-batch, in the forms that attention operators need. Each is computed once, when asked for."""

    def __init__(self, document_ids: Tensor) -> None:
        """document_ids: int64 (B, S); equal neighbours belong to one document."""
        if document_ids.ndim != 2:
            raise ValueError(f"document ids have the shape (windows, positions), not {tuple(document_ids.shape)}")
        self.document_ids = document_ids

    @cached_property
    def lengths(self) -> tuple[int, ...]:
        """Lengths of the documents' pieces in windows, row after row; they sum to B·S. Copies from the device to the host."""
        ids = self.document_ids
        starts = torch.ones_like(ids, dtype=torch.bool)
        starts[:, 1:] = ids[:, 1:] != ids[:, :-1]
        first = starts.flatten().nonzero().flatten()
        end = torch.tensor([ids.numel()], dtype=first.dtype, device=first.device)
        return tuple(torch.diff(first, append=end).tolist())

    @cached_property
    def mask(self) -> Tensor:
        """bool (B, 1, S, S), True where position i may look at j: the same document, and j ≤ i."""
        ids = self.document_ids
        same = ids[:, :, None] == ids[:, None, :]
        return same.tril_().unsqueeze_(1)


class DocumentLayouts:
    """The layouts of the last few micro-batches, so that all layers of a model share one.

    The key is the memory of the document ids, which an entry keeps alive: it cannot be mistaken for
    another micro-batch's, and activation recompute, which hands back another tensor object over the
    same memory, finds it again. Several micro-batches may be in flight.
    """

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[Hashable, ...], DocumentLayout] = OrderedDict()

    def of(self, document_ids: Tensor) -> DocumentLayout:
        """The layout of these document ids, int64 (B, S), made now or found."""
        version = 0 if document_ids.is_inference() else document_ids._version
        key = (document_ids.data_ptr(), version, document_ids.shape, document_ids.stride())
        layout = self._kept.get(key)
        if layout is None:
            layout = self._kept[key] = DocumentLayout(document_ids)
            while len(self._kept) > _KEPT_LAYOUTS:
                self._kept.popitem(last=False)
        return layout
