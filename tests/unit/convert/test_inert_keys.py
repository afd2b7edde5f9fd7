"""Pickles made to keep their reader busy for ever: refused before anything of them is made."""

from __future__ import annotations

import argparse
import pickle
import subprocess
import sys
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_codemix.checkpoint.inert import Inert, read_pickle
from megatron_codemix.checkpoint.torch_dist import TorchDist
from megatron_codemix.errors import UserError

DOUBLING = b"".join(b"2\x86" for _ in range(64))
"""A tuple of itself twice, 64 times: 2**64 parts."""
DEEP = b"\x85" * 300_000
PRIME = (1 << 61) - 1
"""Whole numbers that differ by a multiple of it have one hash."""


def long1(value: int) -> bytes:
    content = value.to_bytes(16, "little", signed=True)
    return b"\x8a" + bytes([len(content)]) + content


HOSTILE = {
    "doubling": b"})" + DOUBLING + b"Ns.",
    "doubling in a set": b"\x8f()" + DOUBLING + b"\x90.",
    "doubling in a frozenset": b"()" + DOUBLING + b"\x91.",
    "doubling through the memo": b"})" + b"".join(b"q%c0h%ch%c\x86" % (n, n, n) for n in range(64)) + b"Ns.",
    "doubling behind an object": b"})" + DOUBLING + b"QNs.",
    "doubling into which nothing is put": b"})" + DOUBLING + b"Nb" + b"Ns.",
    "doubling to which nothing is appended": b"})" + DOUBLING + b"(e" + b"Ns.",
    "doubling among items": b"}()" + DOUBLING + b"Nu.",
    "doubling in a dict that is made at once": b"()" + DOUBLING + b"Nd.",
    "deep": b"})" + DEEP + b"Ns.",
    "one large key a thousand times": b"}(" + b"K\x01" * 5000 + b"t" + b"q\x000" + b"(" + b"h\x00N" * 5000 + b"u.",
    "one hash": b"}(" + b"".join(long1(PRIME * number) + b"N" for number in range(20_000)) + b"u.",
    "classes": b"(" + b"".join(b"cm\nname%d\n" % number for number in range(20_000)) + b"t.",
}


@pytest.mark.parametrize("what", HOSTILE)
def test_keys_that_would_never_be_hashed_are_refused(what: str) -> None:
    begun = time.process_time()
    with pytest.raises(ValueError, match=r"nested, or chosen|more classes than"):
        read_pickle(HOSTILE[what])
    assert time.process_time() - begun < 20


def test_the_same_is_harmless_where_nothing_hashes_it() -> None:
    assert type(read_pickle(b")" + DOUBLING + b".")) is tuple
    assert len(read_pickle(b"}(" + b"".join(b"J" + n.to_bytes(4, "little") + b"N" for n in range(50_000)) + b"u.")) == 50_000


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 40), 1 << 40) | st.floats(allow_nan=False) | st.text(max_size=5) | st.binary(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=3) | st.integers() | st.tuples(st.integers(), st.text(max_size=2)), inner, max_size=4)
        | st.frozensets(st.integers() | st.tuples(st.text(max_size=3)), max_size=4)
    ),
    max_leaves=20,
)


@given(value=PLAIN, protocol=st.integers(0, pickle.HIGHEST_PROTOCOL))
@settings(max_examples=150, deadline=None)
def test_what_python_writes_of_builtin_values_is_read(value: Any, protocol: int) -> None:
    read = read_pickle(pickle.dumps(value, protocol))
    if protocol >= 4:  # before it, frozensets were written as calls
        assert read == value


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_objects_are_read_under_every_protocol(protocol: int) -> None:
    given_value = [argparse.Namespace(n=3, more=(1, 2)), OrderedDict(k=1), torch.bfloat16, torch.Size([2, 3]), {(1, ("a", 2)): 5}]
    first, ordered, dtype, size, keyed = read_pickle(pickle.dumps(given_value, protocol))
    assert isinstance(first, Inert) and isinstance(ordered, Inert) and isinstance(size, Inert)
    assert dtype.name == "torch.bfloat16" if protocol < 4 else dtype.name.endswith("bfloat16")
    assert keyed == {(1, ("a", 2)): 5}


@pytest.mark.parametrize("what", ["doubling", "deep"])
def test_a_description_with_such_keys_is_one_line(tmp_path: Path, what: str) -> None:
    (tmp_path / ".metadata").write_bytes(HOSTILE[what])
    with pytest.raises(UserError, match=r"\.metadata: cannot be read \(.*its keys are nested, or chosen") as caught:
        TorchDist(tmp_path)
    assert len(caught.value.problems) == 1


def test_without_the_check_it_would_not_end(tmp_path: Path) -> None:
    """The tuple is what hangs, not the test's idea of it."""
    path = tmp_path / "hostile"
    path.write_bytes(HOSTILE["doubling"])
    with pytest.raises(subprocess.TimeoutExpired):
        subprocess.run([sys.executable, "-c", f"import pickle; pickle.load(open({str(path)!r}, 'rb'))"], timeout=3, check=False)
