"""What a megatron-core checkpoint says it holds, read without trusting it.

Tensors and common state are loaded by torch with `weights_only`, but the inventory (`.metadata`) is a plain
pickle, which could run any code. It is read here first, by an unpickler that knows the few classes it needs.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from megatron.core import dist_checkpointing

from megatron_codemix.errors import UserError

_FILES = ("metadata.json", ".metadata", "common.pt")
_CHECKPOINT = "torch.distributed.checkpoint"
_KNOWN = {
    ("collections", "OrderedDict"),
    ("pathlib", "PosixPath"),
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    (f"{_CHECKPOINT}.filesystem", "_StorageInfo"),
    *((f"{_CHECKPOINT}.planner", name) for name in ("SavePlan", "TensorWriteData", "WriteItem", "WriteItemType")),
    *(
        (f"{_CHECKPOINT}.metadata", name)
        for name in (
            "BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta", "TensorProperties",
            "TensorStorageMetadata", "_MEM_FORMAT_ENCODING",
        )
    ),
}  # fmt: skip


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if is_dtype or (module, name) in _KNOWN:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f".metadata asks for {module}.{name}, which no checkpoint of ours needs")


def stored_tensors(folder: Path) -> dict[str, Any]:
    """Key → megatron-core's ShardedTensor without data (`global_shape`, `dtype`), of the checkpoint in `folder`.

    Raises UserError when the folder holds no whole checkpoint, or an inventory that could run code.
    """
    missing = [name for name in _FILES if not (folder / name).is_file()]
    if missing:
        raise UserError(f"{folder}: no readable megatron-core checkpoint (has no {missing[0]}); choose another checkpoint")
    try:
        with open(folder / ".metadata", "rb") as handle:
            _Unpickler(handle).load()
        return dist_checkpointing.load_tensors_metadata(str(folder))
    except Exception as error:  # what a damaged pickle raises can be anything
        raise UserError(f"{folder}: no readable megatron-core checkpoint ({error}); choose another checkpoint") from None
