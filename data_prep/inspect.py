"""`codemix prep inspect FOLDER`: what is in the splits below FOLDER, in numbers and in words.

codemix prep inspect OUTPUT --samples 3
codemix prep inspect OUTPUT/SOURCE/train --samples 5 --sequence-length 1024   # windows, as training sees them
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from data_prep.verify import find_splits, load_tokenizer
from megatron_codemix.arguments import ArgumentParser
from megatron_codemix.errors import UserError
from megatron_codemix.progress import progress
from megatron_codemix.shards import Kind, Manifest, SplitReader
from megatron_codemix.tokenizer import Tokenizer

_BAR_WIDTH = 40
_MOST_NAMES = 12
_END_OF_TEXT = "⟨end of text⟩"


def counts_table(manifest: Manifest, sequence_length: int | None = None, num_windows: int = 0) -> list[str]:
    """Lines `name  value` about a split, from its manifest."""
    documents, tokens, num_bytes = manifest.num_documents, manifest.num_tokens, manifest.num_bytes
    rows = [
        ("modality", manifest.modality),
        ("documents", f"{documents:,}"),
        ("tokens", f"{tokens:,}"),
        ("bytes", f"{num_bytes:,}"),
        ("bytes per token", f"{num_bytes / tokens:.3f}" if tokens else "–"),
        ("tokens per document", f"{tokens / documents:,.1f}" if documents else "–"),
        ("shards", f"{len(manifest.shards):,} ({sum(shard.size for shard in manifest.shards):,} bytes, {manifest.token_dtype})"),
        ("packs", f"{sum(shard.num_packs for shard in manifest.shards):,}"),
        ("tokenizer", f"{manifest.tokenizer_fingerprint[:12]}… ({manifest.vocab_size:,} pieces)"),
        ("languages", _named(manifest.languages, documents)),
        ("licences", _named(manifest.licenses, documents)),
        ("skipped", _named(manifest.skipped)),
        ("held out, also in train", _named(manifest.leakage)),
        ("decontaminated against", ", ".join(manifest.decontaminated_against) or "–"),
        ("made by", manifest.created_by),
    ]
    if sequence_length is not None:
        covered = num_windows * sequence_length
        share = f", {100 * covered / tokens:.2f} % of the tokens" if tokens else ""
        rows.insert(6, (f"windows of {sequence_length:,}", f"{num_windows:,}{share}"))
    width = max(len(name) for name, _ in rows)
    return [f"  {name:<{width}}  {value}" for name, value in rows]


def _named(counts: Mapping[str, int], total: int | None = None) -> str:
    """`Python 12, C 3, 4 more 9, not stated 2`: the most frequent first."""
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    parts = [f"{_printable(name)} {count:,}" for name, count in ranked[:_MOST_NAMES]]
    if len(ranked) > _MOST_NAMES:
        parts.append(f"{len(ranked) - _MOST_NAMES} more {sum(count for _, count in ranked[_MOST_NAMES:]):,}")
    if counts and total is not None and total > sum(counts.values()):
        parts.append(f"not stated {total - sum(counts.values()):,}")
    return ", ".join(parts) or "–"


def length_histogram(reader: SplitReader) -> np.ndarray:
    """Documents by length: element k counts those of 2ᵏ … 2ᵏ⁺¹−1 tokens, end of text included; int64."""
    counts = np.zeros(64, np.int64)
    with progress("lengths", reader.manifest.num_documents, "documents") as bar:
        for pack in reader.packs():
            lengths = np.diff(pack.documents["token_start"].astype(np.int64), append=pack.tokens.size)
            # frexp is exact for whole numbers below 2⁵³; log2 is not at powers of two.
            counts += np.bincount(np.frexp(lengths)[1] - 1, minlength=64)
            bar.advance(lengths.size)
    return np.trim_zeros(counts, "b")


def kind_counts(reader: SplitReader) -> dict[Kind, int]:
    """Tokens by the kind of the segment in which they lie, the most frequent first; each document's end of text is in its last one."""
    counts = np.zeros(max(Kind) + 1, np.int64)
    for pack in reader.packs():
        if pack.segments is None:
            counts[reader.manifest.kind] += pack.tokens.size
        else:
            lengths = np.diff(pack.segments["token_start"].astype(np.int64), append=pack.tokens.size)
            counts += np.bincount(pack.segments["kind"], lengths, counts.size).astype(np.int64)
    return {kind: int(counts[kind]) for kind in sorted(Kind, key=lambda kind: -counts[kind]) if counts[kind]}


def _kind_lines(reader: SplitReader) -> Iterator[str]:
    counts = kind_counts(reader)
    if set(counts) - {reader.manifest.kind}:
        total = reader.manifest.num_tokens
        shares = [f"{kind.name.lower()} {count:,} ({100 * count / total:.1f} %)" for kind, count in counts.items()]
        yield f"  tokens by kind: {', '.join(shares)}"


def histogram_lines(counts: np.ndarray) -> list[str]:
    """The histogram as text, a line per power of two from the first that occurs."""
    if not counts.any():
        return ["  no documents"]
    first = int(np.flatnonzero(counts)[0])
    width = len(f"{2**counts.size - 1:,}")
    tallest = int(counts.max())
    lines = []
    for power in range(first, counts.size):
        bar = "█" * -(-int(counts[power]) * _BAR_WIDTH // tallest)
        lines.append(f"  {2**power:>{width},} – {2 ** (power + 1) - 1:>{width},}  {bar:<{_BAR_WIDTH}}  {int(counts[power]):,}")
    return lines


def _printable(text: str) -> str:
    """Documents are untrusted: no control character of theirs reaches the terminal."""
    return "".join(char if char.isprintable() or char in "\n\t" else char.encode("unicode_escape").decode("ascii") for char in text)


def _words(tokens: np.ndarray, tokenizer: Tokenizer, characters: int) -> str:
    """Tokens as text, control symbols as visible marks, which end documents; the beginning only when it is long."""
    marks = {number: f"⟨{name.strip('<|>')}⟩" for name, number in tokenizer.special_ids.items()}
    marks[tokenizer.end_of_text_id] = f"{_END_OF_TEXT}\n"
    places = np.flatnonzero(np.isin(tokens, list(marks)))
    parts, start = [], 0
    for place in places.tolist():
        parts += [tokenizer.decode(tokens[start:place]), marks[int(tokens[place])]]
        start = place + 1
    text = _printable("".join([*parts, tokenizer.decode(tokens[start:])]))
    if len(text) <= characters:
        return text
    return f"{text[:characters]}… ({len(text) - characters:,} more characters)"


def spans(segments: Sequence[tuple[int, Kind]]) -> str:
    """`comment from 0, code from 12`: the first of many."""
    named = [f"{kind.name.lower()} from {start}" for start, kind in segments[:_MOST_NAMES]]
    more = [f"{len(segments) - _MOST_NAMES:,} more"] if len(segments) > _MOST_NAMES else []
    return ", ".join(named + more)


def _evenly(count: int, total: int) -> list[int]:
    """`count` places in 0 … total−1, spread evenly: always the same ones, from all of the split."""
    count = min(count, total)
    return [(2 * number + 1) * total // (2 * count) for number in range(count)]


def sample_lines(reader: SplitReader, tokenizer: Tokenizer, samples: int, sequence_length: int | None, characters: int) -> Iterator[str]:
    """Samples in words: whole documents, or windows when a sequence length is given. Each yields header and text."""
    if sequence_length is None:
        for number in _evenly(samples, reader.manifest.num_documents):
            tokens, row, segments = reader.document(number)
            kinds = spans(segments or [(0, reader.manifest.kind)])
            identity = f"{int(row['document_id']):016x}"
            yield f"--- document {number:,} ({identity}): {tokens.size:,} tokens, {int(row['num_bytes']):,} bytes, {kinds}"
            yield _words(tokens, tokenizer, characters)
        return
    for number in _evenly(samples, reader.num_windows(sequence_length)):
        starts = reader.document_starts(number, sequence_length).tolist()
        kinds = spans(reader.segments(number, sequence_length))
        begins = f"documents begin at {', '.join(map(str, starts))}" if starts else "no document begins"
        yield f"--- window {number:,}: {begins}; {kinds}"
        yield _words(reader.read_windows(np.array([number]), sequence_length)[0], tokenizer, characters)


def inspect(split: Path, samples: int, sequence_length: int | None, characters: int) -> Iterator[str]:
    """Lines about one split. Raises UserError when it is damaged, or its tokenizer is needed and does not fit."""
    reader = SplitReader(split)
    tokenizer = load_tokenizer(split, reader.manifest) if samples else None
    yield str(split)
    num_windows = reader.num_windows(sequence_length) if sequence_length else 0
    yield from counts_table(reader.manifest, sequence_length, num_windows)
    yield from _kind_lines(reader)
    yield "  documents by tokens:"
    yield from histogram_lines(length_histogram(reader))
    if tokenizer is not None:
        yield from sample_lines(reader, tokenizer, samples, sequence_length, characters)
    yield ""


def main_inspect(argv: Sequence[str]) -> int:
    """`codemix prep inspect FOLDER [--samples N] [--sequence-length S]`; raises UserError."""
    parser = ArgumentParser(prog="codemix prep inspect", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="a split, a source, or a whole output of 'codemix prep shards'")
    parser.add_argument("--samples", type=int, default=0, metavar="N", help="print N documents of each split in words (default: 0)")
    parser.add_argument("--sequence-length", type=int, metavar="S", help="count windows of S tokens; samples are then windows")
    parser.add_argument("--characters", type=int, default=800, metavar="C", help="print at most C characters of a sample (default: 800)")
    arguments = parser.parse_args(argv)
    smallest = {"samples": 0, "sequence_length": 1, "characters": 1}
    for name, least in smallest.items():
        value = getattr(arguments, name)
        if value is not None and value < least:
            raise UserError(f"--{name.replace('_', '-')} {value}: must be at least {least}")
    for split in find_splits(arguments.folder):
        for line in inspect(split, arguments.samples, arguments.sequence_length, arguments.characters):
            print(line)
    return 0
