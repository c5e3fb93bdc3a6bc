"""What the layers of a model saw: gathered once, for scores and for every method that prunes after training."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from nmflow.asked import amount, check_flags
from nmflow.errors import InputValueError
from nmflow.pattern import Pattern
from nmflow.torch.damping import checked_damping
from nmflow.torch.feed import Forward
from nmflow.torch.gather import MEMORY, gather
from nmflow.torch.moments import Moments, from_matrices, known, matrices
from nmflow.torch.scores import score_named
from nmflow.torch.select import Filter, Layer, Selection, select, unwrapped
from nmflow.torch.watch import OnStep

__all__ = ["Calibration", "calibrate", "with_known_inputs"]


@dataclass(frozen=True, slots=True, eq=False)
class Calibration:
    """What the layers of a model saw.

    Attributes
    ----------
    layers : mapping of str to Layer
        By the name of the parameter, in the order of the model.
    moments : mapping of str to Moments
    damping : float or None
        What "obs" adds to XᵀX, as in `adaprune_`.
    """

    layers: Mapping[str, Layer]
    moments: Mapping[str, Moments]
    damping: float | None = None

    def scores(self, name: str) -> Callable[[str, nn.Module], torch.Tensor | None]:
        """Scores for `prune_(model, ..., scores=calibration.scores("wanda"))`; "magnitude", "wanda" or "obs".

        Weights are those of the module that is asked about, a copy's for one; inputs those of the calibrated model. A
        warning says where "obs" has fewer rows than inputs to go by.

        Raises
        ------
        InputValueError
            If there is no score of that name, "obs" is asked for without gram matrices, or a weight has not as many
            inputs as its layer had.
        """
        score = score_named(name)
        if name == "obs":
            self._warn_of_few()

        def scored(parameter: str, module: nn.Module) -> torch.Tensor | None:
            layer = self.layers.get(parameter)
            if layer is None:
                return None
            weight, moments = cast("torch.Tensor", module.weight).detach(), self.moments[parameter]
            groups, width = moments.total.shape
            if len(weight) % groups or (len(weight) if layer.turned else weight[0].numel()) != width:
                raise InputValueError(
                    f"scores of {parameter} must be asked for a weight of {width} inputs in each of {groups} groups, "
                    f"not of shape {tuple(weight.shape)}; calibrate this model"
                )
            found = score(matrices(layer, weight).to(moments.total), moments, self.damping)
            return from_matrices(layer, found, weight.shape)

        return scored

    def _warn_of_few(self) -> None:
        """Warn where inputs have more dimensions than there are rows: damping decides then."""
        widths = {name: moments.total.shape[1] for name, moments in self.moments.items()}
        few = [name for name, moments in self.moments.items() if 0 < moments.count < widths[name]]
        if few:
            name, moments = few[0], self.moments[few[0]]
            more = f", and in {len(few) - 1} more layers" if len(few) > 1 else ""
            warnings.warn(
                f"only {moments.count} rows for {widths[name]} inputs of {name}{more}: give more samples",
                stacklevel=3,
            )

    def __repr__(self) -> str:
        counts = [moments.count for moments in self.moments.values()]
        return f"<Calibration of {len(self.layers)} layers, {min(counts)} to {max(counts)} rows each>"


def calibrate(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    include: Iterable[str] | None = None,
    exclude: Iterable[str] | None = None,
    filter_fn: Filter | None = None,
    gram: bool = True,
    damping: float | None = None,
    forward: Forward | None = None,
    memory: float = MEMORY,
    progress: OnStep | bool | None = None,
) -> Calibration:
    """Send batches through a model and sum up what each Linear and convolution sees.

    Parameters
    ----------
    model : Module
        On any device; run in evaluation mode, and left as it was.
    batches : iterable
        A batch is an argument of the model (a tensor), its arguments (a tuple or list) or its keywords (a mapping). The
        tokens that a mapping's attention_mask calls padding are left out, also where a layer sees texts one after the
        other; those of a decoder by decoder_attention_mask.
    include, exclude, filter_fn
        Which layers, as in `prune_`.
    gram : bool
        Sum x xᵀ too (8 K² bytes for a layer of K inputs); "wanda" does without.
    damping : float, optional
        For the score "obs", as in `adaprune_`; at least 0.
    forward : callable (model, batch), optional
        How a batch goes through the model, where it is none of the above: a loader's (images, labels), for one.
    memory : float
        Bytes of sums at a time; layers that need more wait for another pass over the batches.
    progress : callable (name, done, total) or bool, optional
        Default: a bar on standard error, if that is a terminal.

    Returns
    -------
    Calibration

    Raises
    ------
    InputValueError
        If there is no batch, a layer is never called, a batch does not fit in memory, or several passes are needed over
        batches that can be read only once.
    NonFiniteError
        If a layer's input is NaN or infinite; it names the layer and the batch.

    Notes
    -----
    Sums are in float64: 2 N K² operations for N rows of a layer. Of more than 512 inputs of 16 bits, products and sums
    over 1024 rows are in float32, twice as fast. One batch is in memory at a time.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    >>> calibrate(model, [torch.randn(16, 8), torch.randn(16, 8)])
    <Calibration of 2 layers, 32 to 32 rows each>
    """
    inner = unwrapped(model)
    damping = checked_damping(damping)
    memory = amount(memory, "memory", finite=False)
    check_flags(gram=gram)
    # any pattern will do: layers too small for one of its blocks can still be looked at
    selection = select(inner, Pattern(1, 1), include=include, exclude=exclude, filter_fn=filter_fn)
    layers = with_known_inputs(selection).layers
    moments = gather(inner, batches, layers, gram=gram, forward=forward, memory=memory, progress=progress)
    idle = [name for name, seen in moments.items() if not seen.count]
    if idle:
        warnings.warn(
            f"no token came to {len(idle)} of {len(layers)} layers, of experts such as {idle[0]}: their scores are "
            f"magnitudes, give more samples",
            stacklevel=2,
        )
    return Calibration({layer.name: layer for layer in layers}, moments, damping)


def with_known_inputs(selection: Selection) -> Selection:
    """Leave out what no hook can see the input of.

    Raises
    ------
    InputValueError
        If nothing is left.
    """
    taken = tuple(layer for layer in selection.layers if known(layer))
    if not taken:
        raise InputValueError("model must have a Linear, Conv1d or Conv2d whose inputs can be seen; it has none")
    unknown = [layer for layer in selection.layers if not known(layer)]
    reason = "its inputs cannot be seen; use prune_ for it"
    return Selection(taken, (*selection.skipped, *((layer.name, reason) for layer in unknown)))
