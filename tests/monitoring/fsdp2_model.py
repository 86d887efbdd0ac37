"""The model and the batches of the sharding tests, the same in every process."""

import torch
from torch import nn

STEPS, LEARNING_RATE, MAX_NORM = 3, 1e-2, 0.05


class Net(nn.Module):
    """Rows that do not divide by two, tensors with one row (empty on rank 1), one above 4,096 elements."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.embed = nn.Linear(7, 65)
            self.layers = nn.ModuleList([nn.Linear(65, 65), nn.Linear(65, 65), nn.Linear(65, 129)])
            self.norm = nn.LayerNorm(129)
            self.head = nn.Linear(129, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        for layer in self.layers:
            x = torch.relu(layer(x))
        return self.head(self.norm(x))


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(8, 7, generator=generator), torch.randn(8, 1, generator=generator)) for _ in range(STEPS)]
