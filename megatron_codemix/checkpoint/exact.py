"""Whether what lies in the written files is what was to be written, to the bit.

Log-probabilities tell whether two implementations mean the same by a weight; but rows of tokens that no probe has, and weights that
attention hardly shows, are in none of them. So every element is also read back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from megatron_codemix.checkpoint.freed import give_back_freed
from megatron_codemix.checkpoint.transformers_model import ConversionRefused
from megatron_codemix.progress import progress


def require_written(blocks: Iterator[tuple[str, Tensor]], found: Callable[[str, int, int], Tensor], elements: int) -> None:
    """Compare all that was to be written with all that was, some of it at a time.

    blocks: (parameter, a block of it), those of one parameter one behind the other along the first axis, in the written dtype; found:
    parameter, start, stop along that axis → what the files hold; elements: how many in all. Raises ConversionRefused naming the first
    parameter that differs or is not finite.
    """
    give_back_freed()  # of the forward passes before
    current, start = "", 0
    with progress("reading back", elements, "parameters") as bar:
        for name, block in blocks:
            current, start = name, start if name == current else 0
            written = found(name, start, start + len(block))
            if not bool(block.isfinite().all()):
                raise ConversionRefused(f"'{name}' holds values that are no finite numbers")
            if written.dtype != block.dtype or not torch.equal(written.cpu(), block.cpu()):
                raise ConversionRefused(f"'{name}' in the written files is not what was to be written; is the disk sound?")
            start += len(block)
            bar.advance(block.numel())
            del block, written  # before the next is made: memory is for one at a time
