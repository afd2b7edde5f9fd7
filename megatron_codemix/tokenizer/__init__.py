"""Text ↔ ids, losslessly: a reference library for each kind of tokenizer, and a fast engine that must equal it.

    tokenizer = Tokenizer.load("prepared/tokenizer")

Here is what every process needs. `tokenizer.symbols` lists the reserved symbols, `tokenizer.training` learns a SentencePiece
model, `tokenizer.importing` takes over a tokenizer that exists, and `tokenizer.export` (which imports transformers) writes
one for Hugging Face and proves it.
"""

from megatron_codemix.tokenizer.core import Tokenizer, file_name_of, find_model
from megatron_codemix.tokenizer.vocabulary import JSON_NAME, MODEL_NAME, EngineMismatch

__all__ = ["JSON_NAME", "MODEL_NAME", "EngineMismatch", "Tokenizer", "file_name_of", "find_model"]
