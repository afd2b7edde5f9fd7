"""The files of a Hugging Face directory: sharded safetensors written as a stream, config.json, generation_config.json."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from megatron_codemix.config import ModelConfig
from megatron_codemix.files import write_json
from megatron_codemix.progress import progress

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_DTYPE_NAMES = {"fp32": "float32", "bf16": "bfloat16"}
INDEX_NAME = "model.safetensors.index.json"


@dataclass(frozen=True)
class SpecialIds:
    """Ids that generation needs."""

    begin: int
    end: int
    padding: int


def write_config(
    folder: Path, model: ModelConfig, vocab_size: int, max_positions: int, precision: str, ids: SpecialIds, version: str
) -> None:
    """config.json of a LlamaForCausalLM and generation_config.json.

    Keys that transformers 5 renamed (`rope_parameters`, `dtype`) are written under both names, so that older clients read
    the same model.
    """
    special = {"bos_token_id": ids.begin, "eos_token_id": ids.end, "pad_token_id": ids.padding}
    config: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocab_size,
        "hidden_size": model.hidden_size,
        "intermediate_size": model.ffn_hidden_size,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_attention_heads,
        "num_key_value_heads": model.query_groups,
        "head_dim": model.head_size,
        "hidden_act": "silu",
        "max_position_embeddings": max_positions,
        "initializer_range": model.init_std,
        "rms_norm_eps": model.norm_epsilon,
        "rope_theta": model.rope_base,
        "rope_parameters": {"rope_type": "default", "rope_theta": model.rope_base},
        "rope_scaling": None,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "tie_word_embeddings": model.tied_embeddings,
        "use_cache": True,
        "dtype": _DTYPE_NAMES[precision],
        "torch_dtype": _DTYPE_NAMES[precision],
        **special,
        "transformers_version": version,
    }
    write_json(folder / "config.json", config)
    write_json(folder / "generation_config.json", {"_from_model_config": True, **special, "transformers_version": version})


def write_weights(folder: Path, tensors: Iterable[tuple[str, Tensor]], dtype: torch.dtype, max_shard_bytes: int) -> int:
    """Write parameters as they come, a shard at a time, after `write_config`: at most one shard is in memory besides the model.

    tensors: (name, tensor); each is cast to `dtype`. max_shard_bytes: a shard is closed before it would exceed this; a
    larger single parameter is a shard of its own. One shard is model.safetensors, several have an index, as
    transformers expects. Returns the bytes of all parameters.
    """
    shards: list[dict[str, int]] = []
    pending: dict[str, Tensor] = {}
    pending_bytes = 0

    def close() -> None:
        nonlocal pending, pending_bytes
        if pending:
            shards.append({name: tensor.nbytes for name, tensor in pending.items()})
            path = folder / _part(len(shards))
            save_file(pending, path, metadata={"format": "pt"})
            shutil.copymode(folder / "config.json", path)  # safetensors makes files that only their owner can read
            pending, pending_bytes = {}, 0

    with progress("writing weights", unit="parameters") as bar:
        for name, tensor in tensors:
            # a copy of its own: safetensors refuses views that share memory
            whole = tensor.to(device="cpu", dtype=dtype, copy=True, memory_format=torch.contiguous_format)
            if pending_bytes + whole.nbytes > max_shard_bytes:
                close()
            pending[name] = whole
            pending_bytes += whole.nbytes
            bar.advance(tensor.numel())
        close()
    return _name_shards(folder, shards)


def _part(number: int) -> str:
    return f"part-{number}.safetensors"


def _name_shards(folder: Path, shards: list[dict[str, int]]) -> int:
    """Give the parts their final names, which tell how many there are."""
    total = sum(sum(shard.values()) for shard in shards)
    if len(shards) == 1:
        (folder / _part(1)).rename(folder / "model.safetensors")
        return total
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        (folder / _part(number)).rename(folder / name)
        weight_map.update(dict.fromkeys(shard, name))
    write_json(folder / INDEX_NAME, {"metadata": {"total_size": total}, "weight_map": weight_map})
    return total
