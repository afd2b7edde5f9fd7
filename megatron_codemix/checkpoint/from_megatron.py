"""Megatron-LM checkpoint (`torch_dist`) → checkpoint of ours, which appears only when two models have been shown to agree.

megatron-core's model runs with the original's tensors under their own names, transformers' model with the written ones through the
name map: neither the reading nor the map can be wrong unnoticed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
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
from megatron_codemix.checkpoint.from_hf import Taken, as_json, read_back, take_tokenizer, with_choices_of
from megatron_codemix.checkpoint.hf_config import SpecialIds, hf_config
from megatron_codemix.checkpoint.imported import building_config, described, narrowed, run_name, write_imported, write_weights
from megatron_codemix.checkpoint.megatron_args import model_config_from_megatron
from megatron_codemix.checkpoint.observe import Weights, observe_ours, observe_theirs
from megatron_codemix.checkpoint.origin import Origin
from megatron_codemix.checkpoint.probes import Probe, make_probes, narrowing
from megatron_codemix.checkpoint.streams import AsTheirs, chunks
from megatron_codemix.checkpoint.torch_dist import TorchDist, iteration_folder, read_arguments
from megatron_codemix.checkpoint.transformers_model import ConversionRefused, build_theirs, quiet, weights_for
from megatron_codemix.config import ModelConfig, RunConfig, padded_vocab_size
from megatron_codemix.config.section import is_count
from megatron_codemix.errors import UserError
from megatron_codemix.files import atomic_directory
from megatron_codemix.model import build_skeleton
from megatron_codemix.tokenizer import Tokenizer
from megatron_codemix.tokenizer.importing import num_ids

_OTHER_NAMES = {
    "input_layernorm.": "self_attention.linear_qkv.layer_norm_",
    "pre_mlp_layernorm.": "mlp.linear_fc1.layer_norm_",
}
"""Our names of the norms → those of Transformer Engine's fused layers, which Megatron-LM's checkpoints use."""
_OF_THE_MODEL = ("decoder.", "embedding.", "output_layer.")
_DTYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
_SAID = ("iteration", "padded_vocab_size", "vocab_size", "tokenizer_type", "seq_length", "max_position_embeddings", "params_dtype")


class Original:
    """The tensors of a checkpoint under our names, read by rows, fp32."""

    def __init__(self, stored: TorchDist, model: ModelConfig) -> None:
        """Raises UserError where a tensor of the model is missing or has another shape, or one is there that the model has not."""
        self._stored, self._places = stored, {}
        rows = stored.shapes.get(hf.EMBEDDING.ours, (0,))[0]
        self.rows_there = rows
        """Of the embedding, Megatron-LM's padding included."""
        problems, used = [], set()
        for entry in hf.entries(model):
            place = _place(entry.ours, stored)
            if not place:
                problems.append(f"no '{entry.ours}'")
                continue
            found = [stored.shapes[key][0 if layer is None else 1 :] for key, layer in place]
            shape = (sum(part[0] for part in found), *found[0][1:])
            if shape != entry.shape(model, rows):
                problems.append(f"'{entry.ours}' of shape {shape}, not {entry.shape(model, rows)}")
            self._places[entry.ours] = [(key, layer, part[0]) for (key, layer), part in zip(place, found, strict=True)]
            used |= {key for key, _ in place}
        layers = {key: shape[0] for key in used if (shape := stored.shapes[key]) and _is_stacked(key)}
        problems += [f"{count} layers of '{key}', not {model.num_layers}" for key, count in layers.items() if count != model.num_layers]
        foreign = [key for key in stored.shapes if key.startswith(_OF_THE_MODEL) and key not in used and "_extra_state" not in key]
        problems += [f"a '{key}', which the model has not" for key in sorted(foreign)]
        if problems:
            more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
            raise UserError(f"{stored.folder}: is not the model that its arguments describe: {problems[0]}{more}; give the run's --config")
        self.keys: set[str] = used
        """The checkpoint's own names of the model's tensors."""

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows start ≤ i < stop of a tensor."""
        parts, before = [], 0
        for key, layer, size in self._places[name]:
            top, bottom = max(start - before, 0), min(stop - before, size)
            if top < bottom:
                parts.append(self._stored.read(key, layer, top, bottom))
            before += size
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def whole(self, name: str) -> Tensor:
        """A tensor."""
        return self.rows(name, 0, sum(size for _, _, size in self._places[name]))


@dataclass(frozen=True)
class _Job:
    folder: Path
    original: Original
    model: ModelConfig
    vocab_size: int
    max_positions: int
    tokenizer: Tokenizer
    config: RunConfig
    probes: list[Probe]


def convert_from_megatron(
    source: Path, out: Path, *, tokenizer: Path | None = None, end_of_text: str | None = None, run: RunConfig | None = None
) -> Taken:
    """Take a Megatron-LM checkpoint over as the new folder `out`: its weights as they computed, in fp32, without optimizer state.

    source: an iter_… folder, or the one above it. tokenizer: the model's, which its checkpoints do not hold; end_of_text: its
    symbol that closes documents. run: as of `convert_from_hf`; it also gives the shape where the checkpoint has no arguments.
    Padding rows are left out and ours added. Raises as `convert_from_hf` does.
    """
    out = Path(out)
    refuse_existing(out)
    folder = iteration_folder(Path(source))
    arguments = read_arguments(folder)
    model = _model(folder, arguments, run)
    stored = TorchDist(folder)
    original = Original(stored, model)
    dtypes = {_DTYPES[dtype] for dtype in stored.check(original.keys)}
    vocab_size = _vocab_size(folder, arguments, tokenizer, original.rows_there)
    taken, changes = take_tokenizer(folder, tokenizer, vocab_size, end_of_text)
    quiet()
    positions = _max_positions(folder, arguments, run)
    config = building_config(run_name(f"{folder.resolve().parent.name}-{folder.resolve().name}"), model, positions, out)
    probes = make_probes(config, {}, vocab_size, key=f"{taken.fingerprint} {config.name}")
    job = _Job(folder, original, model, vocab_size, positions, taken, config, probes)
    with one_process(config) as topology, atomic_directory(out) as hidden:
        (hidden / "weights").mkdir()
        written = write_weights(hidden / "weights", list(_stream(job)))
        agreement = _verify(job, hidden / "weights", topology.device)
        read_back(_stream(job), hidden / "weights")
        others = [path for name in (".metadata", "common.pt", "metadata.json") if (path := folder / name).is_file()]
        origin = Origin(
            kind="megatron-lm",
            name=config.name,
            files=described([*others, *stored.files_of(original.keys)]),
            config={name: value for name in _SAID if isinstance(value := arguments.get(name), (int, float, str))},
            dtype=dtypes.pop() if len(dtypes) == 1 else "mixed",
            max_positions=positions,
            tokenizer_changes=list(changes),
            agreement=as_json(agreement, probes),
        )
        write_imported(hidden, origin, model, taken, written)
    return Taken(out, model, taken, agreement, changes)


def _model(folder: Path, arguments: dict[str, Any], run: RunConfig | None) -> ModelConfig:
    if arguments:
        return with_choices_of(run, model_config_from_megatron(arguments, str(folder / "common.pt")))
    if run is None:
        raise UserError(f"{folder}: holds no arguments of Megatron-LM (common.pt), so nothing tells its shape; give a run with --config")
    return run.model


def _vocab_size(folder: Path, arguments: dict[str, Any], tokenizer: Path | None, rows: int) -> int:
    """Entries without Megatron-LM's padding: as its arguments say, else as many as the tokenizer has ids."""
    given = arguments.get("vocab_size")
    if is_count(given):
        found = given
    elif tokenizer is None:
        raise UserError(f"{folder}: does not hold its tokenizer; name it with --tokenizer")
    else:
        found = num_ids(tokenizer)
    if found > rows:
        raise UserError(f"{folder}: has {rows:,} rows of vocabulary, fewer than the {found:,} entries; give the tokenizer of the model")
    return found


def _max_positions(folder: Path, arguments: dict[str, Any], run: RunConfig | None) -> int:
    known = [found for name in ("max_position_embeddings", "seq_length") if is_count(found := arguments.get(name))]
    known += [max(stage.sequence_length for stage in run.history)] if run else []
    if not known:
        raise UserError(f"{folder}: nothing tells the model's longest context (max_position_embeddings); give a run with --config")
    return known[0]


def _place(name: str, stored: TorchDist) -> list[tuple[str, int | None]]:
    """Where a tensor of ours is: the checkpoint's key and, in a stack of all layers, the layer; two where gate and up lie apart."""
    candidates = [name]
    for ours, theirs in _OTHER_NAMES.items():
        candidates += [name.replace(ours, theirs)] if ours in name else []
    for candidate in candidates:
        prefix, _, rest = candidate.removeprefix("decoder.layers.").partition(".")
        layered = candidate.startswith("decoder.layers.")
        for key, layer in [(candidate, None), *([(f"decoder.layers.{rest}", int(prefix))] if layered else [])]:
            for keys in ([key], [f"{key}_w", f"{key}_v"]):
                if all(one in stored.shapes for one in keys):
                    return [(one, layer) for one in keys]
    return []


def _is_stacked(key: str) -> bool:
    return key.startswith("decoder.layers.") and not key.split(".")[2].isdigit()


def _stream(job: _Job) -> Iterator[tuple[str, tuple[int, ...], Iterator[Tensor]]]:
    """(name, shape, elements) of every tensor of ours, with our padding in the place of Megatron-LM's."""
    padded = padded_vocab_size(job.vocab_size, job.model.vocab_multiple)
    for entry in hf.entries(job.model):
        shape = entry.shape(job.model, padded)
        yield entry.ours, shape, _elements(job, entry.ours, shape, job.vocab_size if entry.vocabulary else shape[0])


def _elements(job: _Job, name: str, shape: tuple[int, ...], rows: int) -> Iterator[Tensor]:
    columns = math.prod(shape[1:])
    for start, stop in chunks(rows, columns):
        yield job.original.rows(name, start, stop).reshape(-1)
    for start, stop in chunks(shape[0] - rows, columns):
        yield torch.zeros((stop - start) * columns)


def _verify(job: _Job, weights: Path, device: torch.device) -> Agreement:
    ours = Weights(lambda name: job.original.whole(name).to(device), lambda *place: job.original.rows(*place).to(device))
    narrower = narrowing(job.model.sliding_window, job.probes)
    mine = observe_ours(build_skeleton(narrowed(job.config, narrower), job.vocab_size), ours, job.probes, device)
    special = SpecialIds(job.tokenizer.end_of_text_id, job.tokenizer.end_of_text_id, job.tokenizer.pad_id)
    described = hf_config(job.model, job.vocab_size, job.max_positions, "fp32", special, transformers.__version__)
    padded = padded_vocab_size(job.vocab_size, job.model.vocab_multiple)
    written = AsTheirs(Masters(weights).rows, job.model, padded, job.vocab_size)
    model = build_theirs(described, torch.float32, device, narrower)
    theirs = observe_theirs(model, weights_for(model, written.shapes, written.rows, torch.float32, device), job.probes, device)
    agreement = compare(mine, theirs, job.probes, job.vocab_size, names=("in the original", "in what was written"))
    if agreement.problem:
        raise ConversionRefused(f"what was written does not agree with the original within {TOLERANCE:g}: {agreement.problem}")
    return agreement
