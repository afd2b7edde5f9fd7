"""The name map between megatron-core's GPTModel and transformers' LlamaForCausalLM: one table, both directions.

Pure functions on tensors; nothing is computed, only cut, joined and renamed, so the round trip is exact to the bit.

- Queries, keys and values are one matrix in megatron-core, by key/value group: the group's queries, its key, its
  value (`q q k v | q q k v | …`, heads of `head_size` rows). transformers has three matrices.
- Gate and up projection are one matrix, gate first (SwiGLU: silu(gate) · up).
- Rotary positions turn the two *halves* of a head against each other in both (megatron-core with
  rotary_interleaved=False, its default): rows are not permuted.
- The vocabulary's padding rows exist in megatron-core only.

Letters: V rows of the vocabulary, H hidden size, N query heads, G groups, D head size, F inner width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from megatron_codemix.config import ModelConfig

Split = Callable[[Tensor, ModelConfig], tuple[Tensor, ...]]
Join = Callable[[Sequence[Tensor], ModelConfig], Tensor]


@dataclass(frozen=True)
class Entry:
    """One parameter of megatron-core and what it is in transformers. `{layer}` stands for the layer's number, from 0."""

    ours: str
    theirs: tuple[str, ...]
    shape: Callable[[ModelConfig, int], tuple[int, ...]]
    """Shape in megatron-core, from the model's shape and the number of vocabulary rows."""
    split: Split = lambda weight, _: (weight,)
    """Ours → theirs, views where possible."""
    join: Join = lambda parts, _: parts[0]
    """Theirs → ours."""
    vocabulary: bool = False
    """Whether rows are entries of the vocabulary, with padding rows at the end in megatron-core."""


def _group_heads(config: ModelConfig) -> int:
    """Query heads of one key/value group."""
    return config.num_attention_heads // config.query_groups


def split_qkv(weight: Tensor, config: ModelConfig) -> tuple[Tensor, Tensor, Tensor]:
    """(G·(N/G + 2)·D, H) → queries (N·D, H), keys (G·D, H), values (G·D, H)."""
    heads = weight.view(config.query_groups, _group_heads(config) + 2, config.head_size, config.hidden_size)
    query, key, value = heads.split([_group_heads(config), 1, 1], dim=1)
    return query.reshape(-1, config.hidden_size), key.reshape(-1, config.hidden_size), value.reshape(-1, config.hidden_size)


def join_qkv(parts: Sequence[Tensor], config: ModelConfig) -> Tensor:
    """The inverse of `split_qkv`."""
    heads = [part.view(config.query_groups, -1, config.head_size, config.hidden_size) for part in parts]
    return torch.cat(heads, dim=1).view(-1, config.hidden_size)


def _split_gate_up(weight: Tensor, config: ModelConfig) -> tuple[Tensor, Tensor]:
    gate, up = weight.chunk(2, dim=0)
    return gate, up


def _matrix(config: ModelConfig, rows: int) -> tuple[int, ...]:
    return rows, config.hidden_size


def _norm(config: ModelConfig, rows: int) -> tuple[int, ...]:
    return (config.hidden_size,)


def _qkv(config: ModelConfig, rows: int) -> tuple[int, ...]:
    return (config.num_attention_heads + 2 * config.query_groups) * config.head_size, config.hidden_size


def _projection(config: ModelConfig, rows: int) -> tuple[int, ...]:
    return config.hidden_size, config.hidden_size


def _gate_up(config: ModelConfig, rows: int) -> tuple[int, ...]:
    return 2 * config.ffn_hidden_size, config.hidden_size


def _down(config: ModelConfig, rows: int) -> tuple[int, ...]:
    return config.hidden_size, config.ffn_hidden_size


_OURS, _THEIRS = "decoder.layers.{layer}.", "model.layers.{layer}."

EMBEDDING = Entry("embedding.word_embeddings.weight", ("model.embed_tokens.weight",), _matrix, vocabulary=True)
LAYER = (
    Entry(_OURS + "input_layernorm.weight", (_THEIRS + "input_layernorm.weight",), _norm),
    Entry(
        _OURS + "self_attention.linear_qkv.weight",
        tuple(_THEIRS + f"self_attn.{name}_proj.weight" for name in "qkv"),
        _qkv,
        split_qkv,
        join_qkv,
    ),
    Entry(_OURS + "self_attention.linear_proj.weight", (_THEIRS + "self_attn.o_proj.weight",), _projection),
    Entry(_OURS + "pre_mlp_layernorm.weight", (_THEIRS + "post_attention_layernorm.weight",), _norm),
    Entry(
        _OURS + "mlp.linear_fc1.weight",
        tuple(_THEIRS + f"mlp.{name}_proj.weight" for name in ("gate", "up")),
        _gate_up,
        _split_gate_up,
        lambda parts, _: torch.cat(list(parts), dim=0),
    ),
    Entry(_OURS + "mlp.linear_fc2.weight", (_THEIRS + "mlp.down_proj.weight",), _down),
)
FINAL_NORM = Entry("decoder.final_layernorm.weight", ("model.norm.weight",), _norm)
OUTPUT = Entry("output_layer.weight", ("lm_head.weight",), _matrix, vocabulary=True)


def entries(config: ModelConfig) -> Iterator[Entry]:
    """Every parameter of a model of this shape, in the order of the forward pass. Tied models have no output matrix."""
    yield EMBEDDING
    for layer in range(config.num_layers):
        for entry in LAYER:
            yield replace(entry, ours=entry.ours.format(layer=layer), theirs=tuple(name.format(layer=layer) for name in entry.theirs))
    yield FINAL_NORM
    if not config.tied_embeddings:
        yield OUTPUT


def to_hf(
    shapes: Mapping[str, Sequence[int]], read: Callable[[str], Tensor], config: ModelConfig, vocab_size: int
) -> Iterator[tuple[str, Tensor]]:
    """Ours → theirs, one parameter at a time: (name, view or copy), the padding rows left out.

    shapes: of every parameter of ours; read: its value by name, asked for once, when its turn comes. Raises ValueError
    before the first parameter when one is missing, unknown, or of another shape.
    """
    table = list(entries(config))
    _check_names({entry.ours for entry in table}, set(shapes))
    for entry in table:
        _check_shape(entry, tuple(shapes[entry.ours]), config, vocab_size)
    return _split_all(table, read, config, vocab_size)


def _split_all(table: Sequence[Entry], read: Callable[[str], Tensor], config: ModelConfig, vocab_size: int) -> Iterator[tuple[str, Tensor]]:
    for entry in table:
        weight = read(entry.ours).detach()
        yield from zip(entry.theirs, entry.split(weight[:vocab_size] if entry.vocabulary else weight, config), strict=True)


def from_hf(state: Mapping[str, Tensor], config: ModelConfig, rows: int) -> Iterator[tuple[str, Tensor]]:
    """Theirs → ours, one parameter at a time; vocabulary matrices get zero rows up to `rows`.

    Raises ValueError when a parameter is missing or unknown, or has more rows than `rows`.
    """
    table = list(entries(config))
    _check_names({name for entry in table for name in entry.theirs}, set(state))
    for entry in table:
        weight = entry.join([state[name] for name in entry.theirs], config)
        if entry.vocabulary:
            if len(weight) > rows:
                raise ValueError(f"{entry.ours}: {len(weight)} vocabulary entries do not fit into {rows} rows")
            weight = torch.cat([weight, weight.new_zeros(rows - len(weight), weight.size(1))])
        yield entry.ours, weight


def _check_names(wanted: set[str], found: set[str]) -> None:
    if wanted != found:
        missing, unknown = sorted(wanted - found), sorted(found - wanted)
        raise ValueError(f"not a model of this shape: missing {missing[:3] or 'nothing'}, unknown {unknown[:3] or 'nothing'}")


def _check_shape(entry: Entry, shape: tuple[int, ...], config: ModelConfig, vocab_size: int) -> None:
    rows = shape[0] if entry.vocabulary else 0
    if (rows < vocab_size and entry.vocabulary) or shape != entry.shape(config, rows):
        raise ValueError(f"{entry.ours}: shape {shape}, but this model needs {entry.shape(config, max(rows, vocab_size))}")
