"""The windows that are read at once, between the shards and `Batch`: what the parts of an objective read and write."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass
class Block:
    """n windows of S + 1 tokens: token j is the label of input j − 1. Fields that are None say that nothing was changed."""

    tokens: np.ndarray
    """Unsigned (n, S+1), of the shards' dtype: what is to be predicted."""
    kinds: np.ndarray
    """uint8 (n, S+1): shards.Kind of each token."""
    source_ids: np.ndarray
    """Integers (n,): index into Plan.sources."""
    window_ids: np.ndarray
    """Integers (n,)."""
    epochs: np.ndarray
    """Integers (n,)."""
    document_ids: np.ndarray
    """int64 (n, S): number of each input token's document in its window, from 0. A part that moves tokens numbers anew."""
    inputs: np.ndarray | None = None
    """Unsigned (n, S): what the model sees in the place of tokens[:, :-1]."""
    excluded: np.ndarray | None = None
    """bool (n, S+1): tokens of the corpus (or sentinels) that are no targets."""
    padding: np.ndarray | None = None
    """bool (n, S+1): filled up, hence no targets."""
    prefix: np.ndarray | None = None
    """uint8 (n, S): 1 where an input is seen by all of its document."""
    weights: np.ndarray | None = None
    """float32 (n, S+1): factor of the loss of each token as a target."""

    @property
    def seen(self) -> np.ndarray:
        """Unsigned (n, S): the inputs; to be written to only through `own_inputs`."""
        return self.tokens[:, :-1] if self.inputs is None else self.inputs

    def own_inputs(self) -> np.ndarray:
        """The inputs, apart from the labels from now on."""
        if self.inputs is None:
            self.inputs = self.tokens[:, :-1].copy()
        return self.inputs

    def exclude(self, tokens: np.ndarray) -> None:
        """Tokens that are no targets: bool (n, S+1)."""
        if self.excluded is None:
            self.excluded = np.zeros(self.tokens.shape, bool)
        self.excluded |= tokens


def number_documents(tokens: np.ndarray, end_of_text_id: int, out: np.ndarray) -> None:
    """Write the number of each input token's document in its window, from 0: integers (n, S) → int64 (n, S).

    Only the token that closes a document is end-of-text (data preparation writes no other), and it opens the next.
    """
    opens = tokens == end_of_text_id
    opens[:, 0] = False
    np.cumsum(opens, axis=1, dtype=np.int64, out=out)
