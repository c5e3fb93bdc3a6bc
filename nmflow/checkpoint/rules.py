"""What names, shapes and dtypes of stored tensors say: how they are seen as matrices, and which are left alone."""

from __future__ import annotations

import math
import re
from fnmatch import fnmatchcase

from nmflow.arrays import Layout
from nmflow.checkpoint.header import Entry
from nmflow.checkpoint.tensor import FLOATS
from nmflow.names import ADAPTERS, GATES, HEADS, ROUTERS, SPARES, UPRIGHT, counts
from nmflow.pattern import Pattern

__all__ = ["EXCLUDED", "LEFT_OUT", "WEIGHTS", "impossible", "layout_of", "too_small", "unwanted"]

WEIGHTS = (
    "weight",
    "*.weight",
    "*_weight",
    "*.weight_v",
    "*.parametrizations.weight.original1",
    "*experts.*_proj",
    "*.experts.mlp.[vw][12]",
)
"""Names of what a linear or convolution layer multiplies by (weight_v, original1: the direction under weight
normalisation, by either of torch's; the last are the experts of DBRX)."""

STACKED = ("*.experts.*", "*.input_linear.weight", "*.output_linear.weight")
"""Names of tensors that are a stack of matrices, and not a convolution, when they have three axes: those of experts."""

CONVOLUTION = "*conv[._s0-9o]*"
"""Names of tensors that are a convolution when they have three axes: conv.weight, conv1, convs, convolution."""

LONGEST = 32
"""Last axis, of three, that may still be a kernel where no name says what it is: those of convolutions along one axis
are shorter, and matrices wider."""

EXCLUDED: tuple[tuple[str, str], ...] = (
    ("*embed*", "embedding"),
    ("*.wte.weight", "embedding"),
    ("wte.weight", "embedding"),
    ("*.wpe.weight", "embedding"),
    ("wpe.weight", "embedding"),
    ("*pos_emb*", "position"),
    ("*emb[._]*", "embedding"),
    ("*time_[ps]*", "embedding"),
    ("*timestep*", "embedding"),
    ("*_in.in_layer.*", "embedding"),
    ("*_in.out_layer.*", "embedding"),
    ("shared.weight", "embedding"),
    ("*.shared.weight", "embedding"),
    ("*transformer.w.weight", "embedding"),
    ("query.weight", "embedding"),
    ("*mask_tokens.weight", "embedding"),
    ("*query_feat.weight", "embedding"),
    ("*queries_features.weight", "embedding"),
    ("audio.encoder.weight", "embedding"),
    ("*codebook*", "codebook"),
    ("*centroids.weight", "codebook"),
    ("*position*", "position"),
    ("*rel_pos*", "position"),
    ("*reference_points.weight", "position"),
    ("norm*", "norm"),
    ("*_norm*", "norm"),
    ("*.*norm*", "norm"),
    ("*Norm*", "norm"),
    ("*.ln_*", "norm"),
    ("*.bn*", "norm"),
    ("*ada[lL][nN]*", "modulation"),
    ("*modulation*", "modulation, FocalNet's aside"),
    ("*img_mod.*", "modulation"),
    ("*txt_mod.*", "modulation"),
    ("time_mod_proj.*", "modulation"),
    ("*distilled_guidance_layer.*", "modulation"),
    ("*av_cross_attn_*_gate.*", "modulation"),
    ("*bias*", "bias"),
    ("*_scale*", "quantisation scale"),
    *((glob, "output head") for glob in HEADS),
    ("*classifier[._]*", "output head"),
    ("classif.*", "output head"),
    ("score.*", "output head"),
    ("*.score.*", "output head"),
    ("head.*", "output head"),
    ("*.head.*", "output head"),
    ("heads.*", "output head"),
    ("head_dist.*", "output head"),
    ("heads_dist.*", "output head"),
    ("*_head.*", "output head, conv_head and [qkv]_head aside"),
    ("*head_linear.*", "output head"),
    ("qa_outputs.*", "output head"),
    ("cls.*", "output head"),
    ("fc.weight", "output head"),
    ("output.weight", "output head"),
    ("output_layer.weight", "output head"),
    ("transformer.output_layer.weight", "output head"),
    ("vocab_projector.*", "output head"),
    ("decoder.weight", "output head"),
    ("last_linear.*", "output head"),
    ("final_linear.*", "output head"),
    ("*final_layer.*", "output head"),
    ("*_predictor.*", "output head"),
    ("*_pred.*", "output head"),
    ("*to_logits.*", "output head"),
    ("*sequence_summary.*", "output head"),
    ("proj_out[._]*", "output head"),
    ("audio_proj_out.*", "output head"),
    ("action_out_proj.*", "output head"),
    ("*out_layer.out_layer.*", "output head"),
    ("*coder.proj_out.*", "output head"),
    ("conv_out.*", "output head"),
    ("*coder.conv_out.*", "output head"),
    ("out.2.weight", "output head"),
    ("*cv[2-5].[0-9].[0-9].weight", "output head"),
    *((glob, "adapter") for glob in ADAPTERS),
    *((glob, "kept aside by PEFT") for glob in SPARES),
    *((glob, "router of experts") for glob in ROUTERS),
    *((glob, f"router of experts, with fewer rows than columns, or {UPRIGHT} times as many") for glob in GATES),
)
"""Name globs that are left alone unless an include glob asks for them, each with what it stands for."""


LEFT_OUT = "excluded by"
"""How the reason begins where the caller asked for a tensor to be left alone."""

INSIDE = ("conv_head.*", "*.conv_head.*", "*.[qkv]_head.*", "*.modulation.[fhp]*")
"""Names that none of these is meant for: EfficientNet's and MobileNet's convolution before their classifier, the
projections to the heads of Funnel's attention, and what FocalNet has in place of attention."""

WRAPPED = re.compile(
    r"^((module|_orig_mod|model|timm_model|diffusion_model"
    r"|conditioner\.embedders\.\d+|embed_tokens_extend\.(image|audio)_embed)\.)+"
)
"""What stands before names, which `EXCLUDED` is about without it: put there by DataParallel, torch.compile, Lightning
and others; and, for the encoders in a file of SDXL and in Phi-4 multimodal, what makes them look like embeddings."""


def layout_of(entry: Entry) -> Layout | None:
    """How the axes of a tensor are seen as matrices. Its name tells, and else its shape."""
    if len(entry.shape) != 3:
        return None if len(entry.shape) < 3 else "conv"
    if any(fnmatchcase(entry.name, glob) for glob in STACKED):
        return "batch"
    return "conv" if entry.shape[-1] <= LONGEST or fnmatchcase(entry.name, CONVOLUTION) else "batch"


def too_small(pattern: Pattern) -> str:
    """The reason to leave a tensor alone that is smaller than a block."""
    rows, cols = pattern.block_shape if pattern.transposable else (1, pattern.m)
    return f"smaller than a block of {rows} x {cols}"


def impossible(entry: Entry, layout: Layout | None, pattern: Pattern) -> str:
    """Why no mask can be made for a tensor, whatever its name; empty if one can."""
    if entry.dtype not in FLOATS:
        return f"dtype {entry.dtype}"
    if len(entry.shape) < 2:
        return f"{len(entry.shape)}-D"
    if not math.prod(entry.shape):
        return "empty"
    rows, cols = entry.shape[-2:] if layout == "batch" else (entry.shape[0], math.prod(entry.shape[1:]))
    # Whole blocks are where hardware gains; without one there is nothing but a ragged edge.
    if cols < pattern.m or (pattern.transposable and rows < pattern.block_shape[0]):
        return too_small(pattern)
    return ""


def unwanted(entry: Entry, include: tuple[str, ...], exclude: tuple[str, ...], gain: bool = False) -> str:
    """Why a tensor that could be pruned is not; empty if it is.

    gain : whether one of that name lies beside it, as NFNet's convolutions have it, which standardise their weight.
    """
    for glob in exclude:
        if fnmatchcase(entry.name, glob):
            return f"{LEFT_OUT} {glob!r}"
    if any(fnmatchcase(entry.name, glob) for glob in include):
        return ""
    name = WRAPPED.sub("", entry.name)
    for glob, meaning in () if any(fnmatchcase(name, glob) for glob in INSIDE) else EXCLUDED:
        if fnmatchcase(name, glob) and counts(glob, entry.shape):
            return f"{meaning} ({glob})"
    if not any(fnmatchcase(entry.name, glob) for glob in WEIGHTS):
        return "not named as a weight of a linear or convolution layer"
    if len(entry.shape) >= 3 and entry.shape[1] == 1:
        return "depthwise convolution"
    if gain and len(entry.shape) == 4:
        return "convolution that standardises its weight, and so uses no zeros of it"
    return ""
