"""From a run's config to megatron-core's TransformerConfig and to the part of the model that this rank holds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_codemix.config import ParallelConfig, RunConfig, padded_vocab_size
from megatron_codemix.kernels import DocumentLayouts
from megatron_codemix.model.initialise import initialise
from megatron_codemix.model.language_model import LanguageModel
from megatron_codemix.model.rotary import scaled_frequencies
from megatron_codemix.model.spec import block_spec
from megatron_codemix.model.width import multipliers


def gelu_tanh(x: Tensor) -> Tensor:
    """GELU in its tanh approximation (Hendrycks & Gimpel 2016, arXiv 1606.08415, section 2): transformers' `gelu_pytorch_tanh`."""
    return torch.nn.functional.gelu(x, approximate="tanh")


def _leave(weight: Tensor) -> Tensor:
    """megatron-core's initialisation, switched off: `initialise` fills every weight, whatever the layout."""
    return weight


def transformer_config(config: RunConfig) -> TransformerConfig:
    """megatron-core's view of a run: the shape of the model, the layout, the precision."""
    model = config.model
    dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
    return TransformerConfig(
        num_layers=model.num_layers,
        hidden_size=model.hidden_size,
        num_attention_heads=model.num_attention_heads,
        num_query_groups=model.query_groups,
        kv_channels=model.head_width,
        ffn_hidden_size=model.ffn_hidden_size,
        normalization="LayerNorm" if model.norm == "layernorm" else "RMSNorm",
        # tells megatron-core, too, that each tensor-parallel rank has these norms' gradients of its own heads alone, to be summed
        qk_layernorm=model.qk_norm,
        layernorm_epsilon=model.norm_epsilon,
        persist_layer_norm=False,
        activation_func=torch.nn.functional.silu if model.activation == "swiglu" else gelu_tanh,
        gated_linear_unit=model.activation == "swiglu",
        add_bias_linear=model.bias,
        add_qkv_bias=model.bias or model.qkv_bias,
        hidden_dropout=model.hidden_dropout,
        attention_dropout=model.attention_dropout,
        init_method=_leave,
        output_layer_init_method=_leave,
        embedding_init_method=_leave,
        params_dtype=dtype,
        bf16=config.precision == "bf16",
        calculate_per_token_loss=True,
        # fused operators of megatron-core that need its extensions, Transformer Engine or Apex
        gradient_accumulation_fusion=False,
        masked_softmax_fusion=False,
        bias_activation_fusion=False,
        bias_dropout_fusion=False,
        # the embedding's gradient sums in no fixed order on a GPU (so may the attention kernels that PyTorch picks there)
        deterministic_mode=torch.cuda.is_available(),
        **_layout(config.parallel, dtype),
        **_recompute(config.parallel),
    )


def _layout(parallel: ParallelConfig, dtype: torch.dtype) -> dict[str, Any]:
    interleaved = parallel.virtual_stages > 1
    return {
        "tensor_model_parallel_size": parallel.tensor,
        "sequence_parallel": parallel.sequence,
        "context_parallel_size": parallel.context,
        "pipeline_model_parallel_size": parallel.pipeline,
        "virtual_pipeline_model_parallel_size": parallel.virtual_stages if interleaved else None,
        "pipeline_model_parallel_layout": _stages(parallel.layers_per_stage),
        "pipeline_dtype": dtype,
        # batched exchange between interleaved stages gives wrong losses, silently
        "overlap_p2p_comm": interleaved,
        "batch_p2p_comm": not interleaved,
        # freed as soon as it was sent; the interleaved schedule would free what is still being sent: other numbers arrive, silently
        "deallocate_pipeline_outputs": not interleaved,
    }


def _stages(layers_per_stage: list[int] | None) -> list[list[str]] | None:
    """megatron-core's list of what each stage holds, in the order of the model; None: equal numbers of layers."""
    if layers_per_stage is None:
        return None
    stages = [["decoder"] * layers for layers in layers_per_stage]
    stages[0].insert(0, "embedding")
    stages[-1].append("loss")
    return stages


def _recompute(parallel: ParallelConfig) -> dict[str, Any]:
    recompute = parallel.recompute
    if recompute.granularity == "none":
        return {}
    if recompute.granularity == "selective":
        return {"recompute_granularity": "selective", "recompute_modules": list(recompute.modules)}
    return {
        "recompute_granularity": "full",
        "recompute_method": recompute.method,
        "recompute_num_layers": recompute.num_layers,
        "distribute_saved_activations": recompute.distribute_saved,
    }


def build_chunks(config: RunConfig, vocab_size: int, megatron_config: TransformerConfig | None = None) -> list[LanguageModel]:
    """This rank's part of the model, one module per virtual pipeline stage, in the order of the model.

    Initialised by `config.seeds.init`, in the run's precision, on this rank's device. vocab_size: entries of the
    tokenizer; the embedding gets `padded_vocab_size` rows. Needs megatron-core's process groups and its
    random-number tracker (`parallel.Topology.join` makes both). megatron_config: what `transformer_config(config)`
    returned, if the caller shares it.
    """
    megatron_config = megatron_config or transformer_config(config)
    virtual_stages = range(config.parallel.virtual_stages) if config.parallel.virtual_stages > 1 else (None,)
    layouts = DocumentLayouts(config.model.sliding_window)  # the chunks of a rank work on the same micro-batches
    chunks = []
    for stage in virtual_stages:
        chunks.append(_build(config, vocab_size, megatron_config, layouts, stage))
        initialise(
            chunks[-1],
            seed=config.seeds.init,
            init_std=config.model.init_std,
            vocab_size=vocab_size,
            scale=lambda name, ndim: multipliers(config, name, ndim).init_std,
        )
    return chunks


def build_model(config: RunConfig, vocab_size: int, megatron_config: TransformerConfig | None = None) -> LanguageModel:
    """`build_chunks` for a layout without virtual stages: this rank's part is one module."""
    (model,) = build_chunks(config, vocab_size, megatron_config)
    return model


def build_skeleton(config: RunConfig, vocab_size: int) -> LanguageModel:
    """`build_model` with its parameters on the meta device, which has shapes and no memory: to be filled part by part."""
    with _on_the_meta_device():
        return _build(config, vocab_size, transformer_config(config), DocumentLayouts(config.model.sliding_window), None)


@contextmanager
def _on_the_meta_device() -> Iterator[None]:
    """Parameters give back their memory as they are registered: megatron-core names the device of each, so a default would not do."""
    register = torch.nn.Module.register_parameter

    def register_on_meta(self: torch.nn.Module, name: str, param: torch.nn.Parameter | None) -> None:
        register(self, name, None if param is None else torch.nn.Parameter(param.to("meta"), requires_grad=False))

    torch.nn.Module.register_parameter = register_on_meta
    try:
        yield
    finally:
        torch.nn.Module.register_parameter = register


def _build(
    config: RunConfig, vocab_size: int, megatron_config: TransformerConfig, layouts: DocumentLayouts, virtual_stage: int | None
) -> LanguageModel:
    model = LanguageModel(
        real_vocab_size=vocab_size,
        config=megatron_config,
        transformer_layer_spec=block_spec(megatron_config, layouts, virtual_stage),
        vocab_size=padded_vocab_size(vocab_size, config.model.vocab_multiple),
        max_sequence_length=max(stage.sequence_length for stage in config.stages),
        pre_process=parallel_state.is_pipeline_first_stage(ignore_virtual=False, vp_stage=virtual_stage),
        post_process=parallel_state.is_pipeline_last_stage(ignore_virtual=False, vp_stage=virtual_stage),
        parallel_output=True,
        share_embeddings_and_output_weights=config.model.tied_embeddings,
        position_embedding_type="rope",
        rotary_base=config.model.rope_base,  # pyright: ignore[reportArgumentType]
        vp_stage=virtual_stage,
    )
    if config.model.rope_scaling is not None:
        rotary: Any = model.rotary_pos_emb
        rotary.inv_freq = scaled_frequencies(rotary.inv_freq, config.model.rope_scaling)
    return model
