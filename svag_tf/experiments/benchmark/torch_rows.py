"""The rows of a PyTorch process."""

from __future__ import annotations

from typing import Any

from svag_tf.experiments.benchmark.cases import Case
from svag_tf.experiments.benchmark.serving import Step, timed
from svag_tf.optional import pytorch_optimizer, torch


class TorchRows:
    """Builds the rows by name, all with the same gradients."""

    def __init__(self, case: Case, threads: int):
        torch.set_num_threads(threads)
        self.case = case
        generator = torch.Generator().manual_seed(0)
        self.gradients = [
            0.01 * torch.randn(shape, generator=generator) for shape in case.shapes
        ]

    def __call__(self, name: str) -> Step:
        parameters = [torch.nn.Parameter(torch.zeros(s)) for s in self.case.shapes]
        for parameter, gradient in zip(parameters, self.gradients):
            parameter.grad = gradient
        return timed(self._optimizer(name, parameters).step)

    def _optimizer(self, name: str, parameters: list[Any]) -> torch.optim.Optimizer:
        if name == "torch-adamw-fused":
            return torch.optim.AdamW(parameters, lr=1e-3, fused=True)
        if name == "torch-adamw-foreach":
            return torch.optim.AdamW(parameters, lr=1e-3, foreach=True)
        if name == "torch-msvag":
            return pytorch_optimizer.MSVAG(parameters, lr=1e-3, foreach=True)
        raise ValueError(f"There is no row {name!r}.")
