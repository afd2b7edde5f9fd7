"""What ZeRO holds on this rank, and where, read from DeepSpeed's optimizers (0.19.8): for `engine.state`.

Stages 1 and 2 lay the parameters of a group end to end and give each data-parallel rank an equal range of it; DeepSpeed notes on
each parameter which part of it lies where (`_hp_mapping`). Stage 3 gives each rank an equal range of each parameter. What it keeps on
nvme lies in files of fp32, one for the master weights of a group and one for each moment; those are mapped, so that nothing of it needs
room in memory.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor

from megatron_codemix.engine.state import Master
from megatron_codemix.engine.zero.adamw import GatedAdamW
from megatron_codemix.pieces import EXP_AVG, EXP_AVG_SQ, KINDS, PARAM


def flat_parameters(optimizer: Any) -> list[Tensor]:
    """The flat fp32 master weights of this rank, whose gradients AdamW sees; empty ones where they are on nvme."""
    for name in ("single_partition_of_fp32_groups", "fp32_groups_flat_partition", "fp32_partitioned_groups_flat"):
        found = getattr(optimizer, name, None)
        if found is not None:
            return found
    raise AssertionError(f"not an optimizer of ZeRO: {type(optimizer)}")


def create_state(optimizer: Any, adamw: GatedAdamW) -> None:
    """Give every flat parameter its moments; those of one that is on nvme go there too."""
    for group, flat in enumerate(flat_parameters(optimizer)):
        if is_swapped(optimizer, group):
            optimizer._optimizer_states_and_gradient_swap_in(group)
            adamw.create_state([flat])
            optimizer._optimizer_states_and_gradient_swap_out(group)
        else:
            adamw.create_state([flat])


def zero_masters(optimizer: Any, adamw: GatedAdamW, writable: bool = False) -> Iterator[tuple[Tensor, Master]]:
    """What the optimizer of `deepspeed.initialize` holds on this rank, by the parameter of the model that it is of.

    writable: what is written to the tensors arrives where the state is kept also on nvme, once `flush` was called.
    """
    flats = flat_parameters(optimizer)
    is_stage_3 = hasattr(optimizer, "fp32_partitioned_groups_flat")

    @cache
    def held(group: int) -> dict[str, Tensor]:
        if is_swapped(optimizer, group):
            return _mapped(optimizer, adamw, group, writable)
        state = adamw.state[flats[group]]
        return {PARAM: flats[group].detach(), EXP_AVG: state["exp_avg"], EXP_AVG_SQ: state["exp_avg_sq"]}

    for parameter, group, begin, start, stop in _third_stage(optimizer) if is_stage_3 else _first_stages(optimizer):
        own = {kind: tensor[begin : begin + stop - start] for kind, tensor in held(group).items()}
        yield parameter, Master(start, stop, True, own, adamw.state[flats[group]]["step"])


def is_swapped(optimizer: Any, group: int) -> bool:
    """Whether the state of a group lies on nvme between steps: groups below 1 MiB stay in host memory."""
    return bool(getattr(optimizer, "swap_optimizer", False)) and optimizer._swappable_optimizer_subgroup(group)


def flush(optimizer: Any, adamw: GatedAdamW) -> None:
    """Have the disk take what was written through `zero_masters`: DeepSpeed reads it past the system's cache."""
    for group in range(len(flat_parameters(optimizer))):
        if is_swapped(optimizer, group):
            for path in _files(optimizer, adamw, group).values():
                descriptor = os.open(path, os.O_RDWR)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)


def _files(optimizer: Any, adamw: GatedAdamW, group: int) -> dict[str, str]:
    """kind → the file that holds it of a group."""
    flat = flat_parameters(optimizer)[group]
    state = adamw.state[flat]
    paths = {id(held.compute_tensor): held.swap_path for held in optimizer.optimizer_swapper.swap_params_info[flat.ds_id].tensors}  # pyright: ignore[reportAttributeAccessIssue]
    return {kind: paths[id(tensor)] for kind, tensor in zip(KINDS, (flat, state["exp_avg"], state["exp_avg_sq"]), strict=True)}


def _mapped(optimizer: Any, adamw: GatedAdamW, group: int, writable: bool) -> dict[str, Tensor]:
    elements = int(optimizer.fp16_partitioned_groups_flat_numel[group])
    return {
        kind: torch.from_file(path, shared=writable, size=elements, dtype=torch.float32)
        for kind, path in _files(optimizer, adamw, group).items()
    }


def _first_stages(optimizer: Any) -> Iterator[tuple[Tensor, int, int, int, int]]:
    """(parameter, number of its flat tensor, place in it, start, stop of the parameter's elements that lie there)."""
    groups = optimizer.bf16_groups if hasattr(optimizer, "bf16_groups") else optimizer.bit16_groups
    for group, parameters in enumerate(groups):
        for parameter in parameters:
            mapping = parameter._hp_mapping
            if mapping is not None:
                part, place = mapping.lp_fragment_address, mapping.hp_fragment_address
                yield parameter, group, place.start, part.start, part.start + part.numel


def _third_stage(optimizer: Any) -> Iterator[tuple[Tensor, int, int, int, int]]:
    for parameters in optimizer.fp16_groups:
        for parameter in parameters:
            group, place, size = optimizer.grad_position[optimizer.get_param_id(parameter)]
            start = size * optimizer._get_param_partition_rank(parameter)
            stop = min(start + size, parameter.ds_numel)  # the last ranks' ranges are padded
            if start < stop:
                yield parameter, group, place, start, stop


def weights_from_masters(optimizer: Any) -> None:
    """ZeRO-3: make the model's weights of the master weights. Collective over data-parallel ranks."""
    if getattr(optimizer, "params_in_nvme_and_cpu", False):
        optimizer._partition_all_parameters()  # else what is in memory just now would be changed there alone
    for group in range(len(flat_parameters(optimizer))):
        with _at_hand(optimizer, group):
            optimizer._reassign_or_swap_out_partitioned_parameters(group)
    if optimizer.persistent_parameters:
        optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)


@contextmanager
def _at_hand(optimizer: Any, group: int) -> Iterator[None]:
    """With the state of a group in memory, to be read."""
    if not is_swapped(optimizer, group):
        yield
        return
    optimizer._optimizer_states_and_gradient_swap_in(group)
    try:
        yield
    finally:
        optimizer._release_swap_buffers(group)
