"""Many shards → a split: a folder that counts as one only once its manifest is written, last.

One process: `with SplitWriter(folder, …) as writer: writer.add(…)`.
Many processes: the parent calls `begin_split(folder)`, each worker writes whole shards with `ShardWriter`
and sends back the `ShardInfo`, the parent ends with `write_manifest(folder, infos, …)`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from megatron_codemix.errors import UserError
from megatron_codemix.files import write_json
from megatron_codemix.shards.layout import FORMAT_VERSION, Modality, TokenDtype
from megatron_codemix.shards.manifest import MANIFEST_NAME, Manifest, ShardInfo, codemix_version
from megatron_codemix.shards.writer import Segments, ShardWriter

# Says that the shard files beside it are ours and not yet a split, so that the next attempt may remove them.
_UNFINISHED = ".unfinished"
_OURS = re.compile(r"shard-[A-Za-z0-9_-]+\.(tar|index\.npy)|\.shard-[A-Za-z0-9_-]+\.(tar|index\.npy)\.[0-9a-f-]+\.tmp")


def begin_split(folder: Path, *, keep: bool = False) -> None:
    """Make `folder` ready to receive a split; what an interrupted attempt of ours left there is removed, or with `keep` stays.

    keep: for who goes on with the shards that are there, and has looked at the manifest, which goes.
    Raises UserError when it holds a finished split (without `keep`), or shard files that no attempt of ours left: neither
    is ever overwritten silently.
    """
    folder = Path(folder)
    finished = (folder / MANIFEST_NAME).exists()
    if finished and not keep:
        raise UserError(f"{folder}: holds a finished split already; remove that folder, or give another output")
    folder.mkdir(parents=True, exist_ok=True)
    marker = folder / _UNFINISHED
    ours = sorted(path for path in folder.iterdir() if _OURS.fullmatch(path.name))
    if ours and not finished and not marker.exists():
        raise UserError(f"{folder}: holds {ours[0].name}, but no manifest; remove that folder, or give another output")
    marker.touch()  # before the manifest goes: shards without either belong to nobody
    (folder / MANIFEST_NAME).unlink(missing_ok=True)
    for path in [] if keep else ours:
        path.unlink()


def is_split(folder: Path) -> bool:
    """Whether `folder` is a split, finished or not: opening one that is not says so."""
    folder = Path(folder)
    return (folder / MANIFEST_NAME).exists() or (folder / _UNFINISHED).exists() or any(folder.glob("shard-*.tar"))


def _total(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for count in counts:
        total.update(count)
    return dict(sorted(total.items()))


def write_manifest(
    folder: Path,
    infos: Sequence[ShardInfo],
    *,
    source: str,
    split: str,
    modality: Modality,
    token_dtype: TokenDtype,
    tokenizer_fingerprint: str,
    vocab_size: int,
    end_of_text_id: int,
    prep: Mapping[str, Any],
    skipped: Mapping[str, int] | None = None,
    decontaminated_against: Sequence[str] = (),
    leakage: Mapping[str, int] | None = None,
) -> Manifest:
    """Publish a split: write the manifest of shards that are already in `folder`, in the given order.

    infos: what `ShardWriter.close` returned, from any process. prep: JSON values. skipped: reason → documents.
    leakage: rule → held-out documents. Returns the manifest as a reader will see it.
    """
    folder = Path(folder)
    entries = [info.entry for info in infos]
    values = {
        "format_version": FORMAT_VERSION,
        "source": source,
        "split": split,
        "modality": modality,
        "token_dtype": token_dtype,
        "tokenizer_fingerprint": tokenizer_fingerprint,
        "vocab_size": vocab_size,
        "end_of_text_id": end_of_text_id,
        "num_tokens": sum(entry.num_tokens for entry in entries),
        "num_documents": sum(entry.num_documents for entry in entries),
        "num_bytes": sum(entry.num_bytes for entry in entries),
        "shards": [entry.model_dump() for entry in entries],
        "languages": _total(info.languages for info in infos),
        "licenses": _total(info.licenses for info in infos),
        "prep": dict(prep),
        "skipped": _total([skipped or {}]),
        "decontaminated_against": list(decontaminated_against),
        "leakage": _total([leakage or {}]),
        "created_by": f"codemix {codemix_version()}",
    }
    Manifest.model_validate(values)
    write_json(folder / MANIFEST_NAME, values)
    (folder / _UNFINISHED).unlink(missing_ok=True)
    return Manifest.load(folder)


class SplitWriter:
    """Writes a whole split from one process, opening a new shard whenever one is full.

    As a context manager it publishes the split at the end, and after an exception leaves a folder without
    manifest, which no reader takes for a split. pack_tokens, shard_tokens: a pack (a shard) is closed once it
    holds at least so many tokens; documents are never cut.
    """

    def __init__(
        self,
        folder: Path,
        *,
        source: str,
        split: str,
        modality: Modality,
        token_dtype: TokenDtype,
        tokenizer_fingerprint: str,
        vocab_size: int,
        end_of_text_id: int,
        pack_tokens: int,
        shard_tokens: int,
        prep: Mapping[str, Any],
    ) -> None:
        self._folder = Path(folder)
        self._shard_tokens = shard_tokens
        self._shard_settings: dict[str, Any] = {
            "modality": modality,
            "token_dtype": token_dtype,
            "vocab_size": vocab_size,
            "end_of_text_id": end_of_text_id,
        }
        self._manifest_settings = {
            **self._shard_settings,
            "source": source,
            "split": split,
            "tokenizer_fingerprint": tokenizer_fingerprint,
            "prep": prep,
        }
        self._pack_tokens = pack_tokens
        self._infos: list[ShardInfo] = []
        self._shard: ShardWriter | None = None
        begin_split(self._folder)

    def add(
        self,
        tokens: np.ndarray,
        num_bytes: int,
        document_id: int,
        segments: Segments | None = None,
        language: str | None = None,
        license: str | None = None,
    ) -> None:
        """Append one document; see `ShardWriter.add`."""
        if self._shard is None:
            self._shard = ShardWriter(self._folder, len(self._infos), pack_tokens=self._pack_tokens, **self._shard_settings)
        self._shard.add(tokens, num_bytes, document_id, segments, language, license)
        if self._shard.num_tokens >= self._shard_tokens:
            self._close_shard()

    def _close_shard(self) -> None:
        if self._shard is not None:
            self._infos.append(self._shard.close())
            self._shard = None

    def close(
        self,
        skipped: Mapping[str, int] | None = None,
        decontaminated_against: Sequence[str] = (),
        leakage: Mapping[str, int] | None = None,
        prep: Mapping[str, Any] | None = None,
    ) -> Manifest:
        """Publish the split; see `write_manifest`. A split may be empty: it then has no shards.

        prep: replaces what was given at the beginning, for what only reading to the end shows.
        """
        self._close_shard()
        if prep is not None:
            self._manifest_settings["prep"] = prep
        return write_manifest(
            self._folder,
            self._infos,
            skipped=skipped,
            decontaminated_against=decontaminated_against,
            leakage=leakage,
            **self._manifest_settings,
        )

    def __enter__(self) -> SplitWriter:
        return self

    def __exit__(self, kind, error: BaseException | None, traceback) -> None:
        if error is not None:
            if self._shard is not None:
                self._shard.abort(error)
        elif not (self._folder / MANIFEST_NAME).exists():
            self.close()
