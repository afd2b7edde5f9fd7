"""Config: strict fields, every mistake at once with its path, YAML's traps, round trips."""

from fractions import Fraction
from pathlib import Path

import pytest
import yaml

from megatron_codemix.config import ModelConfig, PrepConfig, RunConfig, dump_yaml, load_config, padded_vocab_size, parse_config
from megatron_codemix.config.reference import descriptions, reference
from megatron_codemix.config.section import Section, exact_share
from megatron_codemix.errors import UserError

RUN = """
name: tiny
output: out
tokenizer: tok
sources: {code: {path: a}, text: {path: b}}
model: {num_layers: 2, hidden_size: 64, num_attention_heads: 4, num_query_groups: 2, ffn_hidden_size: 128}
stages:
  - {name: main, tokens: 1e6, mixture: {code: 0.25, text: 0.75}, batch_size: 8, sequence_length: 64,
     learning_rate: {shape: cosine, peak: 1e-3, final: 1e-4, warmup_tokens: 1_000}}
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return path


def problems(tmp_path: Path, text: str, overrides: list[str] | None = None, model=RunConfig) -> list[str]:
    with pytest.raises(UserError) as caught:
        load_config(write(tmp_path, text), model, overrides or [])
    return list(caught.value.problems)


def test_numbers_as_people_write_them(tmp_path):
    config = load_config(write(tmp_path, RUN), RunConfig)
    stage = config.stages[0]
    assert (stage.tokens, stage.learning_rate.peak, stage.learning_rate.warmup_tokens) == (1_000_000, 1e-3, 1000)


def test_dump_then_load_gives_an_equal_config(tmp_path):
    config = load_config(write(tmp_path, RUN), RunConfig, ["stages.0.mixture={code: {start: 0, end: '1/3'}, text: {start: 1, end: '2/3'}}"])
    again = load_config(write(tmp_path, dump_yaml(config)), RunConfig)
    assert again == config


def test_all_mistakes_are_reported_at_once_with_their_paths(tmp_path):
    text = RUN.replace("hidden_size: 64", "hidden_size: 63").replace("code: 0.25", "cod: 0.2").replace("batch_size: 8", "batch_size: 7.5")
    found = "\n".join(problems(tmp_path, text + "precison: fp32\nseeds: {data: x}\n", ["micro_batch_size=0"]))
    for expected in (
        "model.num_attention_heads: 4 does not divide hidden_size 63",
        "stages[0].mixture.cod: no source of that name",
        "stages[0].mixture: shares sum to 0.95",
        "stages[0].batch_size",
        "precison: unknown key; did you mean 'precision'?",
        "seeds.data",
        "micro_batch_size",
    ):
        assert expected in found
    assert all(line.startswith(str(tmp_path / "run.yaml")) for line in found.splitlines())


@pytest.mark.parametrize(
    "override, expected",
    [
        ("stages.0.batch_size=12", None),
        ("stages.3.batch_size=12", "has items 0 to 0"),
        ("name.x=1", "is a value, not a section|name"),
        ("nonsense", "not of the form"),
        ("name=[unclosed", "not valid YAML"),
        ("stages.0.learning_rate.shape=wsd", "decay_tokens"),
        ("stages.0.learning_rate.final=1", "above the peak"),
        ("stages.0.learning_rate.warmup_tokens=2e6", "longer than the stage"),
        ("stages.0.learning_rate.decay_tokens=1e5", "only 'wsd' has one"),
        ("stages.0.learning_rate.peak=.inf", "stages[0].learning_rate.peak: Input should be a finite number"),
        ("sources.code.max_epochs=.inf", "sources.code.max_epochs: Input should be a finite number"),
        ("micro_batch_size=3", "not a multiple of micro_batch_size"),
        ("micro_batch_size=3.0", "not a multiple of micro_batch_size"),
        ("model.hidden_size=66.0", "does not divide hidden_size 66"),
        ("seeds.init=1e30", "seeds.init"),
        ("name=2024-13-45", "not valid YAML"),
        ("parallel.context=64", "stages[0].sequence_length: 64 is not a multiple of 128"),
        ("parallel.tensor=3", "parallel.tensor: 3 does not divide model.num_attention_heads 4"),
        ("parallel.pipeline=3", "parallel.pipeline: 3 does not divide model.num_layers 2"),
        ("model.num_query_groups=3", "does not divide num_attention_heads"),
        ("model.num_attention_heads=64", "rotary positions need an even one"),
        ("stages.0.mixture.code=1.25", "between 0 and 1"),
        ("stages.0.mixture.code=a/b", "fraction such as"),
        ("optimizer.beta1=1.0", "optimizer.beta1"),
        ("model.head_size=5", "model.head_size: 5 is odd"),
        ("model.norm=batchnorm", "model.norm"),
        ("model.norm=layernorm", "model.norm: no published architecture has norm layernorm together"),
        ("model.activation=gelu", "no published architecture has activation gelu together"),
        ("model={qkv_bias: true, qk_norm: true}", "no published architecture has qkv_bias, qk_norm together"),
        ("model={bias: true, sliding_window: 8}", "no published architecture has bias, sliding_window together"),
        ("model.sliding_window=0", "model.sliding_window"),
        ("model.rope_scaling={low_frequency_factor: 4}", "rope_scaling.high_frequency_factor: 4.0 is not above low_frequency_factor 4"),
        ("model.rope_scaling={factor: 0.5}", "model.rope_scaling.factor"),
        ("model.rope_scaling={factors: 2}", "did you mean 'factor'"),
        ("engine=deepsped", "Input should be 'megatron' or 'deepspeed' (given: 'deepsped'); did you mean 'deepspeed'?"),
    ],
)
def test_overrides(tmp_path, override, expected):
    if expected is None:
        assert load_config(write(tmp_path, RUN), RunConfig, [override]).stages[0].batch_size == 12
        return
    found = "\n".join(problems(tmp_path, RUN, [override]))
    assert any(part in found for part in expected.split("|"))


@pytest.mark.parametrize(
    ("fields", "architecture"),
    [
        ({}, "LlamaForCausalLM"),
        ({"bias": True}, "LlamaForCausalLM"),
        ({"head_size": 20, "rope_scaling": {}}, "LlamaForCausalLM"),
        ({"sliding_window": 16}, "MistralForCausalLM"),
        ({"hidden_size": 66, "head_size": 16}, "MistralForCausalLM"),
        ({"qkv_bias": True, "sliding_window": 16}, "Qwen2ForCausalLM"),
        ({"qk_norm": True}, "Qwen3ForCausalLM"),
        ({"norm": "layernorm", "activation": "gelu"}, "Starcoder2ForCausalLM"),
        ({"norm": "layernorm", "activation": "gelu", "bias": True, "sliding_window": 16}, "Starcoder2ForCausalLM"),
    ],
)
def test_the_shape_decides_the_architecture(fields, architecture):
    model = parse_config(yaml.safe_load(RUN)["model"] | fields, ModelConfig, "here")
    assert model.architecture == architecture


def test_operations_count_the_keys_that_a_window_lets_through():
    shape = {"num_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "ffn_hidden_size": 128}
    full, slides, wide = (
        ModelConfig(**shape, **more) for more in ({}, {"sliding_window": 8}, {"head_size": 32, "norm": "layernorm", "activation": "gelu"})
    )
    for length in (4, 8, 9, 64):
        seen = sum(min(position + 1, 8) for position in range(length)) / length
        # counted in the continuum, as the half square is: half a key less for each query
        assert slides.keys_per_query(length) == pytest.approx(seen - 0.5, abs=0.5)
        assert slides.flops_per_token(0, length) <= full.flops_per_token(0, length)
    assert full.keys_per_query(64) == 32
    assert full.flops_per_token(100, 64) == 6 * (2 * (4 * 64 * 64 + 3 * 64 * 128) + 100 * 64) + 6 * 2 * 64 * 64
    assert wide.flops_per_token(0, 64) == 6 * 2 * (4 * 64 * 128 + 2 * 64 * 128) + 12 * 2 * 32 * 128
    assert wide.num_parameters(0) == 2 * (4 * 64 * 128 + 2 * 64 * 128 + 4 * 64) + 2 * 64


def test_a_query_group_may_lie_on_several_tensor_ranks(tmp_path):
    assert load_config(write(tmp_path, RUN), RunConfig, ["parallel.tensor=4"]).parallel.tensor == 4


@pytest.mark.parametrize(
    "text, expected",
    [("", "is empty"), ("- 1\n", "must be a mapping"), ("name: a\nname: b\n", "given twice"), ("a: [1\n", "line 2: not valid YAML")],
)
def test_unreadable_files(tmp_path, text, expected):
    assert expected in problems(tmp_path, text)[0]


def test_missing_file():
    with pytest.raises(UserError, match="no such file"):
        load_config(Path("nowhere.yaml"), RunConfig)


def test_shares_are_the_rationals_that_were_written():
    assert exact_share(0.1) == Fraction(1, 10)
    assert exact_share("1/3") == Fraction(1, 3)
    raw = yaml.safe_load(RUN)
    raw["stages"][0]["tokens"], raw["stages"][0]["learning_rate"] = 1_000_000, {"shape": "constant", "peak": 0.001}
    raw["stages"][0]["mixture"] = {"code": "1/3", "text": "2/3"}
    assert parse_config(raw, RunConfig, "here").stages[0].mixture == {"code": "1/3", "text": "2/3"}


def test_every_field_of_a_run_is_described():
    def sections(model):
        yield model
        for section in model.__subclasses__():
            yield from sections(section)

    described = 0
    for model in sections(Section):
        if model.__module__.startswith("megatron_codemix.config."):
            found = descriptions(model)
            for name in model.model_fields:
                assert found.get(name), f"{model.__name__}.{name} has no description"
                described += 1
    assert described > 60


def test_prep_sources_refuse_fields_of_another_kind(tmp_path):
    text = "output: o\nsources:\n  a: {kind: stdlib, modality: code, paths: [x]}\n  b: {kind: jsonl, modality: text}\n"
    found = "\n".join(problems(tmp_path, text, model=PrepConfig))
    assert "sources.a.paths" in found and "sources.a.part" in found and "sources.b.paths" in found


@pytest.mark.parametrize(
    "field, value, kinds",
    [
        ("suffixes", [".py"], {"files", "git"}),
        ("revision", "v1.0", {"git"}),
        ("part", "code", {"stdlib"}),
        *(
            (field, "x", {"jsonl", "parquet", "huggingface", "webdataset"})
            for field in ("text_field", "id_field", "group_field", "path_field")
        ),
        *((field, "x", {"jsonl", "parquet", "huggingface", "webdataset"}) for field in ("language_field", "license_field")),
        ("only", {"lang": ["c"]}, {"jsonl", "parquet", "huggingface", "webdataset"}),
    ],
)
def test_what_a_kind_of_source_does_not_read_is_refused(field, value, kinds):
    place = {"stdlib": {"part": "text"}, "huggingface": {"dataset": {"name": "d"}}}
    for kind in ("jsonl", "parquet", "huggingface", "webdataset", "files", "git", "stdlib"):
        spec = {"kind": kind, "modality": "code", **place.get(kind, {"paths": ["x"]}), field: value}
        found = PrepConfig.cross_problems({"output": "o", "sources": {"a": spec}})
        expected = [] if kind in kinds else [f"sources.a.{field}: a source of kind '{kind}' does not read it"]
        assert [line.partition(", only ")[0] for line in found] == expected


def test_a_source_that_was_written_out_whole_is_read_again(tmp_path):
    for kind, more in (("git", {"paths": ["x"]}), ("jsonl", {"paths": ["x"]}), ("stdlib", {"part": "code"})):
        config = parse_config({"output": "o", "sources": {"a": {"kind": kind, "modality": "code", **more}}}, PrepConfig, "here")
        assert parse_config(config.model_dump(mode="json", exclude={"tokenizer"}), PrepConfig, "here").sources == config.sources


def test_padded_vocabulary_is_independent_of_the_layout():
    assert padded_vocab_size(4096, 128) == 4096
    assert padded_vocab_size(4097, 128) == 4224


def test_model_arithmetic_of_a_published_shape():
    # 24 layers, 1024 wide, 16 heads of 64, gated FFN of 2816, vocabulary 32,128, untied: 374.08M parameters (arXiv 2409.04556)
    config = parse_config(
        {"num_layers": 24, "hidden_size": 1024, "num_attention_heads": 16, "ffn_hidden_size": 2816},
        ModelConfig,
        "here",
    )
    norms = (2 * 24 + 1) * 1024
    assert round((config.num_parameters(32_128) - norms) / 1e6, 2) == 374.08


def test_the_reference_page_is_up_to_date():
    page = Path(__file__).parents[2] / "docs" / "config.md"
    assert page.read_text() == reference(), "run: python -m megatron_codemix.config.reference > docs/config.md"
