"""Running statistics of batch normalisation, estimated anew for a model whose weights have changed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from nmflow.errors import InputValueError
from nmflow.torch.feed import Draws, Forward, check_batches, evaluating, feed
from nmflow.torch.select import unwrapped

__all__ = ["reestimate_batch_norm_"]


def reestimate_batch_norm_(model: nn.Module, batches: Iterable[Any], *, forward: Forward | None = None) -> int:
    """Replace running means and variances by their averages over some batches, in place.

    Parameters
    ----------
    model : Module
        Its other modules run in evaluation mode; modes are left as they were.
    batches, forward
        As for `calibrate`. Every batch counts the same, and its own statistics normalise it.

    Returns
    -------
    int
        How many modules were changed; 0 where the model has none that keep statistics. One that no batch reaches, as
        of an auxiliary output, keeps its own.

    Raises
    ------
    InputValueError
        If there is no batch, or what a module sees is not finite. After any error the statistics are as they were.

    Examples
    --------
    >>> import torch
    >>> norm = nn.BatchNorm1d(1)
    >>> reestimate_batch_norm_(norm, [torch.tensor([[1.0], [3.0]]), torch.tensor([[5.0], [7.0]])])
    1
    >>> norm.running_mean.tolist(), norm.running_var.tolist()
    ([4.0], [2.0])
    """
    check_batches(batches, "batches", forward)
    inner = unwrapped(model)
    norms = [
        module
        for module in inner.modules()
        if isinstance(module, _BatchNorm) and isinstance(module.running_mean, torch.Tensor)
        and not nn.parameter.is_lazy(module.running_mean)
    ]  # fmt: skip
    if not norms:
        return 0
    before = [(norm.momentum, {name: value.clone() for name, value in norm.named_buffers()}) for norm in norms]
    number, draws = -1, Draws()
    try:
        with evaluating(inner, keep_buffers=True):
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None  # a plain average over the batches
            for number, batch in enumerate(batches):  # which the model may have a part in
                for norm in norms:
                    norm.train()
                with draws.apart():
                    feed(inner, batch, number, forward)
                for norm in norms:
                    norm.eval()
        if number < 0:
            raise InputValueError("batches must hold at least one batch, not none; is the iterator used up?")
        for norm in norms:
            if not all(value.isfinite().all() for value in norm.buffers()):
                raise InputValueError("batches must give finite statistics, and a BatchNorm saw NaN or infinity")
    except BaseException:
        for norm, (_, buffers) in zip(norms, before, strict=True):
            _put_back(norm, buffers)
        raise
    finally:
        for norm, (momentum, _) in zip(norms, before, strict=True):
            norm.momentum = momentum
    reached = [bool(norm.num_batches_tracked) for norm in norms]
    for norm, (_, buffers), seen in zip(norms, before, reached, strict=True):
        if not seen:
            _put_back(norm, buffers)
    return sum(reached)


def _put_back(norm: _BatchNorm, buffers: Mapping[str, torch.Tensor]) -> None:
    for name, value in buffers.items():
        norm.get_buffer(name).copy_(value)
