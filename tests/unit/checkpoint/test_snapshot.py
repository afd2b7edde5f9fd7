"""Host memory of a snapshot: page-locked at its size, reserved early, ordinary where the system does not allow it."""

from types import SimpleNamespace

import torch

from megatron_codemix.checkpoint import snapshot
from megatron_codemix.checkpoint.snapshot import Snapshot
from megatron_codemix.pieces import Block, Piece


def cuda(monkeypatch, code: int) -> list:
    """CUDA's runtime as far as page-locking goes; returns its calls."""
    calls = []
    runtime = SimpleNamespace(
        cudaHostRegister=lambda pointer, size, flags: calls.append(("lock", pointer, size)) or code,
        cudaHostUnregister=lambda pointer: calls.append(("unlock", pointer)),
    )
    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
    return calls


def refuse_with_cuda_error(*arguments, **keywords):
    raise RuntimeError("CUDA error: out of memory")


def test_a_buffer_is_page_locked_at_its_very_size_as_long_as_it_lives(monkeypatch, capsys):
    calls = cuda(monkeypatch, 0)
    buffer = torch.empty(1000)
    pointer = buffer.data_ptr()
    snapshot._pin(buffer)
    assert calls == [("lock", pointer, 4000)]
    del buffer
    assert calls[1:] == [("unlock", pointer)]
    assert capsys.readouterr().err == ""


def test_memory_that_cannot_be_page_locked_costs_one_warning(monkeypatch, capsys):
    calls = cuda(monkeypatch, 2)
    buffer = torch.empty(1000)
    monkeypatch.setattr(torch, "zeros", refuse_with_cuda_error)  # as the next kernel does
    snapshot._pin(buffer)
    assert [call[0] for call in calls] == ["lock"]
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "could not be page-locked (CUDA error 2" in said


def test_memory_is_reserved_before_it_is_needed():
    mine, block = Snapshot(), Block("w", (10,), (0,), (10,))
    pieces = [Piece(block, "param", 0, 10, torch.arange(10.0))]
    mine.reserve(pieces)
    start = mine._buffer.data_ptr()
    assert mine.take(pieces)[0].data.data_ptr() == start
