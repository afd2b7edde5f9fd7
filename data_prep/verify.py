"""`codemix prep verify FOLDER`: is every split below FOLDER whole, and made with the tokenizer beside it?

codemix prep verify OUTPUT              # everything 'codemix prep shards' wrote
codemix prep verify OUTPUT/SOURCE/train # one split
"""

from __future__ import annotations

import gzip
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import orjson

from data_prep.held_out import DOCUMENTS_NAME
from data_prep.megatron import original_index
from megatron_codemix.arguments import ArgumentParser
from megatron_codemix.errors import UserError
from megatron_codemix.files import sha256_file
from megatron_codemix.progress import progress
from megatron_codemix.shards import MANIFEST_NAME, Manifest, Pack, SplitReader, document_id, is_split, verify_split
from megatron_codemix.tokenizer import Tokenizer

# OUTPUT/SOURCE/SPLIT: a split lies at most two folders below what the user names.
_DEPTH = 2


def find_splits(folder: Path) -> list[Path]:
    """Splits at `folder` or below it (a source, a whole output), sorted.

    One without a manifest counts: it is what an interrupted `codemix prep shards` leaves, and reading it says
    so. Hidden folders are left alone. Raises UserError when there is none.
    """
    folder = Path(folder)
    if folder.parts and folder.parts[0].endswith(":"):  # s3://bucket, of which Path has made s3:/bucket
        raise UserError(f"{folder}: lies in a store, and its shards are verified as training fetches them; copy it here to verify it")
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give a split, a source, or the output of 'codemix prep shards'")
    found: list[Path] = []
    level = [folder]
    for _ in range(_DEPTH + 1):
        splits = [path for path in level if is_split(path)]
        found += splits
        inner = [path for path in level if path not in splits]
        level = [child for path in inner for child in path.iterdir() if child.is_dir() and not child.name.startswith(".")]
    if not found:
        raise UserError(f"{folder}: holds no split; give a split, a source, or the output of 'codemix prep shards'")
    return sorted(found)


def tokenizer_folder(split: Path) -> Path:
    """OUTPUT/tokenizer of OUTPUT/SOURCE/SPLIT."""
    return Path(split).resolve().parent.parent / "tokenizer"


def load_tokenizer(split: Path, manifest: Manifest) -> Tokenizer:
    """The tokenizer a split was made with; raises UserError when it is missing or another one."""
    folder = tokenizer_folder(split)
    tokenizer = Tokenizer.load(folder)
    if tokenizer.fingerprint != manifest.tokenizer_fingerprint:
        raise UserError(
            f"{folder}: fingerprint {tokenizer.fingerprint[:12]}…, but {split} was made with {manifest.tokenizer_fingerprint[:12]}…;"
            " put that tokenizer back, or make the shards anew with 'codemix prep shards'"
        )
    expected = (manifest.vocab_size, manifest.end_of_text_id)
    if (tokenizer.vocab_size, tokenizer.end_of_text_id) != expected:
        raise UserError(
            f"{split}: vocab_size and end_of_text_id {expected} are not its tokenizer's; make it anew with 'codemix prep shards'"
        )
    return tokenizer


@dataclass(frozen=True)
class Verdict:
    """What verification found about one split."""

    split: Path
    manifest: Manifest | None
    """None when it could not be read."""
    problems: tuple[str, ...]
    """A line each; empty: the split is whole."""

    def line(self) -> str:
        """The line that says so: "OK FOLDER: …", for a split without problems."""
        assert self.manifest is not None
        manifest = self.manifest
        return (
            f"OK {self.split}: {len(manifest.shards):,} shards, {manifest.num_documents:,} documents, "
            f"{manifest.num_tokens:,} tokens, {manifest.num_bytes:,} bytes"
        )


def verify(folder: Path, on_verdict: Callable[[Verdict], None] = lambda verdict: None) -> list[Verdict]:
    """Verify every split at or below `folder`; shows progress.

    For each split: `verify_split` (checksums, structure, counts); the tokenizer in OUTPUT/tokenizer is the one it
    was made with; the bytes its tokens stand for are the bytes each document claims; no document of a held-out
    split lies in the training split of its source, by its id; and a held-out split's texts are its documents.
    on_verdict is told each as it is found.
    Raises UserError when there is no split at all.
    """
    splits = find_splits(folder)
    total = sum(path.stat().st_size for split in splits for path in split.glob("shard-*.tar"))
    verdicts = []
    with progress("verify", total / 1e6, "MB") as bar:
        for split in splits:
            verdict = _verify(split, lambda amount: bar.advance(amount / 1e6))
            verdicts.append(verdict)
            on_verdict(verdict)
    return verdicts


def _verify(split: Path, on_bytes: Callable[[int], None]) -> Verdict:
    problems = verify_split(split, on_bytes)
    try:
        manifest = Manifest.load(split)
    except UserError:
        return Verdict(split, None, tuple(problems))
    tokenizer = None
    try:
        tokenizer = load_tokenizer(split, manifest)
    except UserError as error:
        problems += error.problems
    if not problems and tokenizer is not None:
        reader = SplitReader(split)
        problems += _wrong_bytes(reader.packs(), tokenizer, split)
        problems += _held_out_in_train(reader)
        problems += _wrong_texts(reader)
        problems += _wrong_index(reader)
    return Verdict(split, manifest, tuple(problems))


def _wrong_bytes(packs: Iterable[Pack], tokenizer: Tokenizer, split: Path) -> list[str]:
    """Bits per byte divide by these numbers, so they must be what the tokens stand for."""
    table = tokenizer.token_num_bytes
    wrong, example = 0, ""
    for pack in packs:
        found = np.add.reduceat(table[pack.tokens], pack.documents["token_start"].astype(np.int64))
        different = np.flatnonzero(found != pack.documents["num_bytes"].astype(np.int64))
        if different.size and not wrong:
            row = pack.documents[different[0]]
            example = f"{int(row['document_id']):016x} claims {int(row['num_bytes'])}, its tokens stand for {int(found[different[0]])}"
        wrong += different.size
    if not wrong:
        return []
    return [f"{split}: {wrong:,} documents with a wrong number of bytes (the first: {example}); make it anew with 'codemix prep shards'"]


def _wrong_texts(reader: SplitReader) -> list[str]:
    """The texts beside a held-out split, which `codemix eval` scores, are the documents of its shards."""
    path = reader.local_folder / DOCUMENTS_NAME
    digest = reader.manifest.prep.get("documents_sha256")
    if not path.exists():
        return [f"{path}: is missing; make the split anew with 'codemix prep shards'"] if digest else []
    if digest and sha256_file(path) != digest:
        return [f"{path}: altered (its sha256 is not the manifest's); restore it, or make the split anew with 'codemix prep shards'"]
    in_shards = Counter((int(row["document_id"]), int(row["num_bytes"])) for pack in reader.packs() for row in pack.documents)
    in_file: Counter[tuple[int, int]] = Counter()
    try:
        with gzip.open(path) as lines:
            for line in lines:
                document = orjson.loads(line)
                in_file[document_id(document["id"]), len(document["text"].encode("utf-8"))] += 1
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError, AttributeError) as error:
        return [f"{path}: cannot be read ({error!r}); make the split anew with 'codemix prep shards'"]
    missing, surplus = (in_shards - in_file).total(), (in_file - in_shards).total()
    if not missing and not surplus:
        return []
    return [f"{path}: lacks {missing:,} of the split's documents and has {surplus:,} others; make it anew with 'codemix prep shards'"]


def _wrong_index(reader: SplitReader) -> list[str]:
    """The index of a Megatron corpus that a split keeps for the way back."""
    try:
        original_index(reader)
    except UserError as error:
        return list(error.problems)
    return []


def _document_ids(reader: SplitReader) -> Iterable[np.ndarray]:
    return (pack.documents["document_id"] for pack in reader.packs())


def _held_out_in_train(train: SplitReader) -> list[str]:
    """Checked at the training split, against its held-out sibling; memory grows with the held-out one only."""
    sibling = train.local_folder.parent / "valid"
    if train.manifest.split != "train" or not (sibling / MANIFEST_NAME).is_file():
        return []
    try:
        held_out = np.unique(np.concatenate([np.empty(0, np.uint64), *_document_ids(SplitReader(sibling))]))
    except UserError:
        return []  # the sibling's own verdict says what is wrong with it
    shared = sum(int(np.isin(ids, held_out).sum()) for ids in _document_ids(train))
    if not shared:
        return []
    return [f"{train.folder}: {shared:,} of its documents are also in {sibling}; make both anew with 'codemix prep shards'"]


def main_verify(argv: Sequence[str]) -> int:
    """`codemix prep verify FOLDER`; raises UserError with every problem found."""
    parser = ArgumentParser(prog="codemix prep verify", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="a split, a source, or a whole output of 'codemix prep shards'")
    arguments = parser.parse_args(argv)
    verdicts = verify(arguments.folder, lambda verdict: None if verdict.problems else print(verdict.line(), flush=True))
    problems = [problem for verdict in verdicts for problem in verdict.problems]
    if problems:
        raise UserError(*problems)
    return 0
