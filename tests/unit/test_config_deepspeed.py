"""What DeepSpeed's engine does not take together is refused when the config is read; what ZeRO holds, by its formulas."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_codemix.config import RunConfig, dump_yaml, parse_config
from megatron_codemix.config.deepspeed import swap_groups
from megatron_codemix.errors import UserError
from megatron_codemix.train.memory import rank_memory
from megatron_codemix.train.zero import host_bytes, zero_states

ROWS = 1024


def raw_run(deepspeed: Any = None, parallel: Any = None, **fields: Any) -> dict[str, Any]:
    stage = {
        "name": "s", "tokens": 1e6, "mixture": {"a": 1}, "batch_size": 16, "sequence_length": 64,
        "learning_rate": {"shape": "constant", "peak": 1e-3},
    }  # fmt: skip
    model = {"num_layers": 4, "hidden_size": 128, "num_attention_heads": 4, "num_query_groups": 2, "ffn_hidden_size": 352}
    raw = {
        "name": "tiny", "output": "o", "tokenizer": "t", "sources": {"a": {"path": "a"}}, "model": model, "stages": [stage],
        "engine": "deepspeed", "parallel": parallel or {},
    }  # fmt: skip
    return raw | ({} if deepspeed is None else {"deepspeed": deepspeed}) | fields


def problems(raw: dict[str, Any]) -> list[str]:
    try:
        parse_config(raw, RunConfig, "here")
    except UserError as error:
        return [problem.removeprefix("here: ") for problem in error.problems]
    return []


@pytest.mark.parametrize(
    ("deepspeed", "parallel", "expected"),
    [
        ({"zero_stage": 2}, {"pipeline": 2}, "deepspeed.zero_stage: 2 exchanges gradients with every micro-batch"),
        ({"zero_stage": 3}, {"pipeline": 2}, "deepspeed.zero_stage: 3 exchanges"),
        ({}, {"pipeline": 2, "virtual_stages": 2}, "parallel.virtual_stages: DeepSpeed's engine holds one module"),
        ({}, {"distributed_optimizer": True}, "parallel.distributed_optimizer: is megatron-core's"),
        ({}, {"overlap_grad_reduce": True}, "parallel.overlap_grad_reduce: deepspeed.zero_stage 1"),
        ({}, {"pipeline": 2, "layers_per_stage": [0, 4]}, "parallel.layers_per_stage: engine 'deepspeed' sums norms"),
        ({"offload_parameters": "cpu"}, {}, "deepspeed.offload_parameters: only zero_stage 3"),
        ({"zero_stage": 3, "offload_optimizer": "nvme"}, {}, "deepspeed.nvme_path: is missing, and offload_optimizer is nvme"),
        ({"zero_stage": 3, "offload_parameters": "nvme"}, {}, "deepspeed.nvme_path: is missing, and offload_parameters is nvme"),
        ({"zero_stage": 2, "offload_optimizer": "nvme", "nvme_path": "x"}, {}, "deepspeed.offload_optimizer: in zero_stage 2 DeepSpeed"),
        ({"offload_parameters": "nvme", "nvme_path": "x"}, {}, "deepspeed.offload_parameters: only zero_stage 3"),
        ({"offload_optimizer": "cpu", "nvme_path": "x"}, {}, "deepspeed.nvme_path: nothing is offloaded to nvme"),
        ({"zero_stage": 3, "swap_elements": 5}, {}, "deepspeed.swap_elements: nothing is offloaded to nvme"),
        ({"persistent_elements": 0}, {}, "deepspeed.persistent_elements: only zero_stage 3 has it"),
        ({"zero_stage": 2, "live_elements": 5}, {}, "deepspeed.live_elements: only zero_stage 3 has it"),
    ],
)
def test_bad_combinations_are_one_line(deepspeed, parallel, expected):
    found = problems(raw_run(deepspeed, parallel))
    assert len(found) == 1 and found[0].startswith(expected), found
    assert ";" in found[0], "a remedy is told"


def test_width_transfer_goes_with_one_stage():
    assert problems(raw_run(width_transfer={"base_hidden_size": 64})) == []
    (problem,) = problems(raw_run(None, {"pipeline": 2}, width_transfer={"base_hidden_size": 64}))
    assert problem.startswith("width_transfer: engine 'deepspeed' sums norms")


@pytest.mark.parametrize(
    "field", [{"zero_stage": 0}, {"zero_stage": 4}, {"offload_optimizer": "disk"}, {"bucket_elements": 0}, {"stage": 1}]
)
def test_malformed_fields_are_told_once(field):
    (problem,) = problems(raw_run(field))
    assert problem.startswith(f"deepspeed.{next(iter(field))}")


def test_state_on_nvme_is_accepted_with_a_folder():
    fields = {"zero_stage": 3, "offload_optimizer": "nvme", "offload_parameters": "nvme", "nvme_path": "x", "swap_elements": 1e6}
    assert problems(raw_run(fields)) == []


@given(parts=st.lists(st.integers(1, 100), min_size=1, max_size=30), limit=st.integers(1, 300))
@settings(max_examples=50)
def test_groups_that_are_swapped_hold_every_parameter_once(parts, limit):
    groups = swap_groups(parts, limit)
    assert sum(groups) == sum(parts)
    assert all(group >= limit for group in groups[:-1]) and all(group < limit + max(parts) for group in groups)


def test_settings_without_the_engine_are_refused_and_defaults_are_not():
    (problem,) = problems(raw_run({"zero_stage": 3}, engine="megatron"))
    assert problem.startswith("deepspeed.zero_stage: only engine 'deepspeed' has it")
    config = parse_config(raw_run(engine="megatron"), RunConfig, "here")
    assert "deepspeed" in dump_yaml(config), "a resolved config has the section"
    assert problems(config.model_dump(mode="json")) == []
    assert problems(raw_run({}, {"pipeline": 2, "tensor": 2, "sequence": True, "context": 2})) == []


@given(raw=st.dictionaries(st.sampled_from(["engine", "deepspeed", "parallel"]), st.none() | st.integers() | st.lists(st.integers())))
@settings(max_examples=50)
def test_malformed_sections_are_told_by_their_fields(raw):
    assert all(isinstance(problem, str) for problem in problems(raw_run() | raw))


@pytest.mark.parametrize(("precision", "element"), [("fp32", 4), ("bf16", 2)])
@pytest.mark.parametrize("ranks", [1, 2, 8])
def test_states_are_the_papers_formulas(precision, element, ranks):
    """Within padding and the buffer of a bucket."""
    for stage, expected in {1: element + 4 + 12 / ranks, 2: element + 16 / ranks, 3: (element + 16) / ranks}.items():
        third = {"persistent_elements": 0, "live_elements": 1} if stage == 3 else {}
        config = parse_config(raw_run({"zero_stage": stage, "bucket_elements": 1} | third, precision=precision), RunConfig, "here")
        states = zero_states(config, ROWS, data_ranks=ranks)
        assert states.parameters == config.model.num_parameters(ROWS)
        total = states.weights + states.gradients + states.optimizer
        assert 0 <= total - expected * states.parameters <= 64 * 30 * ranks
        memory = rank_memory(config, ROWS, pipeline_rank=0, data_ranks=ranks)
        assert memory.states == total


def test_what_is_offloaded_leaves_the_device():
    held, offloaded = (
        parse_config(raw_run({"zero_stage": 3, "persistent_elements": 0, "live_elements": 1, **fields}), RunConfig, "here")
        for fields in ({}, {"offload_optimizer": "cpu", "offload_parameters": "cpu"})
    )
    before, after = (zero_states(config, ROWS, data_ranks=4) for config in (held, offloaded))
    assert after.optimizer == 0 and after.weights <= 4 and after.gradients < before.gradients
    assert host_bytes(held, ROWS, data_ranks=4) == 0
    assert host_bytes(offloaded, ROWS, data_ranks=4) == pytest.approx((12 + 4 + 2) * before.parameters / 4, rel=1e-3)
