"""From a run's config to megatron-core's TransformerConfig and to the part of the model that this rank holds."""

from __future__ import annotations

import torch
from megatron.core import parallel_state
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_codemix.config import RunConfig, padded_vocab_size
from megatron_codemix.errors import UserError
from megatron_codemix.kernels import DocumentLayouts
from megatron_codemix.model.initialise import initialise
from megatron_codemix.model.language_model import LanguageModel
from megatron_codemix.model.spec import block_spec


def _leave(weight: Tensor) -> Tensor:
    """megatron-core's initialisation, switched off: `initialise` fills every weight, whatever the layout."""
    return weight


def transformer_config(config: RunConfig) -> TransformerConfig:
    """megatron-core's view of a run: the Llama family, the layout, the precision; no dropout, no biases.

    Raises UserError for context parallelism, which the core attention does not know yet.
    """
    model, parallel = config.model, config.parallel
    if parallel.context > 1:
        raise UserError(f"parallel.context: {parallel.context} is more than the attention here can split; set it to 1")
    dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
    return TransformerConfig(
        num_layers=model.num_layers,
        hidden_size=model.hidden_size,
        num_attention_heads=model.num_attention_heads,
        num_query_groups=model.query_groups,
        ffn_hidden_size=model.ffn_hidden_size,
        normalization="RMSNorm",
        layernorm_epsilon=model.norm_epsilon,
        persist_layer_norm=False,
        activation_func=torch.nn.functional.silu,
        gated_linear_unit=True,
        add_bias_linear=False,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        init_method=_leave,
        output_layer_init_method=_leave,
        embedding_init_method=_leave,
        tensor_model_parallel_size=parallel.tensor,
        pipeline_model_parallel_size=parallel.pipeline,
        context_parallel_size=parallel.context,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        bf16=config.precision == "bf16",
        calculate_per_token_loss=True,
        # fused operators of megatron-core that need its extensions, Transformer Engine or Apex
        gradient_accumulation_fusion=False,
        masked_softmax_fusion=False,
        bias_activation_fusion=False,
        bias_dropout_fusion=False,
        # the embedding's gradient sums in no fixed order on a GPU (so may the attention kernels that PyTorch picks there)
        deterministic_mode=torch.cuda.is_available(),
    )


def build_model(config: RunConfig, vocab_size: int, megatron_config: TransformerConfig | None = None) -> LanguageModel:
    """This rank's part of the model, initialised by `config.seeds.init`, in the run's precision, on its device.

    vocab_size: entries of the tokenizer; the embedding gets `padded_vocab_size` rows. Needs megatron-core's
    process groups and its random-number tracker (`parallel.Topology.join` makes both).
    megatron_config: what `transformer_config(config)` returned, if the caller shares it.
    """
    megatron_config = megatron_config or transformer_config(config)
    model = LanguageModel(
        real_vocab_size=vocab_size,
        config=megatron_config,
        transformer_layer_spec=block_spec(megatron_config, DocumentLayouts()),
        vocab_size=padded_vocab_size(vocab_size, config.model.vocab_multiple),
        max_sequence_length=max(stage.sequence_length for stage in config.stages),
        pre_process=parallel_state.is_pipeline_first_stage(),
        post_process=parallel_state.is_pipeline_last_stage(),
        parallel_output=True,
        share_embeddings_and_output_weights=config.model.tied_embeddings,
        position_embedding_type="rope",
        rotary_base=config.model.rope_base,  # pyright: ignore[reportArgumentType]
    )
    initialise(model, seed=config.seeds.init, init_std=config.model.init_std, vocab_size=vocab_size)
    return model
