"""The planner: which layouts exist, which fit, which is predicted to be faster. Without torch."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from megatron_codemix.config import RunConfig, data_ranks, load_config, parse_config
from megatron_codemix.errors import UserError
from megatron_codemix.mixture import Plan, compile_plan
from megatron_codemix.train.cost import KERNEL_EFFICIENCY, NETWORK_BYTES_PER_SECOND, Cost, step_cost
from megatron_codemix.train.layouts import RECOMPUTES, divisors, layouts, with_recompute
from megatron_codemix.train.memory import RESERVE, estimate
from megatron_codemix.train.suggest import GIB, suggest, suggestion_table

ROWS, PEAK = 32_000, 989.0
LLAMA_1B = {"num_layers": 16, "hidden_size": 2048, "num_attention_heads": 16, "num_query_groups": 4, "ffn_hidden_size": 5632}


def raw_run(parallel: dict[str, Any] | None = None, batch_size: int = 64, sequence_length: int = 4096, **fields: Any) -> dict[str, Any]:
    stage = {
        "name": "s",
        "tokens": 1e9,
        "mixture": {"a": 1},
        "batch_size": batch_size,
        "sequence_length": sequence_length,
        "learning_rate": {"shape": "constant", "peak": 1e-3},
    }
    base = {"name": "m", "output": "o", "tokenizer": "t", "sources": {"a": {"path": "a"}}, "model": LLAMA_1B, "stages": [stage]}
    return base | {"parallel": parallel or {}} | fields


def run(*args: Any, **fields: Any) -> RunConfig:
    return parse_config(raw_run(*args, **fields), RunConfig, "here")


def plan(config: RunConfig) -> Plan:
    return compile_plan(config, {"a": lambda length: 10**12 // length}, {"a": "fingerprint"})


def cost(config: RunConfig, data: int = 1) -> Cost:
    stage = config.stages[0]
    return step_cost(config, ROWS, data, PEAK, sequence_length=stage.sequence_length, batch_size=stage.batch_size)


def test_one_gpu_spends_its_time_on_the_models_operations():
    config = run()
    operations = 64 * 4096 * config.model.flops_per_token(ROWS, 4096)
    found = cost(config)
    assert found.compute == pytest.approx(operations / (PEAK * 1e12 * KERNEL_EFFICIENCY))
    assert (found.bubble, found.model_exchange, found.data_exchange) == (0, 0, 0)
    assert found.seconds == found.compute + found.optimizer


def test_the_bubble_is_that_of_the_pipeline():
    for pipeline, virtual in ((2, 1), (4, 1), (4, 2), (2, 4)):
        found = cost(run({"pipeline": pipeline, "virtual_stages": virtual}))
        assert found.bubble / (found.compute + found.model_exchange) == pytest.approx((pipeline - 1) / virtual / 64)


def test_the_stage_with_the_output_layer_holds_the_others_up():
    equal, uneven = run({"pipeline": 2}), run({"pipeline": 2, "layers_per_stage": [9, 7]})
    assert cost(uneven).compute < cost(equal).compute


def test_recompute_costs_what_it_computes_again():
    none, full = cost(run()), cost(run({"recompute": {"granularity": "full"}}))
    assert 1.25 < full.compute / none.compute < 4 / 3  # a forward pass more of three, but not of the output layer
    selective = [cost(with_recompute(run(), recompute)).compute for recompute in RECOMPUTES]
    assert selective == sorted(selective)


def test_gradients_over_the_network_are_hidden_by_overlap_as_far_as_the_last_micro_batch_goes():
    sharded = {"distributed_optimizer": True}
    plain, overlapped = run(sharded), run({**sharded, "overlap_grad_reduce": True, "overlap_param_gather": True})
    bare = cost(plain, data=16).data_exchange
    parameters = plain.model.num_parameters(ROWS)
    assert bare == pytest.approx((4 + 2) * parameters * 15 / 16 / (NETWORK_BYTES_PER_SECOND * 0.8), rel=1e-3)
    assert cost(overlapped, data=16).data_exchange < bare
    assert cost(plain, data=8).data_exchange < bare / 5  # within a node


def test_tensor_parallelism_beyond_a_node_is_slow():
    within, beyond = cost(run({"tensor": 8, "sequence": True})), cost(run({"tensor": 16, "sequence": True}))
    assert beyond.model_exchange > 5 * within.model_exchange


def test_small_models_are_bound_by_launches():
    tiny = run(model={**LLAMA_1B, "hidden_size": 64, "ffn_hidden_size": 128}, sequence_length=128)
    assert cost(tiny.model_copy(update={"micro_batch_size": 4})).compute == pytest.approx(cost(tiny).compute / 4)


@pytest.mark.parametrize(("num_gpus", "num_layers"), [(1, 16), (6, 16), (16, 16), (8, 7)])
def test_every_layout_is_valid_for_the_gpus_and_each_comes_once(num_gpus, num_layers):
    model = LLAMA_1B | {"num_layers": num_layers}
    config = run(batch_size=96, model=model)
    found = list(layouts(config, num_gpus))
    seen = set()
    for layout in found:
        assert data_ranks(layout, num_gpus) >= 1
        raw = raw_run(layout.parallel.model_dump(), batch_size=96, micro_batch_size=layout.micro_batch_size, model=model)
        assert parse_config(raw, RunConfig, "here") == layout
        seen.add((layout.parallel.model_dump_json(), layout.micro_batch_size))
    assert len(seen) == len(found) > 0
    degrees = {(layout.parallel.tensor, layout.parallel.pipeline, layout.parallel.context) for layout in found}
    assert all(num_gpus % (tensor * pipeline * context) == 0 for tensor, pipeline, context in degrees)


def test_layers_that_no_pipeline_divides_lie_unevenly():
    config = run(model=LLAMA_1B | {"num_layers": 61})
    stages = {layout.parallel.pipeline: layout.parallel.layers_per_stage for layout in layouts(config, 8)}
    assert stages == {1: None, 2: [31, 30], 4: [15, 16, 15, 15], 8: [7, 8, 8, 8, 8, 8, 7, 7]}
    found = suggest(config, plan(config), ROWS, num_gpus=8, memory=80 * GIB, peak_tflops=PEAK)
    assert {suggestion.config.parallel.pipeline for suggestion in found} == {1, 2, 4, 8}


def test_divisors():
    assert divisors(12) == [1, 2, 3, 4, 6, 12]
    assert divisors(12, 4) == [1, 2, 3, 4]


def test_suggestions_fit_are_ordered_and_recompute_no_more_than_they_must():
    config = run()
    found = suggest(config, plan(config), ROWS, num_gpus=16, memory=24 * GIB, peak_tflops=PEAK)
    assert len(found) > 3
    limit = 24 * GIB * (1 - RESERVE)
    for suggestion in found:
        assert suggestion.memory == estimate(suggestion.config, ROWS, suggestion.data_ranks)
        assert suggestion.memory.total <= limit
        for cheaper in RECOMPUTES:
            other = with_recompute(suggestion.config, cheaper)
            if other == suggestion.config:
                break
            assert estimate(other, ROWS, suggestion.data_ranks).total > limit
    seconds = [float(f"{suggestion.seconds:.3g}") for suggestion in found]
    assert seconds == sorted(seconds)
    assert 0 < found[-1].mfu <= found[0].mfu < KERNEL_EFFICIENCY


def test_more_memory_is_never_slower():
    config = run()
    best = [suggest(config, plan(config), ROWS, num_gpus=8, memory=size * GIB, peak_tflops=PEAK)[0].seconds for size in (16, 24, 48, 96)]
    assert best == sorted(best, reverse=True)


def test_overrides_are_ready_to_paste(tmp_path: Path):
    """They replace whatever layout the file has."""
    config = run()
    found = suggest(config, plan(config), ROWS, num_gpus=16, memory=16 * GIB, peak_tflops=PEAK)
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(raw_run({"tensor": 4, "recompute": {"granularity": "full", "num_layers": 4}}, micro_batch_size=4)))
    for suggestion in found:
        pasted = load_config(path, RunConfig, suggestion.overrides)
        assert (pasted.parallel, pasted.micro_batch_size) == (suggestion.config.parallel, suggestion.config.micro_batch_size)
        said = json.loads(json.dumps(suggestion.as_json()))
        assert said["memory"]["total"] == suggestion.memory.total and said["overrides"] == suggestion.overrides
    table = suggestion_table(found)
    assert len(table) == len(found) + 1
    assert all(
        "'" in line and line.endswith(f"micro_batch_size={found[row].config.micro_batch_size}") for row, line in enumerate(table[1:])
    )


def test_what_cannot_fit_is_said_with_what_it_would_need():
    config = run()
    with pytest.raises(UserError, match=r"--memory 2: no layout of 1 GPU\(s\) fits; the smallest needs \d+\.\d+ GiB"):
        suggest(config, plan(config), ROWS, num_gpus=1, memory=2 * GIB, peak_tflops=PEAK)
    with pytest.raises(UserError, match="--gpus 17: no layout"):
        suggest(config, plan(config), ROWS, num_gpus=17, memory=80 * GIB, peak_tflops=PEAK)


def test_checking_does_not_import_torch():
    code = "import sys, megatron_codemix.train.check; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
