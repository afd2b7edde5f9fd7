"""`codemix prep to-megatron` and `codemix prep from-megatron`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from data_prep.megatron.corpus import from_megatron, to_megatron
from megatron_codemix.arguments import ArgumentParser
from megatron_codemix.errors import UserError

_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"


def main_to(argv: Sequence[str]) -> int:
    """`codemix prep to-megatron SPLIT PREFIX [--force]`; raises UserError."""
    parser = ArgumentParser(
        prog="codemix prep to-megatron",
        description="Shards → PREFIX.bin and PREFIX.idx, as Megatron-LM's preprocess_data.py writes them: a document is one sequence.",
    )
    parser.add_argument("split", type=Path, metavar="SPLIT", help="a split, such as OUTPUT/SOURCE/train")
    parser.add_argument("prefix", type=Path, metavar="PREFIX", help="what both files' names begin with")
    parser.add_argument("--force", action="store_true", help="write over files that are there")
    arguments = parser.parse_args(argv)
    written = to_megatron(arguments.split, arguments.prefix, arguments.force)
    print(f"{arguments.prefix}.bin, .idx: {written.documents:,} documents, {written.sequences:,} sequences, {written.tokens:,} tokens")
    if written.packs_with_segments:
        print(f"  segments of {written.packs_with_segments:,} packs have no place in these files and were left out")
    return 0


def main_from(argv: Sequence[str]) -> int:
    """`codemix prep from-megatron PREFIX OUTPUT --source NAME --tokenizer T --modality M [--split S]`; raises UserError."""
    parser = ArgumentParser(
        prog="codemix prep from-megatron",
        description="PREFIX.bin and PREFIX.idx of Megatron-LM → the split OUTPUT/SOURCE/SPLIT; 'to-megatron' gives the same files back.",
    )
    parser.add_argument("prefix", type=Path, metavar="PREFIX", help="what both files' names begin with, without .bin")
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="an output of 'codemix prep', or a new folder")
    parser.add_argument("--source", required=True, metavar="NAME", help="name of the source that it becomes")
    parser.add_argument("--tokenizer", required=True, type=Path, metavar="T", help="the tokenizer it was made with: a file, or a folder")
    parser.add_argument("--modality", required=True, choices=["code", "text"], help="what its documents are")
    parser.add_argument("--split", default="train", choices=["train", "valid"], help="which split it becomes (default: train)")
    arguments = parser.parse_args(argv)
    if not re.fullmatch(_NAME, arguments.source) or arguments.source == "tokenizer":
        raise UserError(f"--source {arguments.source}: becomes a folder beside 'tokenizer'; use letters, digits, '.', '_', '-'")
    prefix = arguments.prefix.with_suffix("") if arguments.prefix.suffix in (".bin", ".idx") else arguments.prefix
    manifest = from_megatron(prefix, arguments.output, arguments.source, arguments.tokenizer, arguments.modality, arguments.split)
    origin = manifest.prep["megatron"]
    folder = arguments.output / arguments.source / arguments.split
    print(f"{folder}: {manifest.num_documents:,} documents of {origin['documents']:,}, {manifest.num_tokens:,} tokens")
    if origin["end_of_text_added"]:
        print(f"  {origin['end_of_text_added']:,} documents did not end with end of text, which was added; to-megatron takes it away again")
    if manifest.skipped:
        print(f"  {manifest.skipped['empty']:,} empty documents were left out; to-megatron puts them back")
    return 0
