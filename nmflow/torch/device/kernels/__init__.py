"""Triton kernels: the steps of `nmflow.torch.device.ascent` and `paths`, without leaving registers.

`settle_blocks` gives each lane a whole block (2:4, 1:4). `settle_lines` gives each lane one row and one column of a
block (m = 8, 16, 32). Both find the two order statistics of a line by the same selection network as the CPU.
`augment_blocks` takes the blocks that are left. `kept_score` sums what a mask keeps.

All that decides is arithmetic on integers: see `nmflow.torch.device.numbers`. Blocks that stay open are appended to a
list on the device, so no launch waits for the host; the order of a list has no influence on any block.

Scores lie at `scores + row * row_stride + col * col_stride`. The mask is contiguous. Duals are float64, in the
layout of a Solution: u of shape (rows, wide), v of shape (tall, columns), where the grid has tall x wide blocks.
"""

import triton

from nmflow.torch.versions import TRITON, is_older

if is_older(triton.__version__, TRITON):
    raise ImportError(f"nmflow's kernels need Triton {TRITON} or newer, not {triton.__version__}")

from nmflow.torch.device.kernels.augment import augment_blocks
from nmflow.torch.device.kernels.by_block import settle_blocks
from nmflow.torch.device.kernels.by_line import settle_lines
from nmflow.torch.device.kernels.kept import kept_score

__all__ = ["augment_blocks", "kept_score", "settle_blocks", "settle_lines"]
