"""Data preparation: which raw documents become which source, and how the tokenizer is trained."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field

from megatron_codemix.config.section import Count, CountOrZero, FilePath, Section

_SOURCE_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"


class SourceSpec(Section):
    """Where one source's raw documents come from."""

    kind: Literal["jsonl", "files", "stdlib"]
    """jsonl: one JSON object a line (.jsonl, .jsonl.gz, .jsonl.zst); files: whole files below folders;
    stdlib: the running Python's own standard library."""
    paths: list[FilePath] = []
    """jsonl: files, or folders searched for them; files: folders or files. Not for stdlib."""
    text_field: str = "text"
    """jsonl: key of the document's text."""
    id_field: str | None = None
    """jsonl: key of a stable name of the document (a path, a URL), unique in the source, or with group_field in its group;
    default: file and line."""
    group_field: str | None = None
    """jsonl: key whose value keeps documents together in one split (a repository); default: the document itself."""
    language_field: str | None = None
    """jsonl: key of the natural or programming language, counted in the manifest."""
    license_field: str | None = None
    """jsonl: key of the licence, counted in the manifest."""
    suffixes: list[str] = []
    """files: file suffixes to take, such as ['.py', '.md']; empty: every file that decodes as UTF-8."""
    part: Literal["code", "text"] | None = None
    """stdlib: 'code' (sources with docstrings stripped) or 'text' (docstrings, pydoc topics, installed documentation)."""
    modality: Literal["code", "text"]
    """Modality of every segment of this source's documents."""
    on_undecodable: Literal["fail", "skip"] = "fail"
    """A document that is not valid UTF-8 or JSON: fail with its place, or skip and count it."""
    max_document_bytes: Count | None = None
    """Longer documents are cut at this many UTF-8 bytes, at a character boundary, and counted; null: never."""


class Split(Section):
    """How documents are divided: by hash of the group (repository, module), else of the document."""

    validation: float = Field(default=0.01, ge=0.0, lt=1.0)
    """Fraction of groups held out as split 'valid'."""
    seed: CountOrZero = 0
    """Keys the hash."""


class TokenizerTraining(Section):
    """SentencePiece BPE, lossless on code."""

    vocab_size: Count = 32_000
    """Pieces, all reserved symbols included."""
    sample_bytes: Count = 200_000_000
    """UTF-8 bytes of training documents to learn from, drawn evenly from the sources by `weights`."""
    weights: dict[str, float] = {}
    """Source → relative weight of its bytes in the tokenizer's own mixture; default: equal."""
    seed: CountOrZero = 0
    """Keys which documents are drawn."""


class PrepConfig(Section):
    """Raw documents → tokenizer → shards."""

    output: FilePath
    """Folder that receives OUTPUT/tokenizer and OUTPUT/SOURCE/SPLIT."""
    sources: dict[str, SourceSpec] = Field(min_length=1)
    """Source name → raw documents."""
    split: Split = Split()
    """Train/validation split."""
    tokenizer: TokenizerTraining = TokenizerTraining()
    """How `codemix prep tokenizer` trains."""
    pack_tokens: Count = 2_097_152
    """Tokens per pack (webdataset sample) at which it is closed: 4 MiB of uint16."""
    shard_tokens: Count = 134_217_728
    """Tokens per shard file at which it is closed: 256 MiB of uint16."""
    workers: CountOrZero = 0
    """Processes; 0: one per core."""

    @classmethod
    def cross_problems(cls, raw: dict[str, Any]) -> list[str]:
        """Names that cannot be folders below `output`; fields that belong to another kind of source."""
        problems = []
        sources = raw.get("sources") if isinstance(raw.get("sources"), dict) else {}
        for name, spec in (sources or {}).items():
            if not re.fullmatch(_SOURCE_NAME, str(name)) or name == "tokenizer":
                problems.append(
                    f"sources.{name}: the name becomes a folder beside 'tokenizer'; use letters, digits, '.', '_', '-', and not 'tokenizer'"
                )
            if not isinstance(spec, dict):
                continue
            if spec.get("kind") in ("jsonl", "files") and not spec.get("paths"):
                problems.append(f"sources.{name}.paths: a source of kind '{spec['kind']}' needs at least one path")
            if spec.get("kind") == "stdlib":
                if spec.get("paths"):
                    problems.append(f"sources.{name}.paths: a source of kind 'stdlib' reads the running Python; remove it")
                if spec.get("part") is None:
                    problems.append(f"sources.{name}.part: a source of kind 'stdlib' needs part: code or part: text")
        return problems
