"""`codemix prep shards`: every source tokenised, divided, checked for leakage, written.

Each source's training split is written while its documents are read; once all training splits stand, held-out
documents are compared with them and written. So an interrupted run resumes at the first source that is not finished.
The result does not depend on the number of workers.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_prep.held_out import repeated_hashes
from data_prep.leakage import ANY_BLOCK, Blocks, blocks_seen, pack_ranges
from data_prep.shards import (
    Job,
    finished_split,
    finished_train,
    held_out_tokens,
    make_job,
    make_train,
    make_valid,
    remove_split,
    tokenizer_folder,
)
from data_prep.tokenise import start_worker
from data_prep.workers import Workers, num_workers
from megatron_codemix.arguments import ArgumentParser
from megatron_codemix.config import PrepConfig, load_config
from megatron_codemix.errors import UserError
from megatron_codemix.progress import progress
from megatron_codemix.shards import Manifest
from megatron_codemix.tokenizer import Tokenizer


def main(argv: Sequence[str]) -> int:
    """`codemix prep shards PREP.yaml [a.b=c …] [--force]`."""
    parser = ArgumentParser(prog="codemix prep shards", description=__doc__)
    parser.add_argument("config", type=Path, help="prep file, see docs/data-preparation.md")
    parser.add_argument("overrides", nargs="*", metavar="a.b=c", help="fields of the prep file to set")
    parser.add_argument("--force", action="store_true", help="make splits anew that are there already")
    arguments = parser.parse_args(argv)
    prepare_shards(load_config(arguments.config, PrepConfig, arguments.overrides), force=arguments.force)
    return 0


def prepare_shards(config: PrepConfig, *, force: bool = False) -> dict[str, dict[str, Manifest]]:
    """Make what is missing below `config.output`; returns source → split → manifest, and prints a line for each.

    Raises UserError for bad input and for splits that were made otherwise (unless `force`).
    """
    tokenizer = Tokenizer.load(tokenizer_folder(config))
    jobs = [make_job(config, name, tokenizer) for name in config.sources]
    if force:
        for job in jobs:
            remove_split(job.valid)
            remove_split(job.train)
    problems: list[str] = []
    for job in jobs:
        try:
            finished_split(job.train, job)
            finished_split(job.valid, job)
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError(*problems)
    made: dict[str, dict[str, Manifest]] = {}
    count = num_workers(config.workers, sum(job.input_bytes for job in jobs))
    with Workers(count, start_worker, (tokenizer,)) as workers:
        for job in jobs:
            manifest = finished_train(job)
            word = "already there" if manifest else "made"
            made[job.name] = {"train": manifest or make_train(job, workers)}
            print(_line(job.train, made[job.name]["train"], word), flush=True)
        if config.split.validation:
            held_out = _held_out(jobs, {name: splits["train"] for name, splits in made.items()}, workers)
            for name, (manifest, word) in held_out.items():
                made[name]["valid"] = manifest
                print(_line(config.output / name / "valid", manifest, word), flush=True)
    return made


def _held_out(jobs: list[Job], trains: dict[str, Manifest], workers: Workers) -> dict[str, tuple[Manifest, str]]:
    checked_against = {name: manifest.fingerprint for name, manifest in trains.items()}
    found = {job.name: finished_split(job.valid, job) for job in jobs}
    stale = [job.valid for job in jobs if (manifest := found[job.name]) and manifest.prep.get("checked_against") != checked_against]
    if stale:
        raise UserError(
            *(f"{folder}: was checked for leakage against other training documents; make it anew with --force" for folder in stale)
        )
    done = {name: (manifest, "already there") for name, manifest in found.items() if manifest}
    pending = [job for job in jobs if job.name not in done]
    if not pending:
        return done
    hashes = np.array([document.hash for job in pending for document in job.aside.documents()], np.uint64)
    repeated = repeated_hashes(hashes, (chunk for job in jobs for chunk in job.aside.training_hashes()))
    dtype = next(iter(trains.values())).dtype
    blocks = Blocks.of((tokens for job in pending for _, tokens in held_out_tokens(job)), dtype)
    seen = _search(jobs, trains, blocks, workers)
    made = {job.name: (make_valid(job, repeated, blocks, seen, checked_against), "made") for job in pending}
    return {job.name: {**done, **made}[job.name] for job in jobs}


def _search(jobs: list[Job], trains: dict[str, Manifest], blocks: Blocks, workers: Workers) -> np.ndarray:
    """Look through every training split; which of `blocks` occur in them: bool."""
    seen = np.zeros(blocks.hashes.size, bool)
    num_tokens = sum(manifest.num_tokens for manifest in trains.values())
    with tempfile.TemporaryDirectory() as folder, progress("compare held-out documents with training", num_tokens, "tokens") as bar:
        file = Path(folder, "blocks.npz")
        blocks.save(file)
        ranges = [item for job in jobs for item in pack_ranges(file, job.train, trains[job.name])]
        for item, places in zip(ranges, workers.map(blocks_seen, ranges), strict=True):
            seen[places] = True
            bar.advance(item.num_tokens)
    return seen


def _line(folder: Path, manifest: Manifest, word: str) -> str:
    skipped = "".join(f", {count:,} {reason}" for reason, count in manifest.skipped.items())
    leaked = f", {manifest.leakage[ANY_BLOCK]:,} leak by some block" if ANY_BLOCK in manifest.leakage else ""
    ratio = manifest.num_bytes / max(1, manifest.num_tokens)
    return (
        f"{folder}: {word}: {manifest.num_documents:,} documents, {manifest.num_bytes / 1e6:,.2f} MB, {manifest.num_tokens:,} tokens "
        f"({ratio:.2f} bytes a token), {len(manifest.shards)} shards{skipped}{leaked}"
    )
