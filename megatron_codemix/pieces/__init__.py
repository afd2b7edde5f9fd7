"""A model's training state cut into pieces, on disk: written by each rank alone, read at any layout."""

from megatron_codemix.pieces.piece import EXP_AVG, EXP_AVG_SQ, KINDS, PARAM, Block, Piece

__all__ = ["EXP_AVG", "EXP_AVG_SQ", "KINDS", "PARAM", "Block", "Piece"]
