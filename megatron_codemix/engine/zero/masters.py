"""What ZeRO's optimizers hold on a rank of each parameter, in the words of `engine.state`.

Stages 1 and 2 lay the parameters of a group end to end and give each data-parallel rank an equal range of it; DeepSpeed notes on
each parameter which part of it lies where (`_hp_mapping`). Stage 3 gives each rank an equal range of each parameter.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from megatron_codemix.engine.state import Master
from megatron_codemix.engine.zero.adamw import GatedAdamW
from megatron_codemix.pieces import EXP_AVG, EXP_AVG_SQ, PARAM


def flat_parameters(optimizer: Any) -> list[Tensor]:
    """The flat fp32 master weights of this rank, whose gradients AdamW sees."""
    for name in ("single_partition_of_fp32_groups", "fp32_groups_flat_partition", "fp32_partitioned_groups_flat"):
        found = getattr(optimizer, name, None)
        if found is not None:
            return found
    raise AssertionError(f"not an optimizer of ZeRO: {type(optimizer)}")


def zero_masters(optimizer: Any, adamw: GatedAdamW) -> Iterator[tuple[Tensor, Master]]:
    """What the optimizer of `deepspeed.initialize` holds on this rank, by the parameter of the model that it is of."""
    is_stage_3 = hasattr(optimizer, "fp32_partitioned_groups_flat")
    for parameter, flat, begin, start, stop in _third_stage(optimizer) if is_stage_3 else _first_stages(optimizer):
        state = adamw.state[flat]
        tensors = {PARAM: flat, EXP_AVG: state["exp_avg"], EXP_AVG_SQ: state["exp_avg_sq"]}
        own = {kind: tensor.detach()[begin : begin + stop - start] for kind, tensor in tensors.items()}
        yield parameter, Master(start, stop, True, own, state["step"])


def _first_stages(optimizer: Any) -> Iterator[tuple[Tensor, Tensor, int, int, int]]:
    """(parameter, flat tensor, place in it, start, stop of the parameter's elements that lie there)."""
    groups = optimizer.bf16_groups if hasattr(optimizer, "bf16_groups") else optimizer.bit16_groups
    for parameters, flat in zip(groups, flat_parameters(optimizer), strict=True):
        for parameter in parameters:
            mapping = parameter._hp_mapping
            if mapping is not None:
                part, place = mapping.lp_fragment_address, mapping.hp_fragment_address
                yield parameter, flat, place.start, part.start, part.start + part.numel


def _third_stage(optimizer: Any) -> Iterator[tuple[Tensor, Tensor, int, int, int]]:
    flats = flat_parameters(optimizer)
    for parameters in optimizer.fp16_groups:
        for parameter in parameters:
            group, place, size = optimizer.grad_position[optimizer.get_param_id(parameter)]
            start = size * optimizer._get_param_partition_rank(parameter)
            stop = min(start + size, parameter.ds_numel)  # the last ranks' ranges are padded
            if start < stop:
                yield parameter, flats[group], place, start, stop


def weights_from_masters(optimizer: Any) -> None:
    """ZeRO-3: make the model's weights of the master weights. Collective over data-parallel ranks."""
    for number in range(len(flat_parameters(optimizer))):
        optimizer._reassign_or_swap_out_partitioned_parameters(number)
    if optimizer.persistent_parameters:
        optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)
