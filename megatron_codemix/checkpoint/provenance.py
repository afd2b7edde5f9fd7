"""What a checkpoint was trained on, per source: counted by its ledger, described by the shards' manifests where these are at hand."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from megatron_codemix.checkpoint.store import Checkpoint
from megatron_codemix.config import RunConfig
from megatron_codemix.errors import JobError, UserError
from megatron_codemix.shards import Manifest, load_manifest


@dataclass(frozen=True)
class SourceUse:
    """What one source gave to a model."""

    name: str
    windows: int
    tokens: int
    """Window tokens, padding included."""
    targets: int
    """Tokens that were predicted."""
    bytes: int
    """UTF-8 bytes of the targets."""
    share: float
    """Of all window tokens, 0 to 1."""
    epochs: float | None
    """Window tokens over tokens of the training split; None: the shards are not at hand."""
    modality: str | None
    documents: int | None
    """Documents of the training split."""
    languages: dict[str, int]
    """Language → documents of the training split."""
    licenses: dict[str, int]
    """Licence → documents of the training split."""

    def as_json(self) -> dict[str, Any]:
        """As codemix.json holds it."""
        return asdict(self)


def source_uses(checkpoint: Checkpoint, config: RunConfig) -> list[SourceUse]:
    """A row per source that the ledger names, in its order. Raises UserError for a malformed ledger."""
    sources = checkpoint.ledger().get("sources", {})
    total = sum(int(counts["tokens"]) for counts in sources.values()) or 1
    return [_use(name, counts, total, _manifest(config, name, checkpoint)) for name, counts in sources.items()]


def _use(name: str, counts: dict[str, Any], total: int, manifest: Manifest | None) -> SourceUse:
    return SourceUse(
        name=name,
        windows=counts["windows"],
        tokens=counts["tokens"],
        targets=counts["targets"],
        bytes=counts["bytes"],
        share=counts["tokens"] / total,
        epochs=counts["tokens"] / manifest.num_tokens if manifest and manifest.num_tokens else None,
        modality=manifest.modality if manifest else None,
        documents=manifest.num_documents if manifest else None,
        languages=dict(manifest.languages) if manifest else {},
        licenses=dict(manifest.licenses) if manifest else {},
    )


def _manifest(config: RunConfig, name: str, checkpoint: Checkpoint) -> Manifest | None:
    """The manifest of a source's training split, if its shards are at hand and still those of the run's tokenizer."""
    if name not in config.sources:
        return None
    try:
        manifest = load_manifest(config.sources[name].path / config.sources[name].train_split)
    except (UserError, JobError):
        return None
    return manifest if manifest.tokenizer_fingerprint == checkpoint.record.tokenizer_fingerprint else None
