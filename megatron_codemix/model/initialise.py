"""Initial weights as a pure function of (seed, parameter name): the same for every layout, device and precision.

megatron-core draws from one generator in the order in which a rank builds its modules, so a pipeline stage
starts from other weights than one process does. Here every parameter has a generator of its own.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable

import torch
from megatron.core.models.gpt import GPTModel
from torch import Tensor

_LAYER = re.compile(r"^decoder\.layers\.(\d+)\.")
_VOCABULARY = ("embedding.word_embeddings.weight", "output_layer.weight")


def global_name(model: GPTModel, name: str) -> str:
    """The name a parameter of this stage has in the whole model: layers counted from 0 over all stages, tied matrices one."""
    found = _LAYER.match(name)
    if found:
        layer = model.decoder.layers[int(found[1])].layer_number - 1  # pyright: ignore[reportOperatorIssue]
        return f"decoder.layers.{layer}.{name[found.end() :]}"
    if name == _VOCABULARY[1] and model.share_embeddings_and_output_weights:
        return _VOCABULARY[0]
    return name


@torch.no_grad()
def initialise(
    model: GPTModel, *, seed: int, init_std: float, vocab_size: int, scale: Callable[[str, int], float] = lambda name, ndim: 1.0
) -> None:
    """Fill every parameter of this rank's part of the model.

    Norm weights are 1, biases 0. Matrices are normal with `init_std`, the projections that write into the residual stream
    with init_std / √(2 · layers) (GPT-2, Radford et al. 2019, section 2.3), each times its `scale` (of name and dimensions). Rows
    of the vocabulary padding are 0 and, having no gradient, stay so. A whole matrix exists at a time, in fp32 on the CPU.
    """
    residual_std = init_std / math.sqrt(2 * model.config.num_layers)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            parameter.fill_(0.0 if name.endswith(".bias") else 1.0)
            continue
        whole = global_name(model, name)
        std = residual_std if name.endswith(("linear_proj.weight", "linear_fc2.weight")) else init_std
        matrix = _draw(seed, whole, _full_shape(model, parameter), std * scale(whole, parameter.ndim))
        if whole in _VOCABULARY:
            matrix[vocab_size:] = 0.0
        parameter.copy_(_own_part(model, parameter, matrix))


def _draw(seed: int, name: str, shape: list[int], std: float) -> Tensor:
    digest = hashlib.sha256(f"initial weights\0{seed}\0{name}".encode()).digest()
    generator = torch.Generator(device="cpu").manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return torch.empty(shape, dtype=torch.float32, device="cpu").normal_(0.0, std, generator=generator)


def _full_shape(model: GPTModel, parameter: torch.nn.Parameter) -> list[int]:
    shape = list(parameter.shape)
    shape[parameter.partition_dim] *= model.pg_collection.tp.size()  # pyright: ignore[reportAttributeAccessIssue]
    return shape


def _own_part(model: GPTModel, parameter: torch.nn.Parameter, matrix: Tensor) -> Tensor:
    """This tensor-parallel rank's rows or columns; a stride of 2 interleaves gate and up projection."""
    group, dim, stride = model.pg_collection.tp, parameter.partition_dim, parameter.partition_stride  # pyright: ignore[reportAttributeAccessIssue]
    pieces = matrix.chunk(group.size() * stride, dim=dim)
    return torch.cat(pieces[group.rank() :: group.size()], dim=dim)
