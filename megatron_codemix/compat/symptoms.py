"""What megatron-core does without each patch: small calls into it that raise where the patch is missing.

Nothing here runs in training; tests/unit/test_compat.py runs each in a process of its own, with and without its patch.
"""

from __future__ import annotations

import importlib
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
    """Pipeline communication waits for the GPU behind each batch of sends and receives."""
    _single_process()
    settings = _config(pipeline_dtype=torch.float32, batch_p2p_comm=True, batch_p2p_sync=True)
    communicator = _mcore("pipeline_parallel.p2p_communication").P2PCommunicator(dist.group.WORLD, settings)
    communicator._communicate(tensor_send_next=None, tensor_send_prev=None, recv_prev=False, recv_next=False, tensor_shape=None)


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


def fp8_without_te() -> None:
    """Selective recompute through CheckpointWithoutOutput with fp8 off."""
    _single_process()
    random = _mcore("tensor_parallel.random")
    random.model_parallel_cuda_manual_seed(1, force_reset_rng=True)
    random.CheckpointWithoutOutput(fp8=False).checkpoint(torch.square, torch.ones(2, requires_grad=True))


def fused_adam() -> None:
    """The optimizer of a run, whose state is what checkpoints hold."""
    optimizer, _ = _distributed_optimizer()
    assert type(optimizer.optimizer) is torch.optim.AdamW, type(optimizer.optimizer)
