"""The section `guards` of a run file."""

from __future__ import annotations

import pytest

from megatron_codemix.config import RunConfig, parse_config
from megatron_codemix.errors import UserError


@pytest.mark.parametrize(
    ("section", "path"),
    [
        ({"spike": {"window": 4}}, "guards.spike.window"),
        ({"spike": {"sigmas": 0}}, "guards.spike.sigmas"),
        ({"non_finite": "ignore"}, "guards.non_finite"),
        ({"max_rewinds": 0}, "guards.max_rewinds"),
        ({"skip_after": 0}, "guards.skip_after"),
        ({"spikes": {}}, "guards.spikes"),
    ],
)
def test_bad_settings_are_named(section, path):
    raw = {
        "name": "x",
        "output": "x",
        "tokenizer": "x",
        "sources": {"a": {"path": "x"}},
        "model": {"num_layers": 1, "hidden_size": 8, "num_attention_heads": 1, "ffn_hidden_size": 8},
        "stages": [
            {
                "name": "a",
                "tokens": 64,
                "mixture": {"a": 1},
                "batch_size": 1,
                "sequence_length": 8,
                "learning_rate": {"shape": "constant", "peak": 1e-3},
            }
        ],
    }
    parse_config(raw, RunConfig, "run.yaml")
    with pytest.raises(UserError) as raised:
        parse_config({**raw, "guards": section}, RunConfig, "run.yaml")
    assert len(raised.value.problems) == 1
    assert path in raised.value.problems[0]
