"""What names of parameters say of their place in a model, in checkpoints and in modules alike."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

__all__ = ["ADAPTERS", "GATES", "HEADS", "ROUTERS", "SPARES", "counts", "is_router", "left_alone"]

ADAPTERS = (
    "*lora[._]*",
    "*lora[0-9].*",
    "*.oft_R.*",
    "*.lily_*",
    "*.peanut_*",
    "*.shadow_[bdhpu]*",
    "prompt_encoder.*.mlp_head.*",
    "prompt_encoder.*.transform.*",
)
"""Globs of PEFT's adapters, and of LoRA's in diffusers (to_q.lora.down, to_q_lora.down) and in XLabs' files for FLUX
(proj_lora1.down): what a weight becomes with one is a sum or product, and keeps no pattern."""
SPARES = ("*.original_module.*",)
"""Globs of what PEFT keeps aside while a copy of it is trained (``modules_to_save``)."""
HEADS = (
    "lm_head.*",
    "*.lm_head.*",
    "*lm_heads.*",
    "embed_out.*",
    "*.embed_out.*",
    "pred_layer.*",
    "lm_loss.*",
    "logits_dense.*",
    "log_softmax.*",
    "*predictions.decoder.*",
    "output_projection.weight",
    "*decoder.output_projection.weight",
)
"""Globs of what a language model gives a score to each word by: methods of pruning leave it alone."""
GATES = ("gate.weight", "*.gate.weight", "*.gate_weight")
"""Globs of what sends tokens to experts, as far as they count; the last are those in the files of Dots."""
ROUTERS = ("router.*", "*.router.*", "*_router.*", "*.mlp.gate.*.weight")
"""The same, whatever their shape; the last are gates of layers of their own, as HunYuan and Zaya have."""
UPRIGHT = 8
"""Rows for each column from which a gate is a router kept the other way round: Ernie's has 40; one that scales, 2."""


def left_alone(name: str) -> str:
    """What a parameter of this name is, if it is pruned only where it is asked for; else nothing."""
    kinds = (HEADS, "output head"), (ADAPTERS, "adapter"), (SPARES, "kept aside by PEFT")
    return next((kind for globs, kind in kinds if any(fnmatchcase(name, glob) for glob in globs)), "")


def is_router(name: str, shape: Sequence[int]) -> bool:
    """Whether a parameter of this name and shape sends tokens to experts: a few rows that decide over all else."""
    return any(fnmatchcase(name, glob) and counts(glob, shape) for glob in (*GATES, *ROUTERS))


def counts(glob: str, shape: Sequence[int]) -> bool:
    """Whether a glob speaks of parameters of this shape, too.

    One of `GATES` does so of matrices with fewer rows than columns, one for each expert, or with far more: a square
    gate scales what a layer puts out, as in RetNet and RWKV.
    """
    return glob not in GATES or (len(shape) == 2 and not shape[1] <= shape[0] < UPRIGHT * shape[1])
