"""`codemix convert to-hf | from-hf | from-megatron`: models between formats, verified both ways."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from megatron_codemix.arguments import ArgumentParser
from megatron_codemix.checkpoint.agreement import BF16_TOLERANCE, TOLERANCE, Agreement
from megatron_codemix.checkpoint.convert import MAX_SHARD_BYTES, convert_to_hf
from megatron_codemix.checkpoint.from_hf import convert_from_hf
from megatron_codemix.checkpoint.from_megatron import convert_from_megatron
from megatron_codemix.checkpoint.imported import model_yaml
from megatron_codemix.checkpoint.transformers_model import ConversionRefused
from megatron_codemix.config import RunConfig, load_config
from megatron_codemix.errors import JobError

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 2**10, "MI": 2**20, "GI": 2**30}


def _size(text: str) -> int:
    found = re.fullmatch(r"(\d+)\s*([KMG]I?)?B?", text.strip().upper())
    if not found or not int(found[1]):
        raise argparse.ArgumentTypeError(f"'{text}' is not a size; write bytes, or 500MB, 4GiB")
    return int(found[1]) * _UNITS[found[2] or ""]


def _parser() -> ArgumentParser:
    parser = ArgumentParser(prog="codemix convert", description="Models between formats; nothing appears before both sides agree.")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    _add_to_hf(verbs)
    from_hf = verbs.add_parser(
        "from-hf",
        help="Hugging Face directory → checkpoint that a run can begin with",
        description="A dense model of transformers (Llama, Mistral, Qwen2, Qwen3, StarCoder2) → a checkpoint of ours.\n\n"
        f"OUT appears only if our model gives the log-probabilities of transformers' within {TOLERANCE:g} (fp32).\n"
        "A run begins with it where its config says `initial_weights: OUT`.",
    )
    from_hf.add_argument("source", type=Path, metavar="HF_DIR", help="config.json, *.safetensors, tokenizer.json or tokenizer.model")
    _add_common(from_hf, tokenizer_required=False)
    from_hf.add_argument(
        "--add-symbols",
        action="store_true",
        help="append rows for the control symbols (infilling, padding, …) that its vocabulary has no room for: each the mean of its rows",
    )
    from_megatron = verbs.add_parser(
        "from-megatron",
        help="Megatron-LM torch_dist checkpoint → checkpoint that a run can begin with",
        description="A Megatron-LM checkpoint in the torch_dist format, of a dense model → a checkpoint of ours.\n\n"
        "Nothing of it is unpickled. OUT appears only if megatron-core's model with the original's weights and transformers'\n"
        f"model with the written ones give the same log-probabilities within {TOLERANCE:g} (fp32).",
    )
    from_megatron.add_argument("source", type=Path, metavar="CKPT_DIR", help="iter_… folder, or the one above it (its latest iteration)")
    _add_common(from_megatron, tokenizer_required=True)
    return parser


def _add_to_hf(verbs) -> None:
    to_hf = verbs.add_parser(
        "to-hf",
        help="checkpoint → Hugging Face directory with its tokenizer and a model card",
        description="A checkpoint → a model of transformers with its tokenizer and a model card.\n\n"
        f"OUT appears only if transformers' own forward pass gives our log-probabilities within {TOLERANCE:g} (fp32).\n"
        f"A bf16 export is compared weight for weight in fp32, and may be {BF16_TOLERANCE:g} nats a token away when it computes in bf16.",
    )
    to_hf.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="a run folder (its newest checkpoint) or a step-… folder")
    to_hf.add_argument("out", type=Path, metavar="OUT", help="the new folder")
    to_hf.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32", help="of the written weights (default: fp32)")
    to_hf.add_argument(
        "--max-shard-size", type=_size, default=MAX_SHARD_BYTES, metavar="BYTES", help="of one weight file, such as 4GiB (default: 4GiB)"
    )
    to_hf.add_argument(
        "--average", type=Path, nargs="+", default=(), metavar="CKPT", help="average CHECKPOINT's weights with those of these checkpoints"
    )


def _add_common(parser: argparse.ArgumentParser, tokenizer_required: bool) -> None:
    where = "the model's tokenizer: a file, or a folder" + ("" if tokenizer_required else " (default: HF_DIR)")
    parser.add_argument("out", type=Path, metavar="OUT", help="the new folder")
    parser.add_argument("--tokenizer", type=Path, required=tokenizer_required, metavar="PATH", help=where)
    parser.add_argument("--end-of-text", metavar="SYMBOL", help="its control symbol that closes documents (default: the one it names)")
    parser.add_argument("--config", type=Path, metavar="RUN.yaml", help="a run that is to begin with these weights: refuse another shape")


def main(argv: Sequence[str]) -> int:
    """Run `codemix convert`; returns the exit code. Raises UserError for the user's mistakes, JobError where the disk refuses."""
    arguments = _parser().parse_args(list(argv))
    try:
        return _to_hf(arguments) if arguments.verb == "to-hf" else _take(arguments)
    except ConversionRefused as refusal:
        print(f"codemix convert: refused, nothing was written to {arguments.out}: {refusal}", file=sys.stderr)
        return 1
    except OSError as error:
        raise JobError(f"{arguments.out}: was not written ({error.strerror or error}); make room there, and start anew") from None


def _to_hf(arguments: argparse.Namespace) -> int:
    converted = convert_to_hf(
        arguments.checkpoint, arguments.out, dtype=arguments.dtype, max_shard_bytes=arguments.max_shard_size, average=arguments.average
    )
    many = len(converted.checkpoints) > 1
    print(f"converted {'the average of ' if many else ''}{', '.join(map(str, converted.checkpoints))}")
    _print_agreement(converted.agreement)
    if converted.divergence is not None:
        print(f"in bf16: {converted.divergence:.2e} nats a token away from fp32 (accepted: {BF16_TOLERANCE:g})")
    print(converted.folder)
    return 0


def _take(arguments: argparse.Namespace) -> int:
    run = load_config(arguments.config, RunConfig) if arguments.config else None
    options = {"tokenizer": arguments.tokenizer, "end_of_text": arguments.end_of_text, "run": run}
    if arguments.verb == "from-hf":
        taken = convert_from_hf(arguments.source, arguments.out, add_symbols=arguments.add_symbols, **options)
    else:
        taken = convert_from_megatron(arguments.source, arguments.out, **options)
    print(f"took over {arguments.source}: {taken.model.architecture}, {taken.tokenizer.vocab_size:,} vocabulary entries")
    if taken.added_entries:
        print(f"{taken.added_entries:,} of them are appended, each the mean of its rows; the others' were compared, without these")
    for change in taken.tokenizer_changes:
        print(f"tokenizer: {change}")
    _print_agreement(taken.agreement)
    print(f"a run begins with it where its config has these lines, and its shards are made with tokenizer.from_file: {taken.folder}")
    print(f"  initial_weights: {taken.folder}\n  tokenizer: {taken.folder}\n  {model_yaml(taken.model)}")
    print(taken.folder)
    return 0


def _print_agreement(agreement: Agreement) -> None:
    print(f"log-probabilities differ by at most {agreement.largest:.2e} nats over {agreement.tokens:,} positions (accepted: {TOLERANCE:g})")
