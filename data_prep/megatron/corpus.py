"""Megatron-LM's tokenised corpora (PREFIX.bin, PREFIX.idx) ↔ shards, bit for bit, both ways.

codemix prep to-megatron OUTPUT/SOURCE/train corpora/source
codemix prep from-megatron corpora/source OUTPUT --source SOURCE --tokenizer TOKENIZER --modality code
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from data_prep.megatron.index import MegatronIndex, token_dtype, write_index
from megatron_codemix.config import PrepConfig
from megatron_codemix.errors import UserError
from megatron_codemix.files import atomic_directory, atomic_file, sha256_file
from megatron_codemix.progress import progress
from megatron_codemix.shards import Manifest, Modality, SplitReader, SplitWriter, document_id, token_dtype_for
from megatron_codemix.tokenizer import Tokenizer

INDEX_NAME = "megatron.idx"
"""In a split made of a corpus whose index does not follow from the shards: a copy of it, for the way back."""
_BLOCK_TOKENS = 1 << 22


class Written(NamedTuple):
    """What `to_megatron` wrote."""

    documents: int
    sequences: int
    tokens: int
    packs_with_segments: int
    """Packs whose segments the files cannot hold."""


def to_megatron(split: Path, prefix: Path, force: bool = False) -> Written:
    """Write a split as PREFIX.bin and PREFIX.idx: a sequence a document, end of text included, in Megatron's dtype for the vocabulary.

    A split that `from_megatron` made gives back the very files it was made of. Memory is bounded.
    Raises UserError for a damaged or empty split, and where the files are there already without `force`.
    """
    reader = SplitReader(split)
    idx, out = Path(f"{prefix}.idx"), Path(f"{prefix}.bin")
    for path in (out, idx):
        if path.exists() and not force:
            raise UserError(f"{path}: is there already; remove it, give another PREFIX, or --force")
    dtype = np.dtype(_origin(reader.manifest).get("dtype", token_dtype(reader.manifest.vocab_size)))
    original = original_index(reader)
    if not reader.manifest.num_documents:
        raise UserError(f"{split}: holds no document, and Megatron cannot read an empty corpus; give another split")
    with atomic_file(idx) as index_file:
        with atomic_file(out) as handle, progress(f"write {out.name}", reader.manifest.num_tokens, "tokens") as bar:
            segmented = 0
            if original is None:
                segmented = _write_packs(reader, handle, dtype, bar)
                write_index(index_file, dtype, reader.manifest.num_documents, _lengths(reader), _lengths(reader))
            else:
                _write_as_before(reader, original, dtype, handle, bar)
                with open(original, "rb") as content:
                    shutil.copyfileobj(content, index_file)
            idx.unlink(missing_ok=True)  # an old index never stands beside a new .bin
    made = MegatronIndex(prefix)
    return Written(made.num_documents, made.num_sequences, made.num_tokens, segmented)


def _origin(manifest: Manifest) -> dict[str, Any]:
    origin = manifest.prep.get("megatron")
    return origin if isinstance(origin, dict) else {}


def original_index(reader: SplitReader) -> Path | None:
    """The index of the corpus that a split was made of, where it does not follow from the split. Raises UserError where it has gone."""
    digest = _origin(reader.manifest).get("index_sha256")
    if not digest:
        return None
    path = reader.local_folder / INDEX_NAME
    if not path.is_file() or sha256_file(path) != digest:
        raise UserError(f"{path}: missing or altered; restore it, or make the split anew with 'codemix prep from-megatron'")
    return path


def _write_packs(reader: SplitReader, out: BinaryIO, dtype: np.dtype, bar) -> int:
    segmented = 0
    for pack in reader.packs():
        out.write(pack.tokens.astype(dtype).data)
        segmented += pack.segments is not None
        bar.advance(pack.tokens.size)
    return segmented


def _lengths(reader: SplitReader) -> Iterator[np.ndarray]:
    """Tokens of each document, a pack at a time."""
    for pack in reader.packs():
        yield np.diff(pack.documents["token_start"].astype(np.int64), append=pack.tokens.size)


def _write_as_before(reader: SplitReader, original: Path, dtype: np.dtype, out: BinaryIO, bar) -> None:
    """The corpus's own documents: without the ends of text that `from_megatron` added."""
    wanted = (int(size) for _, bounds in MegatronIndex(original.with_suffix(""), bin=False).document_bounds() for size in np.diff(bounds))
    left = 0
    for document in reader.documents():
        while not left:
            left = next(wanted, -1)
        surplus = document.tokens.size - min(document.tokens.size, left)
        if left < 0 or surplus > 1:
            raise UserError(f"{original}: is not the index of this split; make the split anew with 'codemix prep from-megatron'")
        out.write(document.tokens[: document.tokens.size - surplus].astype(dtype).data)
        left -= document.tokens.size - surplus
        bar.advance(document.tokens.size)
    if left or any(wanted):
        raise UserError(f"{original}: is not the index of this split; make the split anew with 'codemix prep from-megatron'")


class _Piece(NamedTuple):
    """A document of ours: a stretch of a document of the corpus that ends with end of text, or its end."""

    name: str
    tokens: np.ndarray
    closed: bool
    """Whether it ended with end of text before we saw to it."""


def from_megatron(prefix: Path, output: Path, source: str, tokenizer: Path, modality: Modality, split: str = "train") -> Manifest:
    """Make the split OUTPUT/SOURCE/SPLIT of PREFIX.bin and PREFIX.idx; returns its manifest.

    A document that holds several texts (packed ones, each closed by end of text) is divided; one that is not closed is closed, which
    `prep.megatron` counts; empty ones are skipped. The sequences of a document are put end to end. The tokenizer is copied to
    OUTPUT/tokenizer unless it is there. Memory is bounded by the longest text.
    Raises UserError for files that are damaged, no text corpus, or of another tokenizer, and where the split exists.
    """
    index = MegatronIndex(prefix)
    known = Tokenizer.load(tokenizer)
    _place_tokenizer(known, Path(tokenizer), Path(output) / "tokenizer")
    if not index.num_tokens:
        raise UserError(f"{index.bin_path}: holds no tokens; give a corpus with documents")
    defaults = {name: PrepConfig.model_fields[name].default for name in ("pack_tokens", "shard_tokens")}
    writer = SplitWriter(
        Path(output) / source / split,
        source=source,
        split=split,
        modality=modality,
        token_dtype=token_dtype_for(known.vocab_size),
        tokenizer_fingerprint=known.fingerprint,
        vocab_size=known.vocab_size,
        end_of_text_id=known.end_of_text_id,
        prep={},
        **defaults,
    )
    with writer, progress(f"read {index.bin_path.name}", index.num_tokens, "tokens") as bar:
        counts: Counter[str] = Counter()
        for piece in _pieces(index, known, counts, bar):
            tokens = piece.tokens if piece.closed else np.append(piece.tokens, piece.tokens.dtype.type(known.end_of_text_id))
            counts["end_of_text_added"] += not piece.closed
            counts["pieces"] += 1
            writer.add(tokens, int(known.token_num_bytes[tokens].sum()), document_id(piece.name))
        origin = {"prefix": Path(prefix).name, "dtype": index.dtype.str, "documents": index.num_documents, "sequences": index.num_sequences}
        origin |= {"end_of_text_added": counts["end_of_text_added"], "index_sha256": None}
        follows = counts["pieces"] == index.num_documents == index.num_sequences and not counts["end_of_text_added"] and not counts["empty"]
        if not follows:
            with open(index.path, "rb") as content, atomic_file(Path(output) / source / split / INDEX_NAME) as copy:
                shutil.copyfileobj(content, copy)
            origin["index_sha256"] = sha256_file(Path(output) / source / split / INDEX_NAME)
        return writer.close({"empty": counts["empty"]} if counts["empty"] else {}, prep={"megatron": origin, **defaults})


def _pieces(index: MegatronIndex, tokenizer: Tokenizer, counts: Counter[str], bar) -> Iterator[_Piece]:
    """Our documents, in order; `counts` is told of the corpus's empty ones. Raises UserError for tokens outside of the vocabulary."""
    everything, end = index.tokens(), tokenizer.end_of_text_id
    stem = index.bin_path.stem
    for first, bounds in index.document_bounds():
        counts["empty"] += int((np.diff(bounds) == 0).sum())
        carried: list[np.ndarray] = []
        inner = _Numbering(stem)
        for start in range(int(bounds[0]), int(bounds[-1]), _BLOCK_TOKENS):
            stop = min(start + _BLOCK_TOKENS, int(bounds[-1]))
            tokens = _checked(everything[start:stop], start, index, tokenizer)
            closing = np.flatnonzero(tokens == end) + 1
            ends = bounds[np.searchsorted(bounds, start, "right") : np.searchsorted(bounds, stop, "right")] - start
            cuts = np.union1d(closing, ends)
            documents = np.searchsorted(bounds, cuts + (start - 1), "right") - 1 + first
            for (low, high), document in zip(pairwise([0, *cuts.tolist()]), documents.tolist(), strict=True):
                part = np.concatenate([*carried, tokens[low:high]]) if carried else tokens[low:high]
                carried = []
                yield _Piece(inner.name(document), part, bool(part[-1] == end))
            last = int(cuts[-1]) if cuts.size else 0
            if last < tokens.size:
                carried.append(tokens[last:])
            bar.advance(tokens.size)
        assert not carried


class _Numbering:
    """Names of documents: PREFIX/12, and of further parts of one PREFIX/12.1, PREFIX/12.2 …"""

    def __init__(self, stem: str) -> None:
        self._stem, self._document, self._part = stem, -1, 0

    def name(self, document: int) -> str:
        self._part = self._part + 1 if document == self._document else 0
        self._document = document
        return f"{self._stem}/{document}.{self._part}" if self._part else f"{self._stem}/{document}"


def _checked(tokens: np.ndarray, start: int, index: MegatronIndex, tokenizer: Tokenizer) -> np.ndarray:
    """A block as uint32. Raises UserError for a token that the tokenizer does not have."""
    if int(tokens.min()) < 0 or int(tokens.max()) >= tokenizer.vocab_size:
        wrong = int(np.flatnonzero((tokens < 0) | (tokens >= tokenizer.vocab_size))[0])
        raise UserError(
            f"{index.bin_path}: token {int(tokens[wrong])} at place {start + wrong:,} is outside of the tokenizer's vocabulary "
            f"(0 … {tokenizer.vocab_size - 1}); give the tokenizer that the corpus was made with"
        )
    return tokens.astype(np.uint32)


def _place_tokenizer(tokenizer: Tokenizer, path: Path, folder: Path) -> None:
    """Copy the tokenizer to OUTPUT/tokenizer, where everything else looks for it. Raises UserError where another one is there."""
    if folder.exists():
        if Tokenizer.load(folder).fingerprint != tokenizer.fingerprint:
            raise UserError(f"{folder}: another tokenizer than {path}; sources of one output share theirs: give another OUTPUT")
        return
    with atomic_directory(folder) as made:
        for file in sorted(path.iterdir()) if path.is_dir() else [path]:
            if file.is_file() and not file.name.startswith("."):
                shutil.copyfile(file, made / file.name)
