"""The models and batches of the tests of tensor parallelism, the same in every process."""

from pathlib import Path

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

STEPS, LEARNING_RATE, MAX_NORM = 3, 0.5, 0.05
OWN = ("own", "own bf16", "own accumulation 3", "own bf16 accumulation 3")
PLANNED = ("transformers bf16", "transformers accumulation 3", "transformers bf16 accumulation 3")
PLAN = {"up": "column", "down": "row"}


class Net(nn.Module):
    """Two layers that are split, one of them by rows and one by columns, between others that are not."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.embed = nn.Linear(7, 66)
            self.up = nn.Linear(66, 98)
            self.down = nn.Linear(98, 66)
            self.norm = nn.LayerNorm(66)
            self.head = nn.Linear(66, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        return self.head(self.norm(x + self.down(torch.relu(self.up(x)))))


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(8, 7, generator=generator), torch.randn(8, 1, generator=generator)) for _ in range(STEPS)]


def token_batches() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randint(0, 32, (4, 9), generator=generator) for _ in range(STEPS)]


def save_llama(folder: Path) -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LlamaConfig(vocab_size=32, num_attention_heads=4, num_key_value_heads=2, **sizes)
        LlamaForCausalLM(config).save_pretrained(folder)
