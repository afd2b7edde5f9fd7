"""`manifest.json`: what a split holds. It is written last, so a folder without one is not a split."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from megatron_codemix.config import parse_config
from megatron_codemix.config.section import Section
from megatron_codemix.errors import UserError
from megatron_codemix.files import read_json, sha256_json
from megatron_codemix.shards.layout import FORMAT_VERSION, MODALITY_KINDS, TOKEN_DTYPES, Kind, Modality, TokenDtype

MANIFEST_NAME = "manifest.json"
REMEDY = "run 'codemix prep verify', or make the split anew with 'codemix prep shards'"

_Number = Annotated[int, Field(ge=0)]
_Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
# No dot before the suffix (webdataset cuts keys there), no slash: a manifest must not name files elsewhere.
_ShardName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+\.tar$", max_length=64)]


class ShardEntry(Section):
    """One shard file, as listed in the manifest."""

    name: _ShardName
    """File name inside the split's folder."""
    num_tokens: _Number
    """Tokens, end-of-text ids included."""
    num_documents: _Number
    """Documents."""
    num_bytes: _Number
    """UTF-8 bytes of the documents' text."""
    num_packs: _Number
    """Webdataset samples."""
    size: _Number
    """Bytes of the tar file."""
    sha256: _Digest
    """Of the tar file."""
    index_sha256: _Digest
    """Of the sidecar."""


@dataclass(frozen=True)
class ShardInfo:
    """What a finished shard contributes to the manifest; small, and can be sent between processes."""

    entry: ShardEntry
    languages: dict[str, int] = field(default_factory=dict)
    licenses: dict[str, int] = field(default_factory=dict)


class Manifest(Section):
    """The manifest of a split. `Manifest.load(folder)` reads and checks one."""

    format_version: int
    """1."""
    source: str
    """Name of the source in the prep file."""
    split: str
    """'train' or 'valid'."""
    modality: Modality
    """Modality of whatever has no segment of its own."""
    token_dtype: TokenDtype
    """uint16, or uint32 when the vocabulary has more than 65,536 pieces."""
    tokenizer_fingerprint: _Digest
    """sha256 of tokenizer.model or tokenizer.json."""
    vocab_size: Annotated[int, Field(ge=1)]
    """Pieces of the vocabulary; every token is below it."""
    end_of_text_id: _Number
    """The id that closes every document."""
    num_tokens: _Number
    """Sum over shards."""
    num_documents: _Number
    """Sum over shards."""
    num_bytes: _Number
    """Sum over shards."""
    shards: list[ShardEntry]
    """In the order in which windows are numbered."""
    languages: dict[str, _Number]
    """Language → documents; documents without one are left out."""
    licenses: dict[str, _Number]
    """Licence → documents; documents without one are left out."""
    prep: dict[str, Any]
    """Prep settings of the source."""
    skipped: dict[str, _Number]
    """Reason → documents that were not taken."""
    decontaminated_against: list[str]
    """Benchmarks whose items were removed."""
    leakage: dict[str, _Number]
    """Rule → held-out documents that also occur in training by that rule."""
    created_by: str
    """codemix version."""

    @classmethod
    def load(cls, folder: Path) -> Manifest:
        """Read `folder/manifest.json`.

        Raises UserError when it is missing, malformed, of another format_version, or contradicts itself.
        """
        path = Path(folder) / MANIFEST_NAME
        if not path.is_file():
            raise UserError(f"{folder}: not a finished split (no {MANIFEST_NAME} in it); check the path, or run 'codemix prep shards'")
        return cls.of(read_json(path, "manifest"), str(path))

    @classmethod
    def of(cls, raw: Any, path: str) -> Manifest:
        """The manifest of a parsed file, checked as `load` does; path: for messages."""
        version = raw.get("format_version") if isinstance(raw, dict) else None
        if version is not None and version != FORMAT_VERSION:
            made_by = raw.get("created_by", "another version")
            raise UserError(
                f"{path}: format_version {version!r}, but this codemix reads {FORMAT_VERSION};"
                f" use the codemix that wrote it ({made_by}), or make the split anew with 'codemix prep shards'"
            )
        try:
            manifest = parse_config(raw, cls, path)
        except UserError as error:
            raise UserError(*(f"{problem}; {REMEDY}" for problem in error.problems)) from None
        problems = manifest._contradictions()
        if problems:
            raise UserError(*(f"{path}: {problem}; {REMEDY}" for problem in problems))
        return manifest

    def _contradictions(self) -> list[str]:
        problems = []
        for name in ("num_tokens", "num_documents", "num_bytes"):
            total, listed = getattr(self, name), sum(getattr(shard, name) for shard in self.shards)
            if total != listed:
                problems.append(f"{name} is {total}, but its shards add up to {listed}")
        for name, times in Counter(shard.name for shard in self.shards).items():
            if times > 1:
                problems.append(f"shard {name} is listed {times} times")
        if self.end_of_text_id >= self.vocab_size:
            problems.append(f"end_of_text_id {self.end_of_text_id} is not below vocab_size {self.vocab_size}")
        if self.token_dtype == "uint16" and self.vocab_size > 1 << 16:
            problems.append(f"token_dtype uint16 cannot hold a vocabulary of {self.vocab_size}")
        return problems

    @property
    def fingerprint(self) -> str:
        """sha256 (hex) of the canonical JSON: changes when anything about the split does."""
        return sha256_json(self.model_dump(mode="json"))

    @property
    def dtype(self) -> np.dtype:
        """Token dtype, little endian."""
        return TOKEN_DTYPES[self.token_dtype]

    @property
    def kind(self) -> Kind:
        """Kind of whatever has no segment of its own."""
        return MODALITY_KINDS[self.modality]


def codemix_version() -> str:
    """Version of the installed package; '0+unknown' when it runs without being installed."""
    try:
        return metadata.version("megatron-codemix")
    except metadata.PackageNotFoundError:
        return "0+unknown"
