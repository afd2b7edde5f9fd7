"""`codemix convert from-megatron`: nothing is unpickled, and what cannot be taken over is told in a line."""

from __future__ import annotations

import argparse
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, trainers

from megatron_codemix.checkpoint import Checkpoint, from_megatron
from megatron_codemix.checkpoint.inert import Inert, find_tensor, read_archive_pickle, read_pickle
from megatron_codemix.checkpoint.megatron_args import model_config_from_megatron
from megatron_codemix.checkpoint.torch_dist import TorchDist
from megatron_codemix.cli import main
from megatron_codemix.errors import UserError

WORKER = Path(__file__).parents[2] / "dist" / "megatron_worker.py"
TEXTS = [f"def f{number}(x):\n    return x + {number}  # spam\n" for number in range(60)]


def write_tokenizer(path: Path, size: int = 320) -> Path:
    backend = Backend(models.BPE())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, special_tokens=["<|endoftext|>"]))
    backend.save(str(path))
    return path


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of megatron-core's own GPTModel, in the iter_… folder below; copy it before changing it."""
    folder = tmp_path_factory.mktemp("saved")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1", str(WORKER), str(folder)]
    result = subprocess.run(launch, capture_output=True, text=True, timeout=600, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert result.returncode == 0, (result.stdout + result.stderr)[-3000:]
    return folder / "llama-one_process"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer") / "tokenizer.json")


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "megatron"))


def test_a_run_folder_and_its_iteration_are_the_same(saved: Path, tokenizer: Path, tmp_path: Path) -> None:
    assert main(["convert", "from-megatron", str(saved), str(tmp_path / "one"), "--tokenizer", str(tokenizer)]) == 0
    assert main(["convert", "from-megatron", str(saved / "iter_0000007"), str(tmp_path / "two"), "--tokenizer", str(tokenizer)]) == 0
    one, two = (Checkpoint.open(tmp_path / name).record for name in ("one", "two"))
    assert one.files == two.files
    origin = json.loads((tmp_path / "one" / "origin.json").read_text())
    assert origin["kind"] == "megatron-lm"
    assert origin["name"] == "llama-one_process-iter_0000007"
    assert origin["max_positions"] == 96
    assert origin["config"]["padded_vocab_size"] == 384


class Hostile:
    """Pickled as a call of os.system, the way an attack would be."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.mark}",)


def test_nothing_in_a_pickle_is_called(copy: Path, tokenizer: Path, tmp_path: Path) -> None:
    folder, mark = copy / "iter_0000007", tmp_path / "executed"
    description = folder / ".metadata"
    metadata = pickle.loads(description.read_bytes())  # noqa: S301
    metadata.planner_data = Hostile(mark)
    description.write_bytes(pickle.dumps(metadata))
    common = torch.load(folder / "common.pt", weights_only=False)
    assert common["args"].exit_signal == 15
    common["args"].hook, common["more"] = Hostile(mark), Hostile(mark)
    torch.save(common, folder / "common.pt")
    pickle.loads(pickle.dumps(Hostile(mark)))  # noqa: S301
    assert mark.exists(), "it would have worked"
    mark.unlink()
    assert main(["convert", "from-megatron", str(copy), str(tmp_path / "out"), "--tokenizer", str(tokenizer)]) == 0
    assert not mark.exists()


def test_inert_values_keep_what_was_written() -> None:
    value = {"a": [1, 2.5, None, "x"], "namespace": argparse.Namespace(n=3), "ordered": OrderedDict(k=1), "dtype": torch.bfloat16}
    read = read_pickle(pickle.dumps(value))
    assert read["a"] == value["a"]
    assert isinstance(read["namespace"], Inert)
    assert (read["namespace"].name, read["namespace"].get("n")) == ("argparse.Namespace", 3)
    assert read["ordered"].items == [("k", 1)]
    assert read["dtype"].name == "torch.bfloat16"
    for damaged in (b"", b"no pickle", pickle.dumps(value)[:-9], b"\x82\x01."):
        with pytest.raises(ValueError, match="no readable pickle"):
            read_pickle(damaged)


def test_no_description_takes_more_memory_than_it_is_long(tmp_path: Path) -> None:
    """An entry of the memo so far out that the interpreter would make room for a billion, and an archive that inflates."""
    for put in (b"r\xff\xff\xff\x3f", b"p999999999\n"):
        with pytest.raises(ValueError, match="beyond its end"):
            read_pickle(b"K\x01" + put + b".")
    assert read_pickle(b"K\x01q\x00.") == 1
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"N0" * (1 << 20) + b"N.")
    assert (tmp_path / "bomb.pt").stat().st_size < 1 << 14
    with pytest.raises(ValueError, match="its description is too large"):
        read_archive_pickle(tmp_path / "bomb.pt")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_tensors_in_the_middle_of_a_file(tmp_path: Path, dtype: torch.dtype) -> None:
    whole = torch.arange(60, dtype=torch.float32).to(dtype).view(10, 6)
    buffer = io.BytesIO()
    torch.save(whole[2:5], buffer)  # a view: the file holds all of its storage
    content = buffer.getvalue()
    path = tmp_path / "some.distcp"
    path.write_bytes(b"before" + content + b"behind")
    found = find_tensor(path, 6, len(content))
    assert (found.dtype, found.shape) == (dtype, (3, 6))
    read = torch.frombuffer(bytearray(path.read_bytes()[found.offset :][: 18 * dtype.itemsize]), dtype=dtype)
    assert torch.equal(read.view(3, 6), whole[2:5])
    assert found.is_intact()
    damaged = bytearray(path.read_bytes())
    damaged[found.offset + 3] ^= 1
    path.write_bytes(damaged)
    assert not find_tensor(path, 6, len(content)).is_intact()
    with pytest.raises(ValueError, match="truncated"):
        find_tensor(path, 6, len(content) + 100)
    for wrong in (whole.t(), whole[:, 1:3], whole.double() if dtype == torch.float32 else whole.to(torch.float64), {"no": "tensor"}):
        torch.save(wrong, tmp_path / "wrong")
        with pytest.raises(ValueError, match="tensor"):
            find_tensor(tmp_path / "wrong", 0, (tmp_path / "wrong").stat().st_size)
    assert read_archive_pickle(tmp_path / "wrong") == {"no": "tensor"}


Change = Callable[[Path], None]


def _arguments(**changed: Any) -> Change:
    def change(folder: Path) -> None:
        common = torch.load(folder / "common.pt", weights_only=False)
        vars(common["args"]).update(changed)
        torch.save(common, folder / "common.pt")

    return change


def _described(alter: Callable[[Any], None]) -> Change:
    def change(folder: Path) -> None:
        metadata = pickle.loads((folder / ".metadata").read_bytes())  # noqa: S301
        alter(metadata)
        (folder / ".metadata").write_bytes(pickle.dumps(metadata))

    return change


def _name_outside(metadata: Any) -> None:
    for place in metadata.storage_data.values():
        place.relative_path = "../../" + place.relative_path


def _lose_a_tensor(metadata: Any) -> None:
    del metadata.state_dict_metadata["decoder.final_layernorm.weight"]


def _lose_a_part(metadata: Any) -> None:
    metadata.state_dict_metadata["decoder.layers.mlp.linear_fc2.weight"].chunks.pop(1)


def _over_each_other(metadata: Any) -> None:
    """One part twice, another not at all: as many elements as the whole has."""
    key = "decoder.layers.mlp.linear_fc2.weight"
    chunks = metadata.state_dict_metadata[key].chunks
    assert len(chunks) > 2
    chunks[1] = chunks[0]


def _another_shape(metadata: Any) -> None:
    entry = metadata.state_dict_metadata["decoder.layers.mlp.linear_fc2.weight"]
    entry.size = torch.Size([entry.size[0] + 1, *entry.size[1:]])


def _too_many(metadata: Any) -> None:
    metadata.state_dict_metadata["decoder.final_layernorm.weight"].size = (1 << 70,)
    for chunk in metadata.state_dict_metadata["decoder.final_layernorm.weight"].chunks:
        chunk.sizes = (1 << 70,)


def _name_absolute(metadata: Any) -> None:
    for place in metadata.storage_data.values():
        place.relative_path = "/" + place.relative_path


def _of_another_rank(metadata: Any) -> None:
    chunk = metadata.state_dict_metadata["decoder.final_layernorm.weight"].chunks[0]
    for index, place in list(metadata.storage_data.items()):
        if index.fqn == "decoder.final_layernorm.weight" and tuple(index.offset) == tuple(chunk.offsets):
            metadata.storage_data[type(index)(index.fqn, torch.Size([0, 0, 0]))] = place
    chunk.offsets, chunk.sizes = torch.Size([0, 0, 0]), torch.Size([1, 1, *chunk.sizes])


def _name_that_is_none(metadata: Any) -> None:
    metadata.state_dict_metadata[(1, 2)] = metadata.state_dict_metadata.pop("decoder.final_layernorm.weight")


def _nested(folder: Path) -> None:
    """30 lists, each twice in the next: 2**30 when they are printed."""
    common = torch.load(folder / "common.pt", weights_only=False)
    value: list[Any] = []
    for _ in range(30):
        value = [value, value]
    common["args"].position_embedding_type = value
    torch.save(common, folder / "common.pt")


def _add_experts(metadata: Any) -> None:
    metadata.state_dict_metadata["decoder.layers.mlp.router.weight"] = metadata.state_dict_metadata["decoder.final_layernorm.weight"]
    for index, place in list(metadata.storage_data.items()):
        if index.fqn == "decoder.final_layernorm.weight":
            metadata.storage_data[type(index)("decoder.layers.mlp.router.weight", index.offset)] = place


def _flip_a_bit(folder: Path) -> None:
    path = max(folder.glob("*.distcp"), key=os.path.getsize)
    content = bytearray(path.read_bytes())
    tensor = TorchDist(folder)._stored("embedding.word_embeddings.weight", TorchDist(folder)._chunks["embedding.word_embeddings.weight"][0])
    path = tensor.path
    content = bytearray(path.read_bytes())
    content[tensor.offset + 11] ^= 4
    path.write_bytes(content)


def _truncate(folder: Path) -> None:
    for path in folder.glob("*.distcp"):
        path.write_bytes(path.read_bytes()[:-300])


def _old_format(folder: Path) -> None:
    (folder / "mp_rank_00").mkdir()


def _zarr(folder: Path) -> None:
    (folder / "metadata.json").write_text('{"sharded_backend": "zarr"}')


def _no_arguments(folder: Path) -> None:
    torch.save({"iteration": 7}, folder / "common.pt")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (_arguments(num_experts=8), "num_experts: 8 is not what our model computes"),
        (_arguments(position_embedding_type="learned_absolute"), "position_embedding_type"),
        (_arguments(swiglu=False), "GELU is computed exactly"),
        (_arguments(num_layers="four"), "num_layers: 'four' is no whole number"),
        (_arguments(num_layers=10**12), "num_layers: 1,000,000,000,000 is more than any model has"),
        (_arguments(num_layers=5), "is not the model that its arguments describe"),
        (_arguments(ffn_hidden_size=64), "linear_fc1.weight' of shape (96, 32), not (128, 32)"),
        (_arguments(vocab_size=500), "fewer than the 500 entries"),
        (_arguments(vocab_size=300), "does not fit"),
        (_described(_name_outside), "names a file outside its folder"),
        (_described(_name_absolute), "names a file outside its folder"),
        (_described(_over_each_other), "parts of 'decoder.layers.mlp.linear_fc2.weight' lie over each other"),
        (_described(_another_shape), "'decoder.layers.mlp.linear_fc2.weight' is not there whole"),
        (_described(_too_many), "a size that is none"),
        (_described(_of_another_rank), "has a part without a place"),
        (_described(_name_that_is_none), "a tensor whose name is no text"),
        (_nested, "position_embedding_type: 'a list' is not what our model computes"),
        (_described(_lose_a_tensor), "no 'decoder.final_layernorm.weight'"),
        (_described(_lose_a_part), "'decoder.layers.mlp.linear_fc2.weight' is not there whole"),
        (_described(_add_experts), "a 'decoder.layers.mlp.router.weight', which the model has not"),
        (_flip_a_bit, "is not what was written"),
        (_truncate, "cannot be read"),
        (_old_format, "--ckpt-convert-format torch_dist"),
        (_zarr, "its format is 'zarr'"),
        (_no_arguments, "give a run with --config"),
        (lambda folder: (folder / ".metadata").write_bytes(b"rubbish"), "cannot be read"),
        (lambda folder: (folder / "common.pt").write_bytes(b"rubbish"), "cannot be read"),
        (lambda folder: (folder / ".metadata").unlink(), "is no torch_dist checkpoint"),
        (lambda folder: [path.unlink() for path in folder.glob("*.distcp")], "missing"),
    ],
)
def test_bad_input_is_told_and_leaves_nothing(
    copy: Path, tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture, change: Change, problem: str
) -> None:
    change(copy / "iter_0000007")
    assert main(["convert", "from-megatron", str(copy), str(tmp_path / "out"), "--tokenizer", str(tokenizer)]) == 2
    said = capsys.readouterr().err
    assert problem in said
    assert "Traceback" not in said
    assert not list(tmp_path.glob("*out*"))


@pytest.mark.parametrize("named", ["²", "٣", "9" * 5000, "-7", "", "release", "../7", "\0"])
def test_what_the_latest_iteration_may_be_called(copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture, named: str) -> None:
    (copy / "latest_checkpointed_iteration.txt").write_text(named)
    assert main(["convert", "from-megatron", str(copy), str(tmp_path / "out"), "--tokenizer", str(copy)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "is named by latest_checkpointed_iteration.txt and not there" in line


def test_a_wrong_reading_is_refused(
    saved: Path, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    original = from_megatron._elements

    def shifted(job: Any, name: str, *rest: Any):
        for chunk in original(job, name, *rest):
            yield chunk.roll(32) if name == "decoder.layers.2.self_attention.linear_qkv.weight" else chunk

    monkeypatch.setattr(from_megatron, "_elements", shifted)
    assert main(["convert", "from-megatron", str(saved), str(tmp_path / "out"), "--tokenizer", str(tokenizer)]) == 1
    said = capsys.readouterr().err
    assert "refused, nothing was written" in said
    assert "behind layer 2" in said
    assert not list(tmp_path.glob("*out*"))


def test_arguments_of_megatron() -> None:
    given = {
        "num_layers": 2,
        "hidden_size": 64,
        "num_attention_heads": 4,
        "ffn_hidden_size": 128,
        "swiglu": True,
        "normalization": "RMSNorm",
        "position_embedding_type": "rope",
    }
    plain = model_config_from_megatron(given, "args")
    assert (plain.query_groups, plain.tied_embeddings, plain.sliding_window, plain.head_size) == (4, True, None, None)
    more = {"window_size": (15, 0), "kv_channels": 32, "qk_layernorm": False, "use_rope_scaling": True, "rope_scaling_factor": 4}
    changed = model_config_from_megatron({**given, **more, "group_query_attention": True, "num_query_groups": 2}, "args")
    assert (changed.sliding_window, changed.head_size, changed.query_groups) == (16, 32, 2)
    assert changed.rope_scaling is not None
    assert changed.rope_scaling.factor == 4
    with pytest.raises(UserError, match="normalization"):
        model_config_from_megatron({**given, "normalization": "Other"}, "args")
