"""Configuration: strict pydantic models of run, prep and study files, and how they are read.

`load_config(path, RunConfig, overrides)` is the way in; every mistake is reported at once.
"""

from megatron_codemix.config.load import dump_yaml, load_config, parse_config
from megatron_codemix.config.model import ModelConfig, RopeScaling, padded_vocab_size
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
from megatron_codemix.config.run import (
    CheckpointConfig,
    LoggingConfig,
    OptimizerConfig,
    RunConfig,
    RunSource,
    Seeds,
    ValidationConfig,
)
from megatron_codemix.config.stage import LearningRate, Stage
from megatron_codemix.config.study import StudyConfig
from megatron_codemix.config.world import data_degree, data_ranks

__all__ = [
    "CheckpointConfig",
    "CodeQuality",
    "Decontaminate",
    "Deduplicate",
    "LanguageClass",
    "LanguageStep",
    "LearningRate",
    "LicenseStep",
    "LoggingConfig",
    "ModelConfig",
    "NearDuplicates",
    "OptimizerConfig",
    "Pairs",
    "ParallelConfig",
    "PersonalData",
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
    "Stage",
    "StudyConfig",
    "TextQuality",
    "TimeoutConfig",
    "TokenizerTraining",
    "ValidationConfig",
    "data_degree",
    "data_ranks",
    "dump_yaml",
    "load_config",
    "padded_vocab_size",
    "parse_config",
]
