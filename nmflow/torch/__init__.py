"""PyTorch: prune a model in a line, train it sparse, hand it to sparse kernels.

This room moves tensors and schedules solves; every mask is made by the core.

>>> import torch, nmflow.torch
>>> model = torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.ReLU(), torch.nn.Linear(64, 8))
>>> report = nmflow.torch.prune_(model, 2, 4)
>>> report.proven, int((model[0].weight != 0).sum())
(True, 1024)
"""

from __future__ import annotations

from nmflow.errors import MissingLibraryError
from nmflow.torch.versions import TORCH, is_older

try:
    import torch
except ImportError as error:
    raise MissingLibraryError(
        f'nmflow.torch needs torch {TORCH} or newer, which is not installed; pip install "nmflow[torch]"'
    ) from error

if is_older(torch.__version__, TORCH):
    raise MissingLibraryError(
        f'nmflow.torch needs torch {TORCH} or newer, not {torch.__version__}; pip install --upgrade "nmflow[torch]"'
    )

from nmflow.torch.adaprune import adaprune_
from nmflow.torch.allocate import Allocation, allocate
from nmflow.torch.alps import alps_
from nmflow.torch.batch_norm import reestimate_batch_norm_
from nmflow.torch.calibrate import Calibration, calibrate
from nmflow.torch.device import solve_on_device
from nmflow.torch.experts import experts_apart
from nmflow.torch.masking import sparse_state_dict
from nmflow.torch.post_report import PostLayer, PostReport
from nmflow.torch.prune import mask_for, prune_
from nmflow.torch.report import LayerReport, PruneReport
from nmflow.torch.semi import SemiReport, to_semi_structured_
from nmflow.torch.semi_structured import load_semi_structured, semi_structured
from nmflow.torch.sparsegpt import sparsegpt_
from nmflow.torch.state import Refresh, TrainingStateError
from nmflow.torch.training import SparseTraining
from nmflow.torch.unstructured import choose_n, from_unstructured_

__all__ = [
    "Allocation",
    "Calibration",
    "LayerReport",
    "PostLayer",
    "PostReport",
    "PruneReport",
    "Refresh",
    "SemiReport",
    "SparseTraining",
    "TrainingStateError",
    "adaprune_",
    "allocate",
    "alps_",
    "calibrate",
    "choose_n",
    "experts_apart",
    "from_unstructured_",
    "load_semi_structured",
    "mask_for",
    "prune_",
    "reestimate_batch_norm_",
    "semi_structured",
    "solve_on_device",
    "sparse_state_dict",
    "sparsegpt_",
    "to_semi_structured_",
]
