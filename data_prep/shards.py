"""One source → its training split, its held-out documents kept aside, and at last its held-out split."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.documents import Source, Tally
from data_prep.held_out import DOCUMENTS_NAME, Aside, HeldOut, write_documents, writing_aside
from data_prep.leakage import DUPLICATE, Blocks, count_leakage
from data_prep.sources import open_source
from data_prep.tokenise import Part, Settings, Task, tokenise
from data_prep.unique import UniqueIds
from data_prep.workers import Workers
from megatron_codemix.config import PrepConfig
from megatron_codemix.errors import UserError
from megatron_codemix.files import sha256_file, sha256_json
from megatron_codemix.progress import progress
from megatron_codemix.shards import MANIFEST_NAME, Manifest, SplitWriter, document_id, token_dtype_for
from megatron_codemix.tokenizer import Tokenizer

_BATCH_DOCUMENTS = 256


@dataclass(frozen=True)
class Job:
    """One source and where it goes."""

    name: str
    config: PrepConfig
    tokenizer: Tokenizer
    source: Source
    settings: dict[str, Any]
    """What decides about its shards, besides the tokenizer; recorded in the manifests as `prep`."""
    input_bytes: int

    @property
    def train(self) -> Path:
        """Folder of the training split."""
        return self.config.output / self.name / "train"

    @property
    def valid(self) -> Path:
        """Folder of the held-out split."""
        return self.config.output / self.name / "valid"

    @property
    def aside(self) -> Aside:
        """Held-out documents before they are checked."""
        return Aside(self.config.output / self.name / ".held-out")

    def writer(self, folder: Path, prep: dict[str, Any]) -> SplitWriter:
        """A writer of the split in `folder`."""
        return SplitWriter(
            folder,
            source=self.name,
            split=folder.name,
            modality=self.config.sources[self.name].modality,
            token_dtype=token_dtype_for(self.tokenizer.vocab_size),
            tokenizer_fingerprint=self.tokenizer.fingerprint,
            vocab_size=self.tokenizer.vocab_size,
            end_of_text_id=self.tokenizer.end_of_text_id,
            pack_tokens=self.config.pack_tokens,
            shard_tokens=self.config.shard_tokens,
            prep=prep,
        )


def tokenizer_folder(config: PrepConfig) -> Path:
    """Where `prep tokenizer` writes and everything else reads."""
    return config.output / "tokenizer"


def make_job(config: PrepConfig, name: str, tokenizer: Tokenizer) -> Job:
    """Look at the source's inputs. Raises UserError where they are missing."""
    spec = config.sources[name]
    source = open_source(name, spec)
    inputs = source.inputs()
    size = sum(item[1] for item in inputs)
    settings = {
        "source": spec.model_dump(mode="json"),
        "split": config.split.model_dump(mode="json"),
        "pack_tokens": config.pack_tokens,
        "shard_tokens": config.shard_tokens,
        "inputs": {"files": len(inputs), "bytes": size, "sha256": sha256_json(inputs)},
    }
    return Job(name, config, tokenizer, source, settings, size)


def finished_split(folder: Path, job: Job) -> Manifest | None:
    """The manifest in `folder` if it is what this job would make; None if there is none.

    Raises UserError when the split there was made otherwise: it is never overwritten without --force.
    """
    if not (folder / MANIFEST_NAME).exists():
        return None
    manifest = Manifest.load(folder)
    if manifest.tokenizer_fingerprint != job.tokenizer.fingerprint:
        raise UserError(
            f"{folder}: was made with another tokenizer (sha256 {manifest.tokenizer_fingerprint[:12]}…, the one in "
            f"{tokenizer_folder(job.config)} is {job.tokenizer.fingerprint[:12]}…); make it anew with --force, or give another output"
        )
    differing = [key for key, value in job.settings.items() if manifest.prep.get(key) != value]
    if differing:
        raise UserError(
            f"{folder}: a finished split, made with other settings ({', '.join(differing)} changed); "
            "make it anew with --force, or give another output"
        )
    return manifest


def finished_train(job: Job) -> Manifest | None:
    """The training split's manifest, if it stands and its held-out documents are still aside."""
    manifest = finished_split(job.train, job)
    return manifest if manifest is not None and job.aside.matches(job.settings) else None


def remove_split(folder: Path) -> None:
    """Remove a split of ours; the manifest first, so that the rest is never taken for whole."""
    if (folder / MANIFEST_NAME).exists():
        (folder / MANIFEST_NAME).unlink()
        shutil.rmtree(folder)


def _add(writer: SplitWriter, part: Part) -> None:
    start = 0
    rows = zip(part.num_tokens, part.num_bytes, part.document_ids, part.languages, part.licenses, strict=True)
    for size, num_bytes, identity, language, license in rows:
        writer.add(part.tokens[start : start + size], num_bytes, identity, language=language, license=license)
        start += size


def make_train(job: Job, workers: Workers) -> Manifest:
    """Read the source once: write its training split and keep its held-out documents aside.

    workers: started with `tokenise.start_worker`.
    Raises UserError for bad input, when two documents share a name, when no document is left for training, or when none
    is held out though some should be; EngineMismatch when the fast engine differs from SentencePiece.
    """
    remove_split(job.train)
    skipped: Counter[str] = Counter()
    split, spec = job.config.split, job.config.sources[job.name]
    settings = Settings(split.validation, split.seed, spec.max_document_bytes)
    with job.writer(job.train, job.settings) as writer:
        with writing_aside(job.aside, job.settings) as aside, progress(f"tokenise {job.name}", job.input_bytes, "bytes of input") as bar:
            num_documents = num_cut = text_bytes = 0
            ids = UniqueIds()
            for result in workers.map(tokenise, (Task(unit, settings) for unit in job.source.units())):
                if spec.id_field is not None:  # all other names are made unique
                    _check_unique(job, ids.add(result.train.document_ids + result.held_out.document_ids))
                _add(writer, result.train)
                aside.add(result)
                skipped += result.skipped
                num_cut += result.num_cut
                num_documents += len(result.train.num_bytes)
                text_bytes += result.text_bytes
                bar.advance(result.input_bytes, f"{text_bytes / 1e6:,.1f} MB of text")
            _check_unique(job, ids.repeated())
            _check_counts(job, num_documents, aside.num_held_out, skipped)
        return writer.close(skipped, prep={**job.settings, "documents_cut": num_cut})


def _check_unique(job: Job, repeated: int | None) -> None:
    if repeated is None:
        return
    names = (document.name for unit in job.source.units() for document in unit.documents(Tally()))
    name = next(name for name in names if document_id(name) == repeated)
    raise UserError(
        f"sources.{job.name}.id_field: several documents are named '{name}'; name a field that tells them apart, "
        "give group_field (names then begin with the group), or leave id_field out"
    )


def _check_counts(job: Job, num_documents: int, num_held_out: int, skipped: Counter[str]) -> None:
    where = f"sources.{job.name}"
    if not num_documents and not num_held_out:
        reasons = ", ".join(f"{count} {reason}" for reason, count in skipped.items() if count)
        raise UserError(f"{where}: holds no document{f' ({reasons})' if reasons else ''}; give files that do")
    if not num_documents:
        raise UserError(f"{where}: all of its {num_held_out} documents are held out; lower split.validation, or give more documents")
    if job.config.split.validation and not num_held_out:
        raise UserError(
            f"{where}: none of its {num_documents} documents is held out (split.validation {job.config.split.validation} of its groups); "
            "raise split.validation, change split.seed, or set split.validation=0 for no held-out split"
        )


def held_out_tokens(job: Job) -> Iterator[tuple[HeldOut, np.ndarray]]:
    """Held-out documents with their tokens, without end of text."""
    batch: list[HeldOut] = []
    for document in job.aside.documents():
        batch.append(document)
        if len(batch) == _BATCH_DOCUMENTS:
            yield from zip(batch, job.tokenizer.encode_batch([item.text for item in batch]), strict=True)
            batch = []
    yield from zip(batch, job.tokenizer.encode_batch([item.text for item in batch]), strict=True)


def make_valid(job: Job, repeated: set[int], blocks: Blocks, seen: np.ndarray, checked_against: dict[str, str]) -> Manifest:
    """Write the held-out split, without the documents whose `text_hash` is in `repeated`.

    seen: which of `blocks` occur in training: bool. checked_against: source → fingerprint of its training split.
    """
    remove_split(job.valid)
    kept = (document for document in job.aside.documents() if document.hash not in repeated)
    job.valid.mkdir(parents=True, exist_ok=True)
    write_documents(job.valid / DOCUMENTS_NAME, kept)
    prep = {**job.settings, "checked_against": checked_against, "documents_sha256": sha256_file(job.valid / DOCUMENTS_NAME)}
    num_dropped = num_kept = 0
    closing = np.array([job.tokenizer.end_of_text_id], np.uint32)
    with job.writer(job.valid, prep) as writer:
        for document, tokens in held_out_tokens(job):
            if document.hash in repeated:
                num_dropped += 1
                continue
            num_kept += 1
            writer.add(
                np.concatenate([tokens, closing]),
                len(document.text.encode("utf-8")),
                document_id(document.id),
                language=document.language,
                license=document.license,
            )
        if not num_kept:
            raise UserError(
                f"sources.{job.name}: all of its {num_dropped} held-out documents also occur in training; "
                "change split.seed, group them by sources.NAME.group_field, or give a corpus without duplicates"
            )
        leakage = count_leakage((tokens for document, tokens in held_out_tokens(job) if document.hash not in repeated), blocks, seen)
        return writer.close({DUPLICATE: num_dropped} if num_dropped else {}, leakage=leakage)
