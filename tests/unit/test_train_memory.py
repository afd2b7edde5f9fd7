"""The memory estimate against the bytes that real engines hold, in one process."""

import weakref
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from megatron_codemix.config import ParallelConfig, RunConfig, parse_config
from megatron_codemix.engine import MegatronEngine
from megatron_codemix.engine.forward import DeviceBatch, training_forward
from megatron_codemix.parallel import Topology
from megatron_codemix.train.activations import MicroBatch, in_flight_bytes, layer_bytes
from megatron_codemix.train.memory import estimate, most_parameters, rank_memory
from megatron_codemix.train.states import Parameter, buffer_elements, rank_states

WINDOWS, LENGTH, VOCABULARY, ROWS = 2, 64, 250, 256
MODEL = {"num_layers": 4, "hidden_size": 64, "num_attention_heads": 4, "num_query_groups": 2, "ffn_hidden_size": 160}


def run(parallel: dict[str, Any] | None = None, model: dict[str, Any] | None = None, lengths: tuple[int, ...] = (LENGTH,), **fields: Any):
    raw = {
        "name": "m",
        "output": "o",
        "tokenizer": "t",
        "sources": {"a": {"path": "a"}},
        "model": MODEL | (model or {}),
        "micro_batch_size": WINDOWS,
        "parallel": parallel or {},
        "stages": [
            {
                "name": f"s{length}",
                "tokens": 65536,
                "mixture": {"a": 1},
                "batch_size": 32,
                "sequence_length": length,
                "learning_rate": {"shape": "constant", "peak": 0.1},
            }
            for length in lengths
        ],
    }
    return parse_config(raw | fields, RunConfig, "here")


def held(engine: MegatronEngine) -> tuple[int, int, int]:
    """Bytes of weights, gradients and optimizer that an engine holds: storages, each counted once."""
    weights, gradients, optimizer = state_storages(engine)
    return sum(weights.values()), sum(gradients.values()), sum(optimizer.values())


def all_states(engine: MegatronEngine) -> dict[int, int]:
    weights, gradients, optimizer = state_storages(engine)
    return weights | gradients | optimizer


def state_storages(engine: MegatronEngine) -> tuple[dict[int, int], dict[int, int], dict[int, int]]:
    replicas = engine._replicas.wrapped
    weights = storages([parameter for replica in replicas for parameter in replica.parameters()])
    gradients = storages([buffer.grad_data for replica in replicas for buffer in replica.buffers])
    state: list[torch.Tensor] = []
    for part in getattr(engine._optimizer, "chained_optimizers", [engine._optimizer]):
        for group in part.optimizer.param_groups:
            state += group["params"]  # the master weights; in a fp32 run the weights themselves
        state += [tensor for entry in part.optimizer.state.values() for name, tensor in entry.items() if name != "step"]
    return weights, gradients, {pointer: size for pointer, size in storages(state).items() if pointer not in weights}


def storages(tensors: list[torch.Tensor]) -> dict[int, int]:
    found = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    found.pop(0, None)
    return found


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "parallel, tied",
    [
        ({}, False),
        ({}, True),
        ({"distributed_optimizer": True}, False),
        ({"distributed_optimizer": True, "overlap_grad_reduce": True}, True),
    ],
)
def test_states_are_the_bytes_that_an_engine_holds(precision, parallel, tied):
    config = run(parallel, {"tied_embeddings": tied}, precision=precision)
    with Topology.join(config.parallel, seed=0) as topology:
        weights, gradients, optimizer = held(MegatronEngine(config, VOCABULARY, topology))
    memory = rank_memory(config, ROWS, pipeline_rank=0)
    assert memory.parameters == config.model.num_parameters(ROWS) == most_parameters(config, ROWS)
    assert (weights, gradients) == (memory.weights, memory.gradients)
    padding = memory.gradients // 4 - memory.parameters
    per_element = 12 if precision == "bf16" else 8
    assert memory.optimizer - optimizer == padding * per_element  # no moments exist for padding
    if not parallel:
        assert padding == 0


RECOMPUTES = [
    {"granularity": "none"},
    {"granularity": "selective"},
    {"granularity": "selective", "modules": ["layernorm"]},
    {"granularity": "selective", "modules": ["mlp"]},
    {"granularity": "selective", "modules": ["core_attn", "layernorm", "mlp"]},
    {"granularity": "full"},
    {"granularity": "full", "num_layers": 2},
    {"granularity": "full", "method": "block", "num_layers": 3},
]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("recompute", RECOMPUTES, ids=str)
def test_activations_are_what_autograd_keeps(precision, recompute):
    """Within 0.1 % where windows are whole documents; documents are computed one by one on a CPU, which copies less of the projection."""
    for model in ({}, {"num_query_groups": 4, "tied_embeddings": True}, {"hidden_dropout": 0.1}):
        config = run({"recompute": recompute}, model, precision=precision)
        memory = rank_memory(config, ROWS, pipeline_rank=0, device="cpu")
        guess = memory.activations + memory.logits
        with Topology.join(config.parallel, seed=0) as topology:
            engine = MegatronEngine(config, VOCABULARY, topology)
            assert guess == pytest.approx(kept(engine, documents=1), rel=1e-3)
            assert guess == pytest.approx(kept(engine, documents=2), rel=0.1)


def one_batch(length: int, documents: int = 1) -> Any:
    windows = torch.arange(WINDOWS * length).view(WINDOWS, length)
    return SimpleNamespace(
        tokens=windows % VOCABULARY,
        labels=windows % VOCABULARY,
        target_mask=torch.ones_like(windows),
        loss_weights=torch.ones(windows.shape),
        positions=torch.arange(length).expand(WINDOWS, length).contiguous(),
        document_ids=(torch.arange(length) * documents // length).expand(WINDOWS, length).contiguous(),
        prefix=None,
    )


def kept(engine: MegatronEngine, documents: int) -> int:
    """Bytes of the storages that one micro-batch's forward pass keeps for its backward pass, without weights and inputs."""
    batch = one_batch(LENGTH, documents)
    on_device = DeviceBatch.of(batch, engine.topology.device, document_masking=True)
    (chunk,) = engine.chunks
    inputs = [value for value in vars(on_device).values() if isinstance(value, torch.Tensor)]
    known = storages([*chunk.parameters(), *chunk.buffers(), *inputs])
    saved: list[torch.Tensor] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor)
        return tensor

    chunk.train()
    unpack: Callable[[torch.Tensor], torch.Tensor] = lambda tensor: tensor  # noqa: E731
    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        output, loss = training_forward(iter([on_device]), engine._replicas.wrapped[0])
        alive = loss(output)
    assert torch.isfinite(alive[0])
    return sum(size for pointer, size in storages(saved).items() if pointer not in known)


class Live(TorchDispatchMode):
    """Bytes of the storages that operators have made and that are alive, at most."""

    def __init__(self, known: dict[int, int]) -> None:
        super().__init__()
        self.known, self.most, self._now = known, 0, 0
        self._alive: set[int] = set()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        result = operator(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        size = storage.nbytes()
        if size and storage.data_ptr() not in self.known and storage._cdata not in self._alive:
            self._alive.add(storage._cdata)
            self._now += size
            self.most = max(self.most, self._now)
            weakref.finalize(storage, self._gone, storage._cdata, size)

    def _gone(self, key: int, size: int) -> None:
        self._alive.discard(key)
        self._now -= size


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("recompute", [{"granularity": "none"}, {"granularity": "selective"}, {"granularity": "full"}], ids=str)
@pytest.mark.parametrize("rows", [ROWS, 16 * ROWS])
def test_the_peak_of_a_training_step_is_within_a_twentieth(precision, recompute, rows):
    """All that operators allocate in a step, forward, backward and update, beside the states."""
    wide = {"num_layers": 6, "hidden_size": 256, "num_query_groups": 4, "ffn_hidden_size": 704, "vocab_multiple": rows}
    config = run({"recompute": recompute}, wide, (4 * LENGTH,), precision=precision)
    with Topology.join(config.parallel, seed=0) as topology:
        engine = MegatronEngine(config, VOCABULARY, topology)
        work = [one_batch(4 * LENGTH)] * 2
        engine.train_step(work, learning_rate=1e-3)
        with Live(all_states(engine)) as live:
            engine.train_step(work, learning_rate=1e-3)
    memory = rank_memory(config, rows, pipeline_rank=0, device="cpu")
    assert memory.total - memory.states == pytest.approx(live.most, rel=0.05)


def test_the_longest_stage_decides():
    both, long = run(lengths=(LENGTH, 2 * LENGTH)), run(lengths=(2 * LENGTH,))
    assert estimate(both, ROWS) == estimate(long, ROWS)
    assert estimate(both, ROWS).activations > estimate(run(), ROWS).activations


@pytest.mark.parametrize(("precision", "per_element"), [("fp32", 8), ("bf16", 12)])
@pytest.mark.parametrize(("data", "context"), [(1, 1), (2, 1), (8, 1), (4, 2), (3, 1)])
def test_distributed_optimizer_memory_is_its_formula(precision, per_element, data, context):
    """Bytes of a rank = (moments and master weights per element) · padded elements / (data · context)."""
    config = run({"distributed_optimizer": True, "context": context}, precision=precision)
    states = rank_states(config.model, config.parallel, ROWS, precision, data_ranks=data)
    padded = states.gradients // 4
    assert states.optimizer == per_element * padded // (data * context)
    assert 0 <= padded - states.parameters < 64 * 40 + 128 * data * context


def test_padding_of_the_distributed_optimizers_buffer():
    sizes = [Parameter(100), Parameter(10), Parameter(300)]
    assert buffer_elements(sizes, ranks=2) == 512  # 300 | 320: 10 | 384: 100 → 484, up to 512
    assert buffer_elements(sizes, ranks=3) == 768
    assert buffer_elements(sizes, ranks=2, bucket_elements=200) == 640  # 300 → 384 is full | 384: 10 | 448: 100 → 548, up to 640
    assert buffer_elements([Parameter(100, shared=True), Parameter(300)], ranks=2) == 384 + 128
    assert buffer_elements([], ranks=2) == 0


@pytest.mark.parametrize(
    ("rank", "micro_batches", "expected"),
    [(0, 8, 4), (1, 8, 3), (3, 8, 1), (0, 2, 2), (3, 1, 1)],
)
def test_1f1b_has_fewer_micro_batches_in_flight_down_the_pipeline(rank, micro_batches, expected):
    assert in_flight_bytes([10], ParallelConfig(pipeline=4), rank, micro_batches) == 10 * expected


@given(pipeline=st.sampled_from([2, 4]), virtual=st.integers(2, 4), rounds=st.integers(1, 8), rank=st.integers(0, 3))
def test_interleaved_schedule_keeps_its_warm_up_and_one_more(pipeline, virtual, rounds, rank):
    rank %= pipeline
    parallel = ParallelConfig(pipeline=pipeline, virtual_stages=virtual)
    found = in_flight_bytes([1] * virtual, parallel, rank, rounds * pipeline)
    assert found == min(2 * (pipeline - rank - 1) + (virtual - 1) * pipeline + 1, rounds * pipeline * virtual)


def test_uneven_virtual_stages_are_weighed_by_the_schedule():
    parallel = ParallelConfig(pipeline=2, virtual_stages=2)
    # forward A A B B (warm-up), forward A, backward B, forward A: four of A and one of B
    assert in_flight_bytes([10, 1], parallel, 0, 8) == 4 * 10 + 1 * 1


def test_the_worst_rank_is_named():
    config = run({"pipeline": 4}, {"vocab_multiple": 65536, "tied_embeddings": True})
    assert estimate(config, 65536).pipeline_rank == 3  # the logits
    config = run({"pipeline": 4}, {"num_layers": 8})
    assert estimate(config, ROWS).pipeline_rank == 0  # four micro-batches in flight


def test_axes_split_what_they_should():
    base = rank_memory(run(document_masking=False), ROWS, pipeline_rank=0)
    tensor = rank_memory(run({"tensor": 2}, document_masking=False), ROWS, pipeline_rank=0)
    sequence = rank_memory(run({"tensor": 2, "sequence": True}, document_masking=False), ROWS, pipeline_rank=0)
    context = rank_memory(run({"context": 2}, document_masking=False), ROWS, pipeline_rank=0)
    assert tensor.logits < base.logits and tensor.weights < base.weights
    assert base.activations / 2 < tensor.activations < base.activations
    rotary = 4 * LENGTH * 16 * 2 * 4
    assert sequence.activations - rotary == (base.activations - rotary) // 2
    assert context.logits < base.logits and context.weights == base.weights
    assert base.activations / 2 < context.activations < base.activations  # it gathers the keys and values of the others


def test_a_gpu_keeps_the_mask_of_documents_unless_attention_is_computed_again():
    config = run(precision="bf16")
    masked, plain = (
        layer_bytes(config.model, config.parallel, MicroBatch(WINDOWS, LENGTH, element=2, masked=masked)) for masked in (True, False)
    )
    mask, heads = WINDOWS * LENGTH * LENGTH * 2, WINDOWS * LENGTH * (2 * 64 - 32) * 2
    assert masked.core_attention - plain.core_attention == mask + heads
    assert masked.attention == plain.attention
    again = run({"recompute": {"granularity": "selective"}}, precision="bf16", document_masking=True)
    without = run({"recompute": {"granularity": "selective"}}, precision="bf16", document_masking=False)
    shared = 4 * WINDOWS * LENGTH * LENGTH  # truth masks of four micro-batches, for all layers
    assert estimate(again, ROWS).activations == estimate(without, ROWS).activations + shared
