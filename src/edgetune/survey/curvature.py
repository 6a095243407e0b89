"""How a loss curves in the tuned tensors: products with its Hessian, and what follows from them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from edgetune.core.batch import Batch, Objective
from edgetune.core.keys import stream
from edgetune.core.tuned import Tuned
from edgetune.survey.lanczos import Product, Spectrum, lanczos


class _Loss(nn.Module):
    """An objective as a module, whose parameters can be replaced for one call."""

    def __init__(self, model: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.model, self._objective = model, objective

    def forward(self, batch: Batch) -> torch.Tensor:
        """Return the loss."""
        return self._objective(self.model, batch)


@dataclass(frozen=True, slots=True)
class Curvature:
    """The Hessian of a loss over the tuned tensors alone, at the point where they are; it is never formed.

    The random vectors are the same on every device and in every run.

    Args:
        tuned: the model; its tensors stay as they are.
        batch: the loss is this batch's.
        objective: what is minimised.
    Cost: measured on the embedded model, in forward passes: 5 for the graph, 3.5 to 4 a product, which is a backward
        pass through forward and backward pass. The graph holds both: four times a training step's activations.
    """

    tuned: Tuned
    batch: Batch
    objective: Objective

    @property
    def size(self) -> int:
        """D, the number of tuned weights."""
        return sum(weight.numel() for _, weight in self.tuned.named_weights())

    def products(self, shift: torch.Tensor | None = None) -> Product:
        """Return v -> H v, by differentiating the gradient once more.

        Args:
            shift: the Hessian is that at the tuned tensors plus this, float64 [d]; at them if not given.
        """
        points, start = dict[str, torch.Tensor](), 0
        for name, weight in self.tuned.named_weights():
            point, stop = weight.detach().clone(), start + weight.numel()
            if shift is not None:
                point += shift[start:stop].view_as(point).to(point)
            points[name], start = point.requires_grad_(True), stop
        leaves = list(points.values())
        loss_of = _Loss(self.tuned.model, self.objective)
        # fused attention has no second derivative
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            named = {f"model.{name}": point for name, point in points.items()}
            loss = functional_call(loss_of, named, (self.batch.to(leaves[0].device),))
            gradients = torch.autograd.grad(loss, leaves, create_graph=True)
            flat = torch.cat([one.reshape(-1) for one in gradients])

        def product(vector: torch.Tensor) -> torch.Tensor:
            found = torch.autograd.grad(flat, leaves, vector.to(flat), retain_graph=True)
            return torch.cat([one.reshape(-1) for one in found]).to(vector)

        return product

    def spectrum(self, steps: int) -> Spectrum:
        """Return what so many products say of the Hessian's eigenvalues."""
        return lanczos(self.products(), self._random("start"), steps)

    def lipschitz(self, radius: float, steps: int) -> float:
        """Return how much the Hessian changes near the point, which bounds how far the gradient is from linear.

            B(D) = H D - grad L(w + D),   |B(D) - B(D')| <= l |D - D'|,   l = sup |H(w + D) - H(w)|_2

        The supremum over the ball is not known. This is the norm at one random D, the largest Ritz value of a few
        products with the difference: a lower bound of l.

        Args:
            radius: standard deviation of D's elements.
            steps: products with each of two Hessians.
        Cost: two graphs at once.
        Source: B is the base function of Zhang et al. 2021, NeurIPS (lottery tickets and inertial manifolds).
        """
        here, there = self.products(), self.products(radius * self._random("shift"))
        return lanczos(lambda vector: there(vector) - here(vector), self._random("change"), steps).size

    def _random(self, what: str) -> torch.Tensor:
        return torch.from_numpy(stream(0, "curvature", what).standard_normal(self.size))
