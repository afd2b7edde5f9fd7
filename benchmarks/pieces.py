"""Writing and reading training state: files of pieces beside torch.distributed.checkpoint, alternating in one process.

    OMP_NUM_THREADS=1 python benchmarks/pieces.py [--mib 400] [--rounds 5] [--folder DIR]

Both write the same fp32 tensors and fsync them. Pieces are hashed on the way and read back from the disk; torch's files
are hashed behind the save, as a checkpoint's record needs it, and not read back. Both read every tensor whole, page cache warm.
Printed: median seconds of each, and the median over rounds of the ratio torch / pieces (above 1: pieces are faster).
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor

from megatron_codemix.files import sha256_file
from megatron_codemix.pieces import PARAM, Block, Piece, PieceReader, write_pieces

_COLUMNS = 1024


def tensors_of(mib: int) -> dict[str, Tensor]:
    """Matrices of 16 MiB, as many as fill `mib`."""
    shape = (16 * 2**20 // 4 // _COLUMNS, _COLUMNS)
    generator = torch.Generator().manual_seed(0)
    return {f"layer.{number}": torch.empty(shape).normal_(generator=generator) for number in range(max(mib // 16, 1))}


def write_ours(tensors: dict[str, Tensor], folder: Path) -> None:
    pieces = []
    for key, tensor in tensors.items():
        shape = tuple(tensor.shape)
        pieces.append(Piece(Block(key, shape, (0, 0), shape), PARAM, 0, tensor.numel(), tensor.view(-1)))
    write_pieces(folder / "rank-00000-of-00001.safetensors", pieces, 0)


def read_ours(tensors: dict[str, Tensor], folder: Path) -> dict[str, Tensor]:
    reader = PieceReader(folder)
    return {key: reader.whole(key) for key in tensors}


def write_torch(tensors: dict[str, Tensor], folder: Path) -> None:
    dcp.save(tensors, storage_writer=dcp.FileSystemWriter(folder, sync_files=True), no_dist=True)
    for path in sorted(folder.iterdir()):
        sha256_file(path)


def read_torch(tensors: dict[str, Tensor], folder: Path) -> dict[str, Tensor]:
    found = {key: torch.empty_like(tensor) for key, tensor in tensors.items()}
    dcp.load(found, storage_reader=dcp.FileSystemReader(folder), no_dist=True)
    return found


def timed(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=400, help="of tensors")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=None, help="on the disk to be measured (default: the temporary folder)")
    arguments = parser.parse_args()
    tensors = tensors_of(arguments.mib)
    ways = {"pieces": (write_ours, read_ours), "torch": (write_torch, read_torch)}
    seconds: dict[tuple[str, str], list[float]] = {(way, what): [] for way in ways for what in ("write", "read")}
    for number in range(arguments.rounds + 1):
        for way in list(ways) if number % 2 else list(reversed(ways)):
            folder = Path(tempfile.mkdtemp(dir=arguments.folder))
            write, read = ways[way]
            taken = timed(lambda: write(tensors, folder)), timed(lambda: read(tensors, folder))  # noqa: B023 (called at once)
            assert all(torch.equal(value, tensors[key]) for key, value in read(tensors, folder).items())
            shutil.rmtree(folder)
            if number:  # the first round warms up
                seconds[way, "write"].append(taken[0])
                seconds[way, "read"].append(taken[1])
    for what in ("write", "read"):
        ours, theirs = seconds["pieces", what], seconds["torch", what]
        ratio = statistics.median(b / a for a, b in zip(ours, theirs))
        medians = f"pieces {statistics.median(ours):.2f} s, torch.distributed.checkpoint {statistics.median(theirs):.2f} s"
        print(f"{what}: {medians}, ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
