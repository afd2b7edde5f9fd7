"""What an implementation of a model says of the probes, with one part of its weights in memory at a time.

Modules and forward passes are the library's own; only parameters come and go: each part has them from just before it
runs until just after. All probes go through in one batch, so every part is read once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from megatron_codemix.checkpoint.probes import Probe
from megatron_codemix.model import LanguageModel
from megatron_codemix.progress import progress

Read = Callable[[str], Tensor]
"""Name of a parameter → its value, on the device of the forward pass."""


@dataclass(frozen=True)
class Observation:
    """What one implementation says of every probe."""

    log_probabilities: list[Tensor]
    """Per probe, float32 (n, V) on the CPU."""
    layers: list[Tensor]
    """Hidden states of the longest random probe: behind the embedding, then behind each layer; float32 (n, H) each, on the CPU."""


def layer_probe(probes: Sequence[Probe]) -> int:
    """Which probe's hidden states are kept: the longest of those with random ids."""
    random = [index for index, probe in enumerate(probes) if probe.random]
    return max(random, key=lambda index: probes[index].tokens.size)


@torch.no_grad()
def observe_ours(skeleton: LanguageModel, read: Read, probes: Sequence[Probe], device: torch.device) -> Observation:
    """Run our model, whole in this process and without parameters of its own (`model.build_skeleton`), on the probes."""
    tokens, kept = _batch(probes, device), layer_probe(probes)
    layers = [f"decoder.layers.{number}" for number in range(len(skeleton.decoder.layers))]
    skeleton.eval()
    skeleton.post_process = False  # its forward pass ends before the output matrix, which then runs probe by probe
    with (
        _streamed(skeleton, ["embedding", *layers, "decoder.final_layernorm"], read),
        _outputs(skeleton, ["embedding", *layers], lambda hidden_SBH: hidden_SBH[: probes[kept].tokens.size, kept]) as states,
    ):
        hidden_SBH = skeleton(tokens, torch.arange(tokens.size(1), device=device).expand(tokens.shape), None)
    tied = read("embedding.word_embeddings.weight") if skeleton.share_embeddings_and_output_weights else None
    scores = []
    with _filled(skeleton, "output_layer", read):
        for row, probe in enumerate(probes):
            logits_SBV, _ = skeleton.output_layer(hidden_SBH[: probe.tokens.size, row : row + 1], weight=tied)
            scores.append(skeleton.log_probabilities(logits_SBV.transpose(0, 1))[0].cpu())
    return Observation(scores, states)


@torch.no_grad()
def observe_llama(skeleton: Any, read: Read, probes: Sequence[Probe], device: torch.device) -> Observation:
    """Run a LlamaForCausalLM, its parameters on the meta device, on the probes."""
    tokens, kept = _batch(probes, device), layer_probe(probes)
    layers = [f"model.layers.{number}" for number in range(len(skeleton.model.layers))]
    skeleton.eval()
    with (
        _streamed(skeleton, ["model.embed_tokens", *layers, "model.norm"], read),
        _outputs(skeleton, ["model.embed_tokens", *layers], lambda hidden_BSH: hidden_BSH[kept, : probes[kept].tokens.size]) as states,
    ):
        hidden_BSH = skeleton.model(input_ids=tokens, use_cache=False).last_hidden_state
    with _filled(skeleton, "lm_head", read):
        logits = (skeleton.lm_head(hidden_BSH[row, : probe.tokens.size]) for row, probe in enumerate(probes))
        scores = [each.float().log_softmax(dim=-1).cpu() for each in logits]
    return Observation(scores, states)


def _batch(probes: Sequence[Probe], device: torch.device) -> Tensor:
    """int64 (B, S): the probes, filled up behind their ends, where causal attention does not look."""
    tokens = torch.zeros(len(probes), max(probe.tokens.size for probe in probes), dtype=torch.int64)
    for row, probe in enumerate(probes):
        tokens[row, : probe.tokens.size] = torch.from_numpy(probe.tokens)
    return tokens.to(device)


@contextmanager
def _streamed(model: torch.nn.Module, parts: Sequence[str], read: Read) -> Iterator[None]:
    """During the block, each of these modules has its parameters while it runs."""
    handles = []
    with progress(f"running {type(model).__name__}", len(parts), "parts") as bar:

        def fill(part: str) -> Callable[..., None]:
            return lambda module, inputs: _fill(module, part, read)

        def empty(module: torch.nn.Module, inputs: Any, output: Any) -> None:
            _empty(module)
            bar.advance()

        for part in parts:
            module = model.get_submodule(part)
            handles += [module.register_forward_pre_hook(fill(part)), module.register_forward_hook(empty)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


@contextmanager
def _filled(model: torch.nn.Module, part: str, read: Read) -> Iterator[None]:
    """During the block, this module has its parameters."""
    module = model.get_submodule(part)
    _fill(module, part, read)
    try:
        yield
    finally:
        _empty(module)


def _fill(module: torch.nn.Module, part: str, read: Read) -> None:
    for name, parameter in list(module.named_parameters()):
        value = read(f"{part}.{name}")
        assert value.shape == parameter.shape, f"{part}.{name}: {tuple(value.shape)} is no {tuple(parameter.shape)}"
        _set(module, name, value)


def _empty(module: torch.nn.Module) -> None:
    for name, parameter in list(module.named_parameters()):
        _set(module, name, parameter.to("meta"))


def _set(module: torch.nn.Module, name: str, value: Tensor) -> None:
    owner, _, leaf = name.rpartition(".")
    setattr(module.get_submodule(owner), leaf, torch.nn.Parameter(value, requires_grad=False))


@contextmanager
def _outputs(model: torch.nn.Module, parts: Sequence[str], rows: Callable[[Tensor], Tensor]) -> Iterator[list[Tensor]]:
    """Collects of the (first) output of each module, during the block, the rows that are asked for."""
    found: list[Tensor] = []

    def keep(module: torch.nn.Module, inputs: Any, output: Any) -> None:
        found.append(rows(output[0] if isinstance(output, tuple) else output).to("cpu", torch.float32, copy=True))

    handles = [model.get_submodule(part).register_forward_hook(keep) for part in parts]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
