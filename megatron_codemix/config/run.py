"""A training run: sources, model, stages, optimizer, layout, outputs. One YAML file."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from megatron_codemix.config.branch import Branch, branch_problems
from megatron_codemix.config.data import DataConfig, DataPath, data_problems
from megatron_codemix.config.deepspeed import DeepSpeedConfig, deepspeed_problems
from megatron_codemix.config.guards import GuardsConfig
from megatron_codemix.config.layout import layout_problems
from megatron_codemix.config.mixing import expand_stage
from megatron_codemix.config.model import ModelConfig
from megatron_codemix.config.parallel import ParallelConfig, TimeoutConfig
from megatron_codemix.config.section import Count, CountOrZero, FilePath, Section
from megatron_codemix.config.stage import Stage, stage_problems
from megatron_codemix.config.stage_table import table_problems
from megatron_codemix.config.tracking import WandbConfig
from megatron_codemix.config.width import WidthTransfer, width_problems

Unit = Annotated[float, Field(ge=0.0, lt=1.0)]
Seed = Annotated[CountOrZero, Field(lt=1 << 62)]


class RunSource(Section):
    """One source of a mixture: a folder of shards."""

    path: DataPath
    """Folder made by `codemix prep shards`, holding one folder per split with a manifest.json in each; or its address in a store."""
    train_split: str = "train"
    """Split that training reads."""
    validation_split: str | None = "valid"
    """Split that validation reads; null for none."""
    max_epochs: float = Field(default=1.0, gt=0.0)
    """The plan is refused when it reads this source more often than this (repetition cap)."""


class Seeds(Section):
    """Independent seeds: data order, initialisation, dropout. Each below 2^62."""

    data: Seed = 0
    """Keys the order of samples. Runs that share it read the same prefix of each source."""
    init: Seed = 0
    """Keys the initial weights."""
    dropout: Seed = 0
    """Keys dropout masks, by step."""


class OptimizerConfig(Section):
    """AdamW with decoupled weight decay; no decay on norms."""

    beta1: Unit = 0.9
    """Decay of the first moment."""
    beta2: Unit = 0.95
    """Decay of the second moment."""
    epsilon: float = Field(default=1e-8, gt=0.0)
    """Added to the root of the second moment."""
    weight_decay: float = Field(default=0.1, ge=0.0)
    """Decoupled weight decay per step, times the learning rate."""
    clip_grad_norm: float = Field(default=1.0, ge=0.0)
    """Global gradient-norm bound; 0 switches clipping off."""


class ValidationConfig(Section):
    """Loss and bits per byte on each source's validation split."""

    every_steps: CountOrZero = 0
    """Optimizer steps between validations; 0: only at the end."""
    max_windows: Count | None = None
    """Windows per source, spread evenly over the split; null: all of it."""


class CheckpointConfig(Section):
    """When checkpoints are written and which are kept."""

    every_steps: CountOrZero = 0
    """Optimizer steps between checkpoints; 0: only at the end."""
    keep: Count = 2
    """Newest checkpoints to keep."""
    keep_every_steps: CountOrZero = 0
    """Checkpoints of these steps stay for ever, beside the newest; 0: none."""
    keep_steps: list[Count] = []
    """Steps that are saved, whatever every_steps says, and stay for ever: where branches will leave the run."""
    asynchronous: bool = True
    """Write in the background: training waits only until its state has been copied to host memory."""
    final_form: Literal["neutral", "routine"] = "neutral"
    """Form of the run's last checkpoint. neutral: whole tensors, which any engine and layout reads; routine: as the ranks hold them."""


class LoggingConfig(Section):
    """What a run says of itself."""

    every_steps: Count = 10
    """Optimizer steps between log lines; log.jsonl and TensorBoard get every step."""
    tensorboard: bool = True
    """Write TensorBoard event files to OUTPUT/tensorboard."""
    wandb: WandbConfig | None = None
    """Weights & Biases; null: none."""
    peak_tflops: float | None = Field(default=None, gt=0.0)
    """The device's peak in TFLOP/s for the run's precision, for MFU; null: known GPUs by name, measured on CPU."""


class RunConfig(Section):
    """Everything that determines one training run."""

    name: str = Field(min_length=1, pattern=r"^[A-Za-z0-9._-]+$")
    """Name in logs, plots and the model card."""
    output: FilePath
    """Folder of the run: config, log, TensorBoard, checkpoints."""
    tokenizer: FilePath
    """Folder (or its tokenizer.model or tokenizer.json) made by `codemix prep tokenizer`; its fingerprint must be the shards'."""
    sources: dict[str, RunSource] = Field(min_length=1)
    """Source name → shards."""
    model: ModelConfig
    """Shape of the model."""
    initial_weights: FilePath | None = None
    """Begin with these weights, at step 0: what `codemix convert from-hf` made, a run, one of its checkpoints. Null: from scratch."""
    branch: Branch | None = None
    """Continue a checkpoint of another run, a trunk, with the stages below. Null: a run of its own."""
    stages: list[Stage] = Field(min_length=1)
    """Stages, in order; of a branch, those after the trunk's."""
    data: DataConfig = DataConfig()
    """How shards are read."""
    engine: Literal["megatron", "deepspeed"] = "megatron"
    """Training engine: megatron-core's optimizer, or DeepSpeed's ZeRO. Either continues the other's checkpoints."""
    deepspeed: DeepSpeedConfig = DeepSpeedConfig()
    """ZeRO, with `engine: deepspeed`."""
    parallel: ParallelConfig = ParallelConfig()
    """Layout."""
    timeouts: TimeoutConfig = TimeoutConfig()
    """How long a rank is waited for."""
    precision: Literal["fp32", "bf16"] = "bf16"
    """Weights and activations in the model; master weights and moments are always fp32."""
    micro_batch_size: Count = 1
    """Windows per forward pass and rank; divides batch_size."""
    document_masking: bool = True
    """Attention stays inside a document of a window; false: documents see what precedes them in the window."""
    seeds: Seeds = Seeds()
    """Seeds."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """Optimizer."""
    width_transfer: WidthTransfer | None = None
    """Learning rate and initial weights are those of a narrower model (µP). Null: they are this model's own."""
    validation: ValidationConfig = ValidationConfig()
    """Validation."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """Checkpoints."""
    logging: LoggingConfig = LoggingConfig()
    """Logs."""
    guards: GuardsConfig = GuardsConfig()
    """What is done about NaN, loss spikes and slow ranks."""

    @classmethod
    def expanded(cls, raw: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
        """Stages that are written as `mixing` get their tokens and mixture."""
        if not isinstance(raw.get("stages"), list):
            return raw, []
        pairs = [
            expand_stage(stage, f"stages[{index}]") if isinstance(stage, dict) else (stage, []) for index, stage in enumerate(raw["stages"])
        ]
        return {**raw, "stages": [stage for stage, _ in pairs]}, [problem for _, found in pairs for problem in found]

    @classmethod
    def cross_problems(cls, raw: dict[str, Any]) -> list[str]:
        """Shares of sources that do not exist or do not sum to 1, divisibility, layouts that cannot be."""
        problems = []
        if isinstance(raw.get("model"), dict):
            problems += [f"model.{problem}" for problem in ModelConfig.cross_problems(raw["model"])]
        problems += layout_problems(raw) + deepspeed_problems(raw) + width_problems(raw) + data_problems(raw)
        stages = raw.get("stages") if isinstance(raw.get("stages"), list) else []
        sources = raw.get("sources") if isinstance(raw.get("sources"), dict) else None
        for index, stage in enumerate(stages or []):
            if isinstance(stage, dict):
                problems += [f"stages[{index}].{problem}" for problem in stage_problems(stage, sources, raw)]
        problems += table_problems(stages or [], branch=raw.get("branch") is not None) + branch_problems(raw)
        return problems

    @property
    def history(self) -> list[Stage]:
        """Every stage that the weights go through, those of the trunks first."""
        parts = (self.branch.history or []) if self.branch else []
        return [*(stage for part in parts for stage in part.stages), *self.stages]
