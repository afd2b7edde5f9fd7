"""What workers feed an engine with. They are started as scripts, and find this file beside them."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import Tensor

from megatron_codemix.config import RunConfig, parse_config


@dataclasses.dataclass
class Windows:
    """The fields of `batches.Batch` that an engine reads."""

    tokens: Tensor
    labels: Tensor
    target_mask: Tensor
    loss_weights: Tensor
    positions: Tensor
    document_ids: Tensor
    prefix: Tensor | None = None

    def rows(self, start: int, stop: int) -> Windows:
        fields = (getattr(self, field.name) for field in dataclasses.fields(self))
        return Windows(*(None if field is None else field[start:stop] for field in fields))  # type: ignore[arg-type]

    def micro_batches(self, size: int) -> list[Windows]:
        return [self.rows(start, start + size) for start in range(0, len(self.tokens), size)]


def run_config(model: dict[str, Any], *, batch_size: int, sequence_length: int, **sections: Any) -> RunConfig:
    """A run of this model; the corpus is never looked for. model: beside heads and width, which are these."""
    shape = {"hidden_size": 32, "num_attention_heads": 4, "num_query_groups": 2, "ffn_hidden_size": 64}
    stage = {
        "name": "only", "tokens": 100 * batch_size * sequence_length, "mixture": {"a": 1}, "batch_size": batch_size,
        "sequence_length": sequence_length, "learning_rate": {"shape": "constant", "peak": 1e-3},
    }  # fmt: skip
    raw = {
        "name": "test", "output": "unused", "tokenizer": "unused", "sources": {"a": {"path": "unused"}}, "precision": "fp32",
        "model": shape | model, "stages": [stage], **sections,
    }  # fmt: skip
    return parse_config(raw, RunConfig, "test")
