"""Configuration: strict pydantic models of run, prep and study files, and how they are read.

`load_config(path, RunConfig, overrides)` is the way in; every mistake is reported at once.
"""

from megatron_codemix.config.batch_size import BatchRamp, sizes_of
from megatron_codemix.config.branch import Branch, TrunkPart
from megatron_codemix.config.data import CacheConfig, DataConfig, DataPath, Url
from megatron_codemix.config.deepspeed import DeepSpeedConfig
from megatron_codemix.config.guards import GuardsConfig, SpikeGuard
from megatron_codemix.config.load import dump_yaml, load_config, parse_config
from megatron_codemix.config.model import ModelConfig, RopeScaling, padded_vocab_size
from megatron_codemix.config.objective import CorruptionConfig, FimConfig, Objective, PrefixConfig
from megatron_codemix.config.parallel import ParallelConfig, RecomputeConfig, TimeoutConfig
from megatron_codemix.config.prep import PrepConfig, SourceSpec, TokenizerTraining
from megatron_codemix.config.prep_steps import (
    CodeQuality,
    Decontaminate,
    Deduplicate,
    LanguageClass,
    LanguageStep,
    LicenseStep,
    NearDuplicates,
    Pairs,
    PersonalData,
    RenderStep,
    Repositories,
    Secrets,
    TextQuality,
)
from megatron_codemix.config.rate import LearningRate
from megatron_codemix.config.run import (
    CheckpointConfig,
    LoggingConfig,
    OptimizerConfig,
    RunConfig,
    RunSource,
    Seeds,
    ValidationConfig,
)
from megatron_codemix.config.stage import Stage
from megatron_codemix.config.study import StudyConfig
from megatron_codemix.config.tracking import WandbConfig
from megatron_codemix.config.width import WidthTransfer
from megatron_codemix.config.world import data_degree, data_ranks

__all__ = [
    "BatchRamp",
    "Branch",
    "CacheConfig",
    "CheckpointConfig",
    "CodeQuality",
    "CorruptionConfig",
    "DataConfig",
    "DataPath",
    "Decontaminate",
    "Deduplicate",
    "DeepSpeedConfig",
    "FimConfig",
    "GuardsConfig",
    "LanguageClass",
    "LanguageStep",
    "LearningRate",
    "LicenseStep",
    "LoggingConfig",
    "ModelConfig",
    "NearDuplicates",
    "Objective",
    "OptimizerConfig",
    "Pairs",
    "ParallelConfig",
    "PersonalData",
    "PrefixConfig",
    "PrepConfig",
    "RecomputeConfig",
    "RenderStep",
    "Repositories",
    "RopeScaling",
    "RunConfig",
    "RunSource",
    "Secrets",
    "Seeds",
    "SourceSpec",
    "SpikeGuard",
    "Stage",
    "StudyConfig",
    "TextQuality",
    "TimeoutConfig",
    "TokenizerTraining",
    "TrunkPart",
    "Url",
    "ValidationConfig",
    "WandbConfig",
    "WidthTransfer",
    "data_degree",
    "data_ranks",
    "dump_yaml",
    "load_config",
    "padded_vocab_size",
    "parse_config",
    "sizes_of",
]
