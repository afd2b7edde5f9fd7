"""Each patch of megatron-core: shown to be needed without it, gone with it; installed once, where it applies, by request."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from megatron_codemix import compat
from megatron_codemix.compat import installer
from megatron_codemix.errors import UserError

# One import of megatron-core, then a fork per case: every case begins in a process where nothing is patched.
_DRIVER = """
import json, os, sys, warnings
warnings.filterwarnings("ignore")
import torch
torch.set_num_threads(1)
import megatron.core.distributed, megatron.core.optimizer
from megatron_codemix import compat

answers = {}
for patch in compat.PATCHES:
    for skip in ((patch.name,), ()):
        read, write = os.pipe()
        child = os.fork()
        if not child:
            try:
                names = compat.install(skip=skip, allow_untested=True)
                needed = "symptom" if patch.still_needed() else "fine"
                answer = [patch.applies(), patch.name in names, needed]
            except BaseException as error:
                answer = [None, None, repr(error)]
            os.write(write, json.dumps(answer).encode())
            os._exit(0)
        os.close(write)
        with os.fdopen(read) as pipe:
            answers[patch.name + ("-without" if skip else "-with")] = json.loads(pipe.read() or "null")
        os.waitpid(child, 0)
print(json.dumps(answers))
"""


# Apex's optimizer as to where its state lies: moments by parameter, the count of steps in the group.
_APEX = """
import torch

class FusedSGD(torch.optim.SGD):
    pass

class FusedAdam(torch.optim.Optimizer):
    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, adam_w_mode=True, weight_decay=0.0):
        super().__init__(params, dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1
            for parameter in group["params"]:
                self.state[parameter] = {"exp_avg": torch.zeros_like(parameter), "exp_avg_sq": torch.zeros_like(parameter)}
"""


def _python(code: str, *folders: Path) -> str:
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(map(str, folders))},
    )
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout


def _script(code: str, out: Path, *folders: Path) -> str:
    """As _python, with the folder of the layouts' worker and one for its output as arguments."""
    worker = str(Path(__file__).parents[1] / "dist")
    return _python(f"import sys; sys.argv = ['-', {worker!r}, {str(out)!r}]\n{code}", *folders)


@pytest.fixture(scope="module")
def answers() -> dict[str, list]:
    return json.loads(_python(_DRIVER).splitlines()[-1])


@pytest.mark.parametrize("name", [patch.name for patch in compat.PATCHES])
def test_the_patch_is_still_needed_and_cures_its_symptom(name: str, answers: dict[str, list]) -> None:
    applies, _, without = answers[f"{name}-without"]
    if not applies:
        assert applies is False, f"the symptom could not be looked for: {without}"
        pytest.skip("this patch does not apply on this machine")
    assert without == "symptom", f"megatron-core works without '{name}' ({without}): remove it from megatron_codemix/compat"
    assert answers[f"{name}-with"] == [True, True, "fine"]


@pytest.fixture
def apex(tmp_path: Path) -> Path:
    """A folder with a stand-in for NVIDIA Apex."""
    (tmp_path / "apex").mkdir()
    (tmp_path / "apex" / "__init__.py").write_text("")
    (tmp_path / "apex" / "optimizers.py").write_text(_APEX)
    return tmp_path


def test_with_apex_installed_the_optimizer_is_still_torchs(apex: Path) -> None:
    answers = json.loads(_python(_DRIVER, apex).splitlines()[-1])
    assert answers["fix.torch_adamw-without"] == [True, False, "symptom"]
    assert answers["fix.torch_adamw-with"] == [True, True, "fine"]


def test_with_apex_installed_a_run_is_saved_and_loaded_as_without(apex: Path, tmp_path: Path) -> None:
    code = """
import warnings; warnings.filterwarnings("ignore")
import hashlib, sys, torch
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import layout_worker as worker
from megatron_codemix.engine import MegatronEngine
from megatron_codemix.parallel import Topology
from megatron_codemix.pieces import PieceReader, write_pieces

torch.set_num_threads(1)
model = {"num_layers": 1, "hidden_size": 32, "num_attention_heads": 4, "ffn_hidden_size": 48}
folder = Path(sys.argv[2])
folder.mkdir()
for distributed in (False, True):
    config = worker.run_config({"parallel": {"distributed_optimizer": distributed}}, model)
    with Topology.join(config.parallel, seed=1) as topology:
        engine = MegatronEngine(config, worker.VOCAB, topology)
        assert len(engine.pieces()) > 9
        worker.train(engine, 2)
        digest = write_pieces(folder / "rank-0.safetensors", engine.pieces(), engine.step)
        again = MegatronEngine(config, worker.VOCAB, topology)
        again.load_pieces(PieceReader(folder))
        assert worker.train(again, 1) == worker.train(engine, 1)
        print(digest.sha256)
"""
    with_apex = _script(code, tmp_path / "with", apex)
    assert with_apex == _script(code, tmp_path / "without")
    assert len(with_apex.split()) == 2


def test_importing_patches_nothing() -> None:
    code = """
import warnings; warnings.filterwarnings("ignore")
import json, torch
watched = [("torch", n) for n in ("tensor", "zeros")] + [("torch.cuda", n) for n in ("current_device", "synchronize")]
watched += [("torch.Tensor", n) for n in ("cuda", "type")]
def look():
    return [getattr(eval(owner), name) for owner, name in watched]
before = look()
from megatron_codemix import compat, parallel
after = look()
assert all(a is b for a, b in zip(before, after)), "importing patched torch"
assert compat.installed() == ()
first = compat.install()
patched = look()
assert compat.install() == first == compat.installed(), "a second install changed something"
assert all(a is b for a, b in zip(patched, look())), "a second install patched again"
print(json.dumps(len(first)))
"""
    assert json.loads(_python(code).splitlines()[-1]) >= 1


def test_other_users_of_torch_see_no_difference() -> None:
    """Wrapping torch.zeros itself would blind `torch.device` contexts, with which transformers builds models."""
    code = """
import warnings; warnings.filterwarnings("ignore")
import torch
from megatron_codemix import compat
compat.install()
with torch.device("meta"):
    assert torch.zeros(1).is_meta and torch.tensor(1.0).is_meta and torch.ones(1).is_meta and torch.arange(2).is_meta
assert torch.ones(1).type() == "torch.FloatTensor"
state = torch.get_rng_state()
torch.cuda.manual_seed(7)
assert torch.cuda.is_available() or torch.equal(state, torch.get_rng_state())
import transformers
from transformers import LlamaConfig, LlamaForCausalLM
import tempfile
config = LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
with tempfile.TemporaryDirectory() as folder:
    LlamaForCausalLM(config).save_pretrained(folder)
    frequencies = LlamaForCausalLM.from_pretrained(folder).model.rotary_emb.inv_freq
assert torch.allclose(frequencies, 10000.0 ** (-torch.arange(0, 8, 2) / 8)), frequencies
print("same")
"""
    assert _python(code).splitlines()[-1] == "same"


def test_with_a_gpu_the_cpu_patches_are_inactive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    rows = {row.name: row.applies for row in compat.report()}
    assert all(applies is False for name, applies in rows.items() if name.startswith("cpu."))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    rows = {row.name: row.applies for row in compat.report()}
    assert all(applies is True for name, applies in rows.items() if name.startswith("cpu."))


def test_every_patch_is_named_once_and_says_what_it_cures() -> None:
    names = [patch.name for patch in compat.PATCHES]
    assert len(set(names)) == len(names)
    assert all(len(patch.cures) > 20 and patch.shows and "\n" not in patch.cures for patch in compat.PATCHES)
    assert [row.name for row in compat.report()] == names


def test_another_version_is_refused_or_warned_about(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installer, "megatron_version", lambda: "9.9.9")
    monkeypatch.setattr(installer, "PATCHES", ())
    with pytest.raises(UserError, match=r"megatron-core 9\.9\.9 .* pip install megatron-core==0\.16\.1"):
        compat.install()
    with pytest.warns(UserWarning, match=r"9\.9\.9 has not been proven"):
        compat.install(allow_untested=True)
    assert installer.report() == []


def test_a_missing_megatron_core_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installer, "megatron_version", lambda: None)
    with pytest.raises(UserError, match="megatron-core is not installed; pip install"):
        compat.install()
    assert {row.applies for row in compat.report()} == {None}
