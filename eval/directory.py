"""What makes a folder a Hugging Face model directory, and its identity by content."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_codemix.errors import UserError
from megatron_codemix.files import read_json, sha256_file, sha256_json
from megatron_codemix.progress import progress

_INDEX = "model.safetensors.index.json"
_DEFINING = (
    *("config.json", _INDEX, "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("tokenizer.model", "vocab.json", "merges.txt", "chat_template.jinja"),
)
"""What decides a model's answers beside its weights: which file a weight is read from, what texts are encoded to, how a chat is written."""


@dataclass(frozen=True)
class ModelDirectory:
    """A folder that holds a causal language model; hashes are of contents, so a copy elsewhere is the same model."""

    path: Path
    config: dict[str, Any]
    """config.json."""
    codemix: dict[str, Any] | None
    """codemix.json, where this project converted the model."""
    weights_sha256: str
    """sha256 of the canonical JSON {file: sha256} over *.safetensors."""
    definition_sha256: str
    """The same over config.json, the index of the weights and the tokenizer's files."""

    @property
    def identity(self) -> dict[str, Any]:
        """The `model` entry of results.json."""
        return {
            "path": str(self.path),
            "sha256": self.weights_sha256,
            "definition_sha256": self.definition_sha256,
            "codemix": self.codemix,
        }


def open_directory(path: Path) -> ModelDirectory:
    """Check and hash a model directory; raises UserError that says which part is missing."""
    if path.is_file():
        raise UserError(f"{path}: is a file; give the folder that holds it: {path.parent}")
    if not path.is_dir():
        raise UserError(f"{path}: no such folder; give a Hugging Face model directory ('codemix convert to-hf' makes one)")
    if not (path / "config.json").is_file():
        raise UserError(f"{path}: holds no config.json, so it is no Hugging Face model directory; 'codemix convert to-hf' makes one")
    config = read_json(path / "config.json", "model config")
    if not isinstance(config, dict) or "model_type" not in config:
        raise UserError(f"{path / 'config.json'}: names no model_type, so it is no Hugging Face model config; make the directory anew")
    if (path / "adapter_config.json").is_file():  # with which transformers would load other weights, from elsewhere
        raise UserError(f"{path}: holds an adapter of PEFT, and no whole model; merge it into its base model and save that")
    weights = sorted(path.glob("*.safetensors"))
    if not weights:
        raise UserError(f"{path}: holds no *.safetensors; save the model with save_pretrained (pickled weights are not loaded)")
    if not any((path / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise UserError(f"{path}: holds no tokenizer (tokenizer.json); save the model's tokenizer there")
    _check_index(path)
    codemix = read_json(path / "codemix.json", "conversion record") if (path / "codemix.json").is_file() else None
    hashes: dict[str, str] = {}
    with progress("hashing weights", sum(file.stat().st_size for file in weights), "bytes") as bar:
        for file in weights:
            hashes[file.name] = sha256_file(file, lambda: bar.advance(1 << 20))
    definition = {name: sha256_file(path / name) for name in _DEFINING if (path / name).is_file()}
    return ModelDirectory(path, config, codemix, sha256_json(hashes), sha256_json(definition))


def _check_index(path: Path) -> None:
    """Raises UserError for an index that names files which are not among those that are hashed."""
    if not (path / _INDEX).is_file():
        return
    index = read_json(path / _INDEX, "index of weights")
    files = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(files, dict) or not all(isinstance(name, str) for name in files.values()):
        raise UserError(f"{path / _INDEX}: is no index of weights; copy or convert the model again")
    outside = sorted(name for name in set(files.values()) if Path(name).name != name or not name.endswith(".safetensors"))
    if outside:
        raise UserError(f"{path / _INDEX}: names a file outside its folder, or no safetensors file ({outside[0]!r}); do not use this model")
