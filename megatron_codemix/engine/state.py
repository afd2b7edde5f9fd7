"""The training state of a rank as pieces, and back: which elements of which tensor of the model its memory holds.

What lies where is asked of megatron-core: `sharded_state_dict` for the block of each parameter, the optimizer for the range
of it that this rank updates. Names are those of `model.global_name`, the same under every layout.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.dist_checkpointing.mapping import ShardedTensorFactory
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.optimizer.optimizer import Float16OptimizerWithFloat16Params, FP32Optimizer, MegatronOptimizer
from torch import Tensor

from megatron_codemix.errors import UserError
from megatron_codemix.model import LanguageModel, global_name
from megatron_codemix.parallel import Topology
from megatron_codemix.pieces import EXP_AVG, EXP_AVG_SQ, KINDS, PARAM, Block, Piece, PieceReader
from megatron_codemix.progress import progress

_LEAST_SHARE = 1 << 18
"""Elements (1 MiB): smaller pieces would make headers that a reader of a thousand ranks' files notices."""


@dataclass(frozen=True)
class Local:
    """A parameter of this rank."""

    parameter: Tensor
    blocks: tuple[tuple[Block, int], ...]
    """Its consecutive blocks, each with the number of elements before it: one, or gate and up projection."""
    is_main: bool
    """Whether this rank's tensor-parallel and pipeline place is the one that writes it, among those that hold the same."""


@dataclass(frozen=True)
class Master:
    """What the optimizer holds of a parameter on this rank: elements start ≤ i < stop of it."""

    start: int
    stop: int
    is_own: bool
    """Whether no other data-parallel rank holds them."""
    tensors: dict[str, Tensor]
    """Of each of KINDS, fp32 (stop − start,), a view."""
    step: Tensor
    """AdamW's count of updates, fp32 ()."""


def live_pieces(parameters: Iterable[Local], masters: Mapping[Tensor, Master], topology: Topology) -> list[Piece]:
    """What this rank must save so that all ranks together save everything once: views of live memory.

    parameters: of this rank, see `local_parameters`; masters: what its optimizer holds of each. Where other ranks hold nothing of
    the same (the distributed optimizer, ZeRO), that is what it holds. Else the ranks that hold the same (data × context) share
    it: large blocks evenly, small ones in turn.
    """
    rank, ranks = topology.data_and_context.rank, topology.data_and_context.size
    pieces, number = [], 0
    for local in parameters:
        master = masters.get(local.parameter)
        if master is None or not local.is_main:
            continue
        for block, before in local.blocks:
            share = (0, block.num_elements) if master.is_own else _share(block.num_elements, rank - number, ranks)
            start, stop = max(share[0], master.start - before), min(share[1], master.stop - before)
            offset = before - master.start
            if start < stop:
                pieces += [Piece(block, kind, start, stop, master.tensors[kind][start + offset : stop + offset]) for kind in KINDS]
            number += 1
    return pieces


def _share(elements: int, rank: int, ranks: int) -> tuple[int, int]:
    """start, stop of the elements that the rank-th of `ranks`, modulo their number, writes; possibly none."""
    shares = min(ranks, -(-elements // _LEAST_SHARE))
    place = min(rank % ranks, shares)
    return elements * place // shares, elements * min(place + 1, shares) // shares


@torch.no_grad()
def load(
    parameters: Sequence[Local],
    masters: Mapping[Tensor, Master],
    reader: PieceReader,
    topology: Topology,
    moments: bool,
    weights: bool = True,
) -> None:
    """Fill this rank's weights, cast to their precision, and its master weights with what `reader` has.

    moments: AdamW's moments and count of updates too. weights: false where the model's weights are not whole on this rank, so that
    the caller makes them of the master weights. Hyperparameters stay the run's. Collective. Raises UserError on every rank, before
    anything is changed, when the state is another model's or has no moments where they are wanted.
    """
    _refuse_another_model(reader, parameters, topology, moments)
    shown = progress("loading weights", len(parameters), "parameters") if topology.is_main else nullcontext()
    with shown as bar:
        for local in parameters:
            _load_one(local, masters.get(local.parameter), reader, moments, weights)
            if bar:
                bar.advance()


def _load_one(local: Local, master: Master | None, reader: PieceReader, moments: bool, whole: bool) -> None:
    for block, before in local.blocks:
        # every rank reads its whole block of the weights: no exchange between ranks, whatever each of them updates
        if whole:
            weights = reader.read(block, PARAM)
            local.parameter.view(-1)[before : before + block.num_elements].copy_(weights)
        if master is None:
            continue
        start, stop = max(0, master.start - before), min(block.num_elements, master.stop - before)
        if start >= stop:
            continue
        own = slice(start + before - master.start, stop + before - master.start)
        if whole:
            master.tensors[PARAM][own].copy_(weights[start:stop])
        else:
            reader.read(block, PARAM, start, stop, out=master.tensors[PARAM][own])
        for kind in (EXP_AVG, EXP_AVG_SQ) if moments else ():
            reader.read(block, kind, start, stop, out=master.tensors[kind][own])
    if master is not None and moments:
        master.step.fill_(reader.step)


def local_parameters(chunks: Sequence[LanguageModel], topology: Topology) -> Iterator[Local]:
    """Every parameter of this rank and the blocks of the whole model that it is. While the parameters are whole on it."""
    # one key a layer, where megatron-core would stack layers that are alike
    metadata = {"dp_cp_group": topology.data_and_context.group, "non_homogeneous_layers": True}
    for chunk in chunks:
        entries = chunk.sharded_state_dict(metadata=metadata)
        for name, parameter in chunk.named_parameters():
            entry: Any = entries[name]
            parts: Any = entry.build() if isinstance(entry, ShardedTensorFactory) else [entry]
            blocks, before = [], 0
            for part in parts:
                data: Any = part.data
                assert data.is_contiguous() and data.storage_offset() == parameter.storage_offset() + before
                sizes = (part.global_shape, part.global_offset, part.local_shape)
                blocks.append((Block(global_name(chunk, name), *(tuple(map(int, size)) for size in sizes)), before))
                before += data.numel()
            assert before == parameter.numel()
            replica: Any = parts[0].replica_id
            # the last coordinate counts data-parallel ranks, which share the writing
            yield Local(parameter, tuple(blocks), is_main=not any(replica[:-1]))


def megatron_masters(optimizer: MegatronOptimizer) -> Iterator[tuple[Tensor, Master]]:
    """What megatron-core's optimizer holds on this rank, by the parameter of the model that it is of."""
    for single in getattr(optimizer, "chained_optimizers", [optimizer]):
        for parameter, main, start, is_own in _main_parameters(single):
            state = single.optimizer.state[main]
            tensors = {PARAM: main, EXP_AVG: state["exp_avg"], EXP_AVG_SQ: state["exp_avg_sq"]}
            flat = {kind: tensor.detach().view(-1) for kind, tensor in tensors.items()}
            assert all(tensor.dtype == torch.float32 for tensor in flat.values()), "master weights and moments are fp32"
            yield parameter, Master(start, start + main.numel(), is_own, flat, state["step"])


def _main_parameters(optimizer: Any) -> Iterator[tuple[Tensor, Tensor, int, bool]]:
    """(parameter of the model, what AdamW updates for it, first element of the parameter that this is, whether no other rank has it)."""
    if optimizer.is_stub_optimizer:
        return
    if isinstance(optimizer, DistributedOptimizer):
        for parameter, (group, place) in optimizer.model_param_group_index_map.items():
            owned = optimizer._get_model_param_range_map(parameter)["param"]
            yield parameter, optimizer.optimizer.param_groups[group]["params"][place], owned.start, True
    elif isinstance(optimizer, Float16OptimizerWithFloat16Params):
        pairs = zip(optimizer.float16_groups, optimizer.fp32_from_float16_groups)
        for parameters, mains in [*pairs, *zip(optimizer.fp32_from_fp32_groups, optimizer.fp32_from_fp32_groups)]:
            yield from ((parameter, main, 0, False) for parameter, main in zip(parameters, mains))
    else:
        assert isinstance(optimizer, FP32Optimizer), type(optimizer)
        for group in optimizer.optimizer.param_groups:
            yield from ((parameter, parameter, 0, False) for parameter in group["params"])


def _refuse_another_model(reader: PieceReader, parameters: Sequence[Local], topology: Topology, moments: bool) -> None:
    """Raises UserError naming the first difference and counting the others; the same on every rank."""
    own = {block.key: block.shape for local in parameters for block, _ in local.blocks}
    wanted = {key: shape for shapes in topology.gather(own) for key, shape in shapes.items()}  # a pipeline stage has only its own layers
    stored = reader.keys()
    differences = []
    for key, shape in wanted.items():
        if key not in stored:
            differences.append(f"has no '{key}'")
        elif stored[key] != shape:
            there, here = (" × ".join(map(str, size)) for size in (stored[key], shape))
            differences.append(f"has '{key}' of {there} where this run has {here}")
    differences += [f"has '{key}', which this run has not" for key in stored if key not in wanted]
    if differences:
        more = f" (and {len(differences) - 1} more differences)" if len(differences) > 1 else ""
        raise UserError(f"{reader.folder}: is of another model: it {differences[0]}{more}; use the config it was trained with")
    if moments and any(reader.kinds(key) != KINDS for key in wanted):
        raise UserError(f"{reader.folder}: holds weights alone, and training cannot continue without the optimizer's moments")
