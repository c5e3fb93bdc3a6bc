"""Exact masks on the device where the weights are; see `solve_on_device`."""

from nmflow.torch.device.driver import on_device, solve_on_device

__all__ = ["on_device", "solve_on_device"]
