"""Hugging Face directory → checkpoint of ours, which appears only when our model has been shown to say what transformers' says.

Nothing of the directory is run: its weights are safetensors, its config is data, and code that it brings is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from megatron_codemix.checkpoint import hf
from megatron_codemix.checkpoint.agreement import TOLERANCE, Agreement, compare
from megatron_codemix.checkpoint.average import Masters
from megatron_codemix.checkpoint.convert import one_process, refuse_existing
from megatron_codemix.checkpoint.exact import require_written
from megatron_codemix.checkpoint.hf_config import model_config_from_hf
from megatron_codemix.checkpoint.hf_weights import INDEX_NAME, HfWeights
from megatron_codemix.checkpoint.imported import building_config, described, narrowed, run_name, write_imported, write_weights
from megatron_codemix.checkpoint.observe import Weights, observe_ours, observe_theirs
from megatron_codemix.checkpoint.origin import OWN_CHOICES, Origin
from megatron_codemix.checkpoint.probes import Probe, make_probes, narrowing
from megatron_codemix.checkpoint.record import RECORD_NAME, differences
from megatron_codemix.checkpoint.store import CHECKPOINTS
from megatron_codemix.checkpoint.streams import Grown, chunks, stream_from_hf
from megatron_codemix.checkpoint.transformers_model import ConversionRefused, build_theirs, quiet, weights_for
from megatron_codemix.config import ModelConfig, RunConfig, padded_vocab_size
from megatron_codemix.config.section import is_count
from megatron_codemix.errors import UserError
from megatron_codemix.files import atomic_directory, read_json
from megatron_codemix.model import build_skeleton
from megatron_codemix.tokenizer import JSON_NAME, MODEL_NAME, Tokenizer, find_model
from megatron_codemix.tokenizer.importing import Imported, import_tokenizer, num_ids
from megatron_codemix.tokenizer.vocabulary import LEAST_FILLED

_DTYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


@dataclass(frozen=True)
class Taken:
    """A published checkpoint."""

    folder: Path
    model: ModelConfig
    tokenizer: Tokenizer
    agreement: Agreement
    tokenizer_changes: tuple[str, ...]
    """What the tokenizer no longer does, a line each."""
    added_entries: int = 0
    """Rows that were appended to its vocabulary."""


@dataclass(frozen=True)
class _Original:
    """The directory, opened and checked."""

    folder: Path
    config: dict[str, Any]
    weights: HfWeights
    model: ModelConfig
    vocab_size: int
    max_positions: int


def convert_from_hf(
    source: Path,
    out: Path,
    *,
    tokenizer: Path | None = None,
    end_of_text: str | None = None,
    run: RunConfig | None = None,
    add_symbols: bool = False,
) -> Taken:
    """Take a dense model of transformers over as the new folder `out`: weights in fp32, in the neutral form, without moments.

    tokenizer: another place of the model's tokenizer than its directory; end_of_text: its symbol that closes documents. add_symbols:
    append rows for the reserved symbols that its vocabulary has no room for, and compare over the entries that it had.
    run: a run that shall begin with these weights: it must have their shape, and decides how many rows of padding there are.
    No more than a matrix of a layer is in memory at a time. Raises UserError (no model, one that our own cannot be, a tokenizer that
    does not fit, `out` exists), ConversionRefused (our model says something else); then `out` does not exist.
    """
    out = Path(out)
    refuse_existing(out)
    original = _open(Path(source), run)
    take = take_growing if add_symbols else take_tokenizer
    taken, changes = take(original.folder, tokenizer, original.vocab_size, end_of_text)
    quiet()
    config = building_config(run_name(original.folder.resolve().name), original.model, original.max_positions, out)
    probes = make_probes(config, {}, original.vocab_size, key=f"{taken.fingerprint} {config.name}")
    with one_process(config) as topology, atomic_directory(out) as folder:
        (folder / "weights").mkdir()
        written = write_weights(folder / "weights", list(_stream(original, taken.vocab_size)))
        agreement = _verify(original, config, folder / "weights", probes, topology.device)
        read_back(_stream(original, taken.vocab_size), folder / "weights")
        added = taken.vocab_size - original.vocab_size
        origin = Origin(
            kind="huggingface",
            name=config.name,
            files=described([original.folder / "config.json", *_weight_files(original)]),
            config=original.config,
            dtype=_dtype(original.weights),
            max_positions=original.max_positions,
            tokenizer_changes=list(changes),
            agreement=as_json(agreement, probes),
            added_entries=added,
        )
        write_imported(folder, origin, original.model, taken, written)
    return Taken(out, original.model, taken, agreement, changes, added)


def _stream(original: _Original, vocab_size: int) -> Iterator[tuple[str, tuple[int, ...], Iterator[Tensor]]]:
    rows = Grown(original.weights.rows, original.model, original.vocab_size).rows
    return stream_from_hf(rows, original.model, padded_vocab_size(vocab_size, original.model.vocab_multiple), vocab_size)


def read_back(tensors: Iterator[tuple[str, tuple[int, ...], Iterator[Tensor]]], weights: Path) -> None:
    """Compare what `write_weights` wrote with what it was given. Raises ConversionRefused."""
    masters = Masters(weights)
    blocks = ((name, block) for name, _, data in tensors for block in data)
    require_written(blocks, masters.elements, sum(map(math.prod, masters.shapes.values())))


def as_json(agreement: Agreement, probes: list[Probe]) -> dict[str, Any]:
    """What origin.json says of a comparison."""
    return {
        "largest_difference": agreement.largest,
        "tolerance": TOLERANCE,
        "positions": agreement.tokens,
        "inputs": [probe.origin for probe in probes],
        "transformers": transformers.__version__,
        "torch": torch.__version__,
    }


def _open(folder: Path, run: RunConfig | None) -> _Original:
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give a Hugging Face directory (config.json, *.safetensors, tokenizer)")
    path = folder / "config.json"
    if not path.is_file():
        if (folder / RECORD_NAME).is_file() or (folder / CHECKPOINTS).is_dir():
            raise UserError(f"{folder}: is a checkpoint or a run already; a run begins with it where its config says 'initial_weights'")
        raise UserError(f"{folder}: is no Hugging Face directory (it has no config.json); give one with config.json and *.safetensors")
    config = read_json(path, "model's configuration")
    model = with_choices_of(run, model_config_from_hf(config, str(path)))
    vocab_size, positions = config.get("vocab_size"), config.get("max_position_embeddings")
    if not is_count(vocab_size) or not is_count(positions):
        raise UserError(f"{path}: vocab_size or max_position_embeddings is no count; restore the file")
    weights = HfWeights(folder)
    weights = weights.without(*(name for name in weights.shapes if name.endswith(".rotary_emb.inv_freq")))  # the config says them
    if model.tied_embeddings:
        weights = _without_copy(weights)
    try:
        padded = padded_vocab_size(vocab_size, model.vocab_multiple)
        hf.from_hf(weights.shapes, lambda name: torch.empty(weights.shapes[name], device="meta"), model, padded)
        given = weights.shapes[hf.EMBEDDING.theirs[0]][0]
        if given != vocab_size:
            raise ValueError(f"{hf.EMBEDDING.theirs[0]}: {given} rows, but vocab_size {vocab_size}")
    except ValueError as error:
        raise UserError(f"{folder}: its weights are not those of its config.json ({error}); download or copy the model again") from None
    return _Original(folder, config, weights, model, vocab_size, positions)


def _without_copy(weights: HfWeights) -> HfWeights:
    """The weights of a tied model without the copy of the embedding that some writers add."""
    embedding, output = hf.EMBEDDING.theirs[0], hf.OUTPUT.theirs[0]
    if output not in weights.shapes or embedding not in weights.shapes:
        return weights
    shape = weights.shapes[embedding]
    same = weights.shapes[output] == shape and all(
        torch.equal(weights.rows(embedding, *block), weights.rows(output, *block)) for block in chunks(*shape)
    )
    if not same:
        raise UserError(
            f"{weights.folder}: config.json ties the output matrix to the embedding, and {output} is another matrix; "
            "set tie_word_embeddings to what the model was trained with"
        )
    return weights.without(output)


def with_choices_of(run: RunConfig | None, model: ModelConfig) -> ModelConfig:
    """The shape with what a run may choose freely. Raises UserError naming each other field in which the run differs."""
    if run is None:
        return model
    chosen = model.model_copy(update={name: getattr(run.model, name) for name in (*OWN_CHOICES, "vocab_multiple")})
    lines = differences(run.model.model_dump(), chosen.model_dump())
    if lines:
        raise UserError(
            *(f"the run's model.{line.replace('in the checkpoint', 'in the model to take over')}; change the run" for line in lines)
        )
    return chosen


def take_tokenizer(folder: Path, given: Path | None, entries: int, end_of_text: str | None) -> tuple[Tokenizer, tuple[str, ...]]:
    """The tokenizer of a model, with as many ids as its vocabulary has entries, and what was changed of it. Raises UserError."""
    own = _exported(Path(given or folder))
    if own is not None and own.vocab_size == entries:
        return own, ()
    return _imported(Path(given or folder), lambda path: import_tokenizer(path, end_of_text, entries))


def take_growing(folder: Path, given: Path | None, entries: int, end_of_text: str | None) -> tuple[Tokenizer, tuple[str, ...]]:
    """The same with every reserved symbol, and as many ids more as that takes. Raises UserError where it takes none."""

    def grown(path: Path) -> Imported:
        if not LEAST_FILLED * entries <= (there := num_ids(path)) <= entries:
            raise UserError(f"{path}: has {there:,} ids, and the model {entries:,} entries; give the tokenizer that belongs to it")
        wanted = Tokenizer(import_tokenizer(path, end_of_text).model, str(path)).vocab_size
        if wanted <= entries:
            raise UserError(f"{path}: needs no more than the model's {entries:,} entries; leave --add-symbols out")
        return import_tokenizer(path, end_of_text, wanted)

    return _imported(Path(given or folder), grown)


def _imported(place: Path, take: Callable[[Path], Imported]) -> tuple[Tokenizer, tuple[str, ...]]:
    paths = [place / JSON_NAME, place / MODEL_NAME] if place.is_dir() else [place]
    there = [path for path in paths if path.is_file()]
    if not there:
        raise UserError(f"{place}: holds no {JSON_NAME} and no {MODEL_NAME}; name the model's tokenizer with --tokenizer")
    problems: list[str] = []
    for path in there:
        try:
            imported = take(path)
            return Tokenizer(imported.model, str(path)), imported.changes
        except UserError as error:
            problems += [problem.removeprefix("tokenizer.from_file: ") for problem in error.problems]
    raise UserError(*problems)


def _exported(folder: Path) -> Tokenizer | None:
    """The tokenizer of a directory that `codemix convert to-hf` wrote, where it still is that one."""
    if not (folder / "codemix.json").is_file():
        return None
    try:
        recorded = read_json(folder / "codemix.json", "conversion record").get("tokenizer_fingerprint")
        found = Tokenizer.load(find_model(folder))
    except (UserError, AttributeError):
        return None
    return found if found.fingerprint == recorded else None


def _verify(original: _Original, config: RunConfig, weights: Path, probes: list[Probe], device: torch.device) -> Agreement:
    """Compare what our model says of the written files with what transformers' says of the original ones."""
    masters = Masters(weights)
    ours = Weights(lambda name: masters.whole(name).to(device), lambda name, start, stop: masters.rows(name, start, stop).to(device))
    narrower = narrowing(original.model.sliding_window, probes)
    mine = observe_ours(build_skeleton(narrowed(config, narrower), original.vocab_size), ours, probes, device)
    model = build_theirs(original.folder, torch.float32, device, narrower)
    theirs = observe_theirs(
        model, weights_for(model, original.weights.shapes, original.weights.rows, torch.float32, device), probes, device
    )
    agreement = compare(mine, theirs, probes, original.vocab_size)
    if agreement.problem:
        raise ConversionRefused(
            f"our model does not agree with transformers' {original.model.architecture} within {TOLERANCE:g}: {agreement.problem}"
        )
    return agreement


def _weight_files(original: _Original) -> list[Path]:
    index = original.folder / INDEX_NAME
    return [*([index] if index.is_file() else []), *original.weights.files]


def _dtype(weights: HfWeights) -> str:
    found = {_DTYPES[dtype] for dtype in weights.dtypes.values()}
    return found.pop() if len(found) == 1 else "mixed"
