"""config.json of the dense families of transformers ↔ the shape of our model: strict in both directions.

A field that changes what a model computes is either honoured or refused by name; a field that this table does not know is
refused too, since nobody can tell what it does. Fields left out mean what transformers' own classes mean by it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from megatron_codemix.checkpoint.hf_fields import FAMILIES, FIXED, INERT, Family, FieldReader
from megatron_codemix.config import ModelConfig, RopeScaling, parse_config
from megatron_codemix.config.section import is_count
from megatron_codemix.errors import UserError

MOST_LAYERS = 10_000
_DTYPE_NAMES = {"fp32": "float32", "bf16": "bfloat16"}


@dataclass(frozen=True)
class SpecialIds:
    """Ids that generation needs."""

    begin: int
    end: int
    padding: int


_WINDOW_LAYERS = ("use_sliding_window", "sliding_window", "max_window_layers", "layer_types")


def model_config_from_hf(config: Mapping[str, Any], where: str = "config.json") -> ModelConfig:
    """The shape of the model that a config.json describes; `vocab_multiple` is left at its default.

    Raises UserError naming every field at once that our model does not honour, that is malformed or unknown, each prefixed
    by `where`.
    """
    if not isinstance(config, Mapping):
        raise UserError(f"{where}: is no mapping of fields; give the config.json of a model of transformers")
    architecture = _architecture_of(config, where)
    family, reader = FAMILIES[architecture], FieldReader(config)
    shape = _common_shape(reader, family)
    window = _sliding_window(reader, family, shape["num_layers"])
    shape |= {"sliding_window": window, **_variant(reader, architecture)}
    shape |= _rope(reader)
    for key, values in {**FIXED, **family.fixed}.items():
        if key in config:
            reader.only(key, *values)
    for key in reader.untaken():
        if key not in INERT:
            reader.problems.append(f"{key}: (= {config[key]!r}) is no field that we know of model_type {family.model_type}")
    if reader.problems:
        raise UserError(*(f"{where}: {problem}; such a model cannot be taken over" for problem in reader.problems))
    return parse_config({key: value for key, value in shape.items() if value is not None}, ModelConfig, where)


def _ours_by_type() -> dict[str, str]:
    return {family.model_type: architecture for architecture, family in FAMILIES.items()}


def _architecture_of(config: Mapping[str, Any], where: str) -> str:
    """The class of transformers, from model_type; `architectures`, if given, must say the same."""
    known, model_type = _ours_by_type(), config.get("model_type")
    if not isinstance(model_type, str) or model_type not in known:
        raise UserError(f"{where}: model_type: {model_type!r} is none of {', '.join(known)}; no other family can be taken over")
    given = config.get("architectures")
    if given and given != [known[model_type]]:
        raise UserError(f"{where}: architectures: {given!r} is not [{known[model_type]!r}]; only language models can be taken over")
    if config.get("auto_map"):
        raise UserError(f"{where}: auto_map: the model brings code of its own, which is never run; use a model of transformers")
    layers = config.get("num_hidden_layers")
    if is_count(layers) and layers > MOST_LAYERS:  # nothing is made for each of them before it is known that they are there
        raise UserError(f"{where}: num_hidden_layers: {layers:,} is more than any model has ({MOST_LAYERS:,}); restore the file")
    return known[model_type]


def _common_shape(reader: FieldReader, family: Family) -> dict[str, Any]:
    heads, hidden = reader.count("num_attention_heads"), reader.count("hidden_size")
    # null is as many as query heads everywhere; left out, it is the class's own default
    groups = reader.count("num_key_value_heads", heads if "num_key_value_heads" in reader.raw else family.groups or heads)
    size = reader.count("head_dim", None if "head_dim" in reader.raw else family.head_dim)
    even = is_count(hidden) and is_count(heads) and hidden % heads == 0
    return {
        "num_layers": reader.count("num_hidden_layers"),
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_query_groups": None if groups == heads else groups,
        "head_size": None if even and size == hidden // heads else size,
        "ffn_hidden_size": reader.count("intermediate_size"),
        "tied_embeddings": reader.flag("tie_word_embeddings", family.tied),
        "norm_epsilon": reader.number(family.norm_key, family.norm_epsilon),
        "init_std": reader.number("initializer_range", family.init_std),
        "attention_dropout": reader.number("attention_dropout", 0.0),
    }


def _variant(reader: FieldReader, architecture: str) -> dict[str, Any]:
    """What sets the families apart."""
    if architecture == "Starcoder2ForCausalLM":
        reader.only("hidden_act", "gelu_pytorch_tanh")
        residual, embedding = reader.number("residual_dropout", 0.0), reader.number("embedding_dropout", 0.0)
        if residual != embedding:
            reader.problems.append(f"embedding_dropout: {embedding:g} is not residual_dropout {residual:g}, and our model has one for both")
        epsilon = reader.number("norm_epsilon", 1e-5)
        if reader.number("layer_norm_epsilon", epsilon) != epsilon:  # an older name for it, which transformers passes over
            reader.problems.append(f"layer_norm_epsilon: {reader.raw['layer_norm_epsilon']!r} is not norm_epsilon {epsilon:g}")
        bias = reader.flag("use_bias", True)
        return {"norm": "layernorm", "activation": "gelu", "bias": bias, "hidden_dropout": residual}
    reader.only("hidden_act", "silu", "swish")
    if architecture == "LlamaForCausalLM":
        attention, feed_forward = reader.flag("attention_bias", False), reader.flag("mlp_bias", False)
        if attention != feed_forward:
            key = "attention_bias" if attention else "mlp_bias"
            reader.problems.append(f"{key}: our model has biases on all linear layers or on none (or on query, key and value alone)")
        return {"bias": attention and feed_forward}
    return {"qkv_bias": architecture == "Qwen2ForCausalLM", "qk_norm": architecture == "Qwen3ForCausalLM"}


def _sliding_window(reader: FieldReader, family: Family, layers: Any) -> int | None:
    """The window of every layer; layers that differ are refused."""
    if family.model_type == "llama":
        return None
    if family.model_type in ("mistral", "starcoder2"):
        return reader.count("sliding_window", None if "sliding_window" in reader.raw else family.window)
    used = reader.flag("use_sliding_window", False)
    window, first, types = reader.take("sliding_window", 4096), reader.take("max_window_layers", 28), reader.take("layer_types")
    if not is_count(layers):
        return None
    if types is None:
        beyond = used and window is not None
        types = ["sliding_attention" if beyond and layer >= first else "full_attention" for layer in range(layers)]
    kinds = set(types) if isinstance(types, list) and len(types) == layers else {"?"}
    if kinds == {"full_attention"}:
        return None
    if kinds != {"sliding_attention"} or not used or not is_count(window):
        keys = ", ".join(f"{key} {reader.raw[key]!r}" for key in _WINDOW_LAYERS if key in reader.raw)
        reader.problems.append(f"layer_types: our model has one sliding window in all layers or none ({keys})")
        return None
    return window


def _rotation(given: Mapping[str, Any], theta: float) -> dict[str, Any]:
    """What such a mapping says, under one name each."""
    kind = given.get("rope_type", given.get("type", "default"))
    return {"rope_theta": theta, **given, "rope_type": kind, "type": kind}


def _rope(reader: FieldReader) -> dict[str, Any]:
    """Base and scaling of the rotary positions, under the names of transformers 4 and 5."""
    old, new = reader.take("rope_scaling"), reader.take("rope_parameters")
    theta = reader.number("rope_theta", 10_000.0)
    if not all(isinstance(value, Mapping) for value in (old, new) if value):
        reader.problems.append("rope_scaling, rope_parameters: no mapping of fields")
        return {}
    given = dict(old or new or {})  # as transformers chooses
    if old and new and _rotation(old, theta) != _rotation(new, theta):
        reader.problems.append("rope_parameters: says something else than rope_scaling")
    inner = FieldReader(given)
    base = inner.number("rope_theta", theta)
    if "rope_theta" in given and "rope_theta" in reader.raw and base != theta:
        reader.problems.append(f"rope_theta: {theta:g} is not the {base:g} inside rope_parameters")
    inner.only("partial_rotary_factor", 1.0)
    kind = inner.take("rope_type", given.get("type", "default"))
    inner.take("type")
    scaling = None
    if kind == "llama3":
        scaling = {
            "factor": inner.number("factor", 0.0),
            "low_frequency_factor": inner.number("low_freq_factor", 0.0),
            "high_frequency_factor": inner.number("high_freq_factor", 0.0),
            "original_positions": inner.count("original_max_position_embeddings", reader.take("max_position_embeddings")),
        }
        missing = [key for key in ("factor", "low_freq_factor", "high_freq_factor") if key not in given]
        inner.problems += [f"{key}: required, but not given" for key in missing]
    elif kind != "default":
        inner.problems.append(f"rope_type: {kind!r} is neither 'default' nor 'llama3'")
    else:
        inner.take("original_max_position_embeddings")  # which that type passes over
    if kind in ("default", "llama3"):  # of another, its fields are not what is wrong
        inner.problems += [f"{key}: (= {given[key]!r}) is no field that we know of rope_type {kind!r}" for key in inner.untaken()]
    reader.problems += [f"rope_scaling.{problem}" for problem in inner.problems]
    return {"rope_base": base, "rope_scaling": scaling}


def hf_config(model: ModelConfig, vocab_size: int, max_positions: int, precision: str, ids: SpecialIds, version: str) -> dict[str, Any]:
    """config.json of the class of transformers that has this shape (`model.architecture`).

    precision: `fp32` or `bf16`, of the written weights; version: of transformers, as its own files say it. Keys that
    transformers 5 renamed (`rope_parameters`, `dtype`) are written under both names, so that older clients read the same model.
    Dropout on the residual stream, which acts in training alone, has no field outside StarCoder2.
    """
    architecture = model.architecture
    family = FAMILIES[architecture]
    scaling = _hf_scaling(model.rope_scaling)
    config: dict[str, Any] = {
        "architectures": [architecture],
        "model_type": family.model_type,
        "vocab_size": vocab_size,
        "hidden_size": model.hidden_size,
        "intermediate_size": model.ffn_hidden_size,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_attention_heads,
        "num_key_value_heads": model.query_groups,
        "head_dim": model.head_width,
        "hidden_act": "silu" if model.activation == "swiglu" else "gelu_pytorch_tanh",
        "max_position_embeddings": max_positions,
        "initializer_range": model.init_std,
        family.norm_key: model.norm_epsilon,
        "rope_theta": model.rope_base,
        "rope_parameters": {"rope_theta": model.rope_base, **(scaling or {"rope_type": "default"})},
        "rope_scaling": scaling,
        "attention_dropout": model.attention_dropout,
        **_hf_variant(model, family.model_type),
        "tie_word_embeddings": model.tied_embeddings,
        "use_cache": True,
        "dtype": _DTYPE_NAMES[precision],
        "torch_dtype": _DTYPE_NAMES[precision],
        **special_ids(ids),
        "transformers_version": version,
    }
    return config


def special_ids(ids: SpecialIds) -> dict[str, int]:
    """As config.json and generation_config.json name them."""
    return {"bos_token_id": ids.begin, "eos_token_id": ids.end, "pad_token_id": ids.padding}


def _hf_variant(model: ModelConfig, model_type: str) -> dict[str, Any]:
    """The fields that a family has of its own."""
    if model_type == "llama":
        return {"attention_bias": model.bias, "mlp_bias": model.bias}
    if model_type == "mistral":
        return {"sliding_window": model.sliding_window}
    if model_type == "starcoder2":
        dropout = {"residual_dropout": model.hidden_dropout, "embedding_dropout": model.hidden_dropout}
        return {"use_bias": model.bias, "sliding_window": model.sliding_window, **dropout}
    windowed = model.sliding_window is not None
    variant: dict[str, Any] = {
        "use_sliding_window": windowed,
        "sliding_window": model.sliding_window,
        "max_window_layers": 0 if windowed else model.num_layers,
        "layer_types": ["sliding_attention" if windowed else "full_attention"] * model.num_layers,
    }
    return {**variant, "attention_bias": False} if model_type == "qwen3" else variant


def _hf_scaling(scaling: RopeScaling | None) -> dict[str, Any] | None:
    if scaling is None:
        return None
    return {
        "rope_type": "llama3",
        "factor": scaling.factor,
        "low_freq_factor": scaling.low_frequency_factor,
        "high_freq_factor": scaling.high_frequency_factor,
        "original_max_position_embeddings": scaling.original_positions,
    }
