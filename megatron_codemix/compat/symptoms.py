"""What megatron-core does without each patch: small calls into it that raise where the patch is missing.

Nothing here runs in training; tests/unit/test_compat.py runs each in a process of its own, with and without its patch.
"""

from __future__ import annotations

import importlib
import multiprocessing
import tempfile
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist


def _mcore(module: str) -> Any:
    return importlib.import_module(f"megatron.core.{module}")


def _single_process() -> None:
    """A world of one, with megatron-core's groups."""
    if not dist.is_initialized():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        _mcore("parallel_state").initialize_model_parallel()


def _config(**changes: Any) -> Any:
    settings: dict[str, Any] = {"num_layers": 1, "hidden_size": 8, "num_attention_heads": 1, "use_cpu_initialization": True}
    return _mcore("transformer.transformer_config").TransformerConfig(**{**settings, **changes})


def _distributed_optimizer() -> Any:
    """megatron-core's distributed optimizer over two parameters, not stepped yet."""
    _single_process()
    distributed, optimizers = _mcore("distributed"), _mcore("optimizer")
    config = _config()
    module = _mcore("transformer.module").MegatronModule(config)
    module.weight = torch.nn.Parameter(torch.ones(8, 8))
    module.bias = torch.nn.Parameter(torch.ones(8))
    settings = distributed.DistributedDataParallelConfig(use_distributed_optimizer=True)
    model = distributed.DistributedDataParallel(config, settings, module)
    options = optimizers.OptimizerConfig(optimizer="adam", lr=0.1, use_distributed_optimizer=True)
    chained = optimizers.get_megatron_optimizer(options, [model])
    return chained.chained_optimizers[0], model


def _step(optimizer: Any, model: Any) -> None:
    for buffer in model.buffers:
        buffer.grad_data.fill_(1.0)
    model.finish_grad_sync()
    optimizer.step()


def current_device() -> None:
    """The rotary embedding asks for the current GPU."""
    _single_process()
    _mcore("models.common.embeddings.rotary_pos_embedding").RotaryEmbedding(kv_channels=8, rotary_percent=1.0)


def factories() -> None:
    """Scalars of the gradient norm (tensor) and of counts (zeros)."""
    _single_process()
    clipping = _mcore("optimizer.clip_grads")
    assert clipping.get_grad_norm_fp32([torch.ones(4)], grad_stats_parallel_group=dist.group.WORLD) == 2.0
    assert clipping.count_zeros_fp32([], grad_stats_parallel_group=dist.group.WORLD) == 0


def pinned_memory() -> None:
    """The second of two context-parallel ranks picks its part of the rotary angles: chunks 1 and 2 of 4."""
    angles, group = torch.arange(4.0).view(4, 1, 1, 1), SimpleNamespace(size=lambda: 2, rank=lambda: 1)
    own = _mcore("models.common.embeddings.rope_utils").get_pos_emb_on_this_cp_rank(angles, 0, group)
    assert own.flatten().tolist() == [1.0, 2.0]


def tensor_cuda() -> None:
    """The first and the last pipeline stage move their tied embedding to the GPU before they agree on it."""
    _single_process()
    weight = torch.nn.Parameter(torch.ones(2))
    stage = SimpleNamespace(
        config=_config(pipeline_model_parallel_size=2, pipeline_dtype=torch.float32),
        pre_process=True,
        post_process=False,
        share_embeddings_and_output_weights=True,
        vp_stage=None,
        vp_size=None,
        pp_group=dist.group.WORLD,
        embd_group=dist.group.WORLD,
        embedding=SimpleNamespace(word_embeddings=SimpleNamespace(weight=weight)),
        shared_embedding_or_output_weight=lambda: weight,
        _is_in_embd_group=lambda: True,
    )
    _mcore("models.common.language_module.language_module").LanguageModule.setup_embeddings_and_output_layer(stage)


def tensor_type() -> None:
    """The distributed optimizer sorts parameters by type()."""
    _distributed_optimizer()


def synchronize() -> None:
    """A checkpoint save waits for copies from the GPU."""
    _mcore("dist_checkpointing.strategies.filesystem_async").FileSystemWriterAsync.preload_tensors([], True)


def random_state() -> None:
    """Seeding the tracker and drawing inside a fork."""
    random = _mcore("tensor_parallel.random")
    random.model_parallel_cuda_manual_seed(1, tp_rank=0, ep_rank=0, etp_rank=0, force_reset_rng=True)
    before = torch.get_rng_state()
    with random.get_cuda_rng_tracker().fork():
        first = torch.rand(2)
    assert torch.equal(before, torch.get_rng_state()), "a fork of the tracker disturbed the default generator"
    with random.get_cuda_rng_tracker().fork():
        second = torch.rand(2)
    assert not torch.equal(first, second), "two forks of the tracker drew the same numbers"


def empty_state() -> None:
    """state_dict of a distributed optimizer before its first step."""
    optimizer, _ = _distributed_optimizer()
    try:
        optimizer.state_dict()
    except AssertionError as error:
        raise AssertionError("state_dict asserts len(steps) == 1 on an empty state") from error


def shared_step() -> None:
    """After a load, one more step must count one, not one per parameter."""
    optimizer, model = _distributed_optimizer()
    _step(optimizer, model)
    optimizer.load_state_dict(optimizer.state_dict())
    _step(optimizer, model)
    steps = {float(state["step"]) for state in optimizer.optimizer.state.values()}
    assert steps == {2.0}, f"two updates, but the step counts are {steps}"


def _load_one_parameter(gradients: bool) -> None:
    """Loads what a checkpoint holds of one parameter: the parameter, exp_avg and exp_avg_sq, no step."""
    optimizer, model = _distributed_optimizer()
    _step(optimizer, model)
    param = next(iter(optimizer.model_param_group_index_map))
    state = optimizer._get_main_param_and_optimizer_states(param)
    stored = {key: value.detach() + 1 for key, value in state.items() if gradients or key != "step"}
    with torch.set_grad_enabled(gradients):
        optimizer._set_main_param_and_optimizer_states(param, stored)
    loaded = optimizer._get_main_param_and_optimizer_states(param)
    assert all(torch.equal(loaded[key], value) for key, value in stored.items()), "a parameter was not loaded"


def step_in_state() -> None:
    """Loading the state of one parameter looks for a stored step."""
    _load_one_parameter(gradients=False)


def load_with_grad() -> None:
    """Loading the state of one fp32 parameter writes into a leaf that requires grad."""
    _load_one_parameter(gradients=True)


def fp8_without_te() -> None:
    """Selective recompute through CheckpointWithoutOutput with fp8 off."""
    _single_process()
    random = _mcore("tensor_parallel.random")
    random.model_parallel_cuda_manual_seed(1, force_reset_rng=True)
    random.CheckpointWithoutOutput(fp8=False).checkpoint(torch.square, torch.ones(2, requires_grad=True))


def save_starts_processes() -> None:
    """What a synchronous save does to write its files."""
    writer = _mcore("dist_checkpointing.strategies.filesystem_async")
    results = writer._get_write_results_queue()
    started = multiprocessing.active_children()
    for process in started:
        process.kill()
        process.join()
    assert not started, f"{len(started)} processes were started for a synchronous save"
    with tempfile.TemporaryDirectory() as folder:
        bucket = (f"{folder}/part", "part", ([], []))
        writer.FileSystemWriterAsync.write_preloaded_data_multiproc([], False, 0, [bucket], results)
    assert results.get() == {0: []}, "nothing was written"
