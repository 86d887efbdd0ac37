"""Images: scikit-learn's digits for classifiers with and without convolutions, autoencoders and noise regression."""

from __future__ import annotations

import copy
import math
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.fault_injection.healthy_programs.measures import held_out_accuracy
from benchmarks.fault_injection.healthy_programs.program import (
    HELD_OUT,
    TUNING,
    Ready,
    Setup,
    arguments,
    program,
    with_trainer,
)


@cache
def digits(channels: int = 1, size: int = 8) -> list[dict[str, Any]]:
    """1,797 images of handwritten digits in [-1, 1] with their labels, enlarged by repetition of pixels."""
    from sklearn.datasets import load_digits

    images, targets = load_digits(return_X_y=True)
    pixels = torch.tensor(images / 8.0 - 1.0, dtype=torch.float32).view(-1, 1, 8, 8)
    pixels = pixels.repeat_interleave(size // 8, 2).repeat_interleave(size // 8, 3).repeat(1, channels, 1, 1)
    order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0)).tolist()
    return [{"pixel_values": pixels[i], "labels": int(targets[i])} for i in order]


def stack(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    """A batch of images and labels."""
    return {
        "pixel_values": torch.stack([row["pixel_values"] for row in rows]),
        "labels": torch.tensor([row["labels"] for row in rows]),
    }


def images_only(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    """A batch of images."""
    return {"pixel_values": torch.stack([row["pixel_values"] for row in rows])}


def classify(
    setup: Setup, model: nn.Module, settings: dict[str, Any], rows: list[dict[str, Any]], bound: float = 0.8, **kw: Any
) -> Ready:
    """Digits by their labels."""
    score = held_out_accuracy(rows[1400:], bound)
    return with_trainer(setup, model, rows[:1400], settings, collator=stack, score=score, **kw)


class ConvNet(nn.Module):
    """Three convolutions with BatchNorm and ReLU, and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        widths = [1, 16, 32, 64]
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU())
            for a, b in zip(widths, widths[1:], strict=False)
        )
        self.head = nn.Linear(64, 10)

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """Loss and logits."""
        for layer in self.layers:
            pixel_values = layer(pixel_values)
        logits = self.head(pixel_values.mean((2, 3)))
        return {"loss": functional.cross_entropy(logits, labels), "logits": logits}


@program(TUNING)
def convnet_with_batch_norm(setup: Setup) -> Ready:
    """A small ConvNet with BatchNorm and plain Adam."""
    return classify(setup, ConvNet(), arguments(setup, 120, 3e-3, 32, warmup_steps=0), digits())


@program(HELD_OUT)
def convnet_by_sgd(setup: Setup) -> Ready:
    """The rate of 0.1 and the momentum of 0.9 that ConvNets are trained with."""
    model = ConvNet()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    settings = arguments(setup, 150, 0.1, 32, lr_scheduler_type="cosine", warmup_steps=0)
    return classify(setup, model, settings, digits(), optimizers=(optimizer, None))


@program(TUNING)
def resnet(setup: Setup) -> Ready:
    """HF's ResNet from scratch."""
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(
        num_channels=1,
        embedding_size=16,
        hidden_sizes=[16, 32],
        depths=[2, 2],
        layer_type="basic",
        downsample_in_first_stage=False,
        num_labels=10,
    )
    return classify(setup, ResNetForImageClassification(config), arguments(setup, 100, 2e-3, 16), digits(1, 16))


@program(TUNING)
def vit(setup: Setup) -> Ready:
    """ViT from scratch."""
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        image_size=8,
        patch_size=2,
        num_channels=1,
        hidden_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=96,
        num_labels=10,
    )
    return classify(setup, ViTForImageClassification(config), arguments(setup, 200, 2e-3, 32), digits(), 0.7)


@program(HELD_OUT)
def swin(setup: Setup) -> Ready:
    """Swin with shifted windows."""
    from transformers import SwinConfig, SwinForImageClassification

    config = SwinConfig(
        image_size=8,
        patch_size=2,
        num_channels=1,
        embed_dim=32,
        depths=[2, 2],
        num_heads=[2, 4],
        window_size=2,
        use_absolute_embeddings=True,
        num_labels=10,
    )
    return classify(setup, SwinForImageClassification(config), arguments(setup, 200, 2e-3, 32), digits(), 0.5)


@program(HELD_OUT)
def convnext(setup: Setup) -> Ready:
    """ConvNeXt, whose layers begin with a scale of 1e-6."""
    from transformers import ConvNextConfig, ConvNextForImageClassification

    config = ConvNextConfig(num_channels=1, patch_size=2, hidden_sizes=[24, 48], depths=[2, 2], num_labels=10)
    config.num_stages = 2
    return classify(setup, ConvNextForImageClassification(config), arguments(setup, 150, 4e-3, 32), digits(1, 16))


@program(TUNING)
def dinov2(setup: Setup) -> Ready:
    """DINOv2, whose mask token nobody uses in fine-tuning."""
    from transformers import Dinov2Config, Dinov2ForImageClassification

    config = Dinov2Config(
        image_size=8,
        patch_size=2,
        num_channels=1,
        hidden_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_labels=10,
    )
    return classify(setup, Dinov2ForImageClassification(config), arguments(setup, 150, 2e-3, 32), digits(), 0.55)


@program(TUNING)
def mobilenet(setup: Setup) -> Ready:
    """MobileNetV2: depthwise convolutions, inverted bottlenecks and ReLU6."""
    from transformers import MobileNetV2Config, MobileNetV2ForImageClassification

    config = MobileNetV2Config(num_channels=1, image_size=32, depth_multiplier=0.25, num_labels=10)
    # Its running averages of BatchNorm move so slowly that evaluation says nothing after a hundred steps
    return with_trainer(
        setup,
        MobileNetV2ForImageClassification(config),
        digits(1, 32),
        arguments(setup, 100, 3e-3, 16),
        collator=stack,
        score=0.85,
    )


@program(HELD_OUT)
def masked_autoencoder(setup: Setup) -> Ready:
    """ViT-MAE: three quarters of the patches are hidden and painted again."""
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    config = ViTMAEConfig(
        image_size=16,
        patch_size=2,
        num_channels=1,
        hidden_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=96,
        decoder_hidden_size=32,
        decoder_num_hidden_layers=1,
        decoder_num_attention_heads=4,
        decoder_intermediate_size=64,
    )
    return with_trainer(
        setup,
        ViTMAEForPreTraining(config),
        digits(1, 16),
        arguments(setup, 400, 3e-3, 16),
        collator=images_only,
        score=0.8,
    )


@program(TUNING)
def segmentation(setup: Setup) -> Ready:
    """SegFormer: ink or paper for every pixel."""
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    config = SegformerConfig(
        num_channels=1,
        num_encoder_blocks=2,
        depths=[1, 1],
        sr_ratios=[2, 1],
        hidden_sizes=[16, 32],
        patch_sizes=[3, 3],
        strides=[2, 2],
        num_attention_heads=[1, 2],
        mlp_ratios=[2, 2],
        decoder_hidden_size=32,
        num_labels=2,
    )

    def collate(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        pixels = images_only(rows)["pixel_values"]
        return {"pixel_values": pixels, "labels": (pixels[:, 0] > 0).long()}

    model = SegformerForSemanticSegmentation(config)
    return with_trainer(setup, model, digits(1, 32), arguments(setup, 100, 2e-3, 8), collator=collate, score=0.5)


class Autoencoder(nn.Module):
    """Eight numbers per image, and the image back from them; with `variational`, as a distribution."""

    def __init__(self, variational: bool = False):
        super().__init__()
        self.variational = variational
        code = 16 if variational else 8
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, code))
        self.decoder = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64))

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        """Loss and image."""
        code = self.encoder(pixel_values)
        penalty = torch.zeros(())
        if self.variational:
            mean, log_variance = code.chunk(2, -1)
            code = mean + torch.randn_like(mean) * (log_variance / 2).exp()
            penalty = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(-1).mean()
        image = self.decoder(code)
        loss = (image - pixel_values.flatten(1)).square().sum(-1).mean() + penalty
        return {"loss": loss, "reconstruction": image}


@program(TUNING)
def autoencoder(setup: Setup) -> Ready:
    """A plain autoencoder with summed squared errors."""
    settings = arguments(setup, 200, 3e-3, 32)
    return with_trainer(setup, Autoencoder(), digits(), settings, collator=images_only, score=0.5)


@program(HELD_OUT)
def variational_autoencoder(setup: Setup) -> Ready:
    """A variational autoencoder."""
    settings = arguments(setup, 200, 3e-3, 32)
    return with_trainer(setup, Autoencoder(True), digits(), settings, collator=images_only, score=0.7)


class NoiseRegression(nn.Module):
    """DDPM on digits: which noise was added, given the time."""

    def __init__(self) -> None:
        super().__init__()
        self.time = nn.Embedding(50, 64)
        self.layers = nn.Sequential(nn.Linear(64, 192), nn.SiLU(), nn.Linear(192, 192), nn.SiLU(), nn.Linear(192, 64))
        self.register_buffer("kept", torch.cumprod(1 - torch.linspace(1e-3, 0.2, 50), 0))

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        """Loss and the noise that was guessed."""
        clean = pixel_values.flatten(1)
        time = torch.randint(0, 50, (len(clean),))
        noise, kept = torch.randn_like(clean), self.kept[time, None]
        guess = self.layers(clean * kept.sqrt() + noise * (1 - kept).sqrt() + self.time(time))
        return {"loss": functional.mse_loss(guess, noise), "noise": guess}


@program(HELD_OUT)
def noise_regression(setup: Setup) -> Ready:
    """Diffusion: the loss begins at 1 and falls as far as noise can be known."""
    return with_trainer(
        setup, NoiseRegression(), digits(), arguments(setup, 250, 2e-3, 64), collator=images_only, score=0.6
    )


class VectorQuantized(nn.Module):
    """VQ-VAE: the nearest of 64 codes, through which the gradient goes straight; unused codes get none."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(1, 32, 2, 2), nn.ReLU(), nn.Conv2d(32, 8, 1))
        self.codes = nn.Embedding(64, 8)
        self.decoder = nn.Sequential(nn.ConvTranspose2d(8, 32, 2, 2), nn.ReLU(), nn.Conv2d(32, 1, 1))

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        """Loss and image."""
        found = self.encoder(pixel_values).permute(0, 2, 3, 1)
        nearest = torch.cdist(found.reshape(-1, 8), self.codes.weight).argmin(-1)
        code = self.codes(nearest).view_as(found)
        commitment = functional.mse_loss(code, found.detach()) + 0.25 * functional.mse_loss(found, code.detach())
        image = self.decoder((found + (code - found).detach()).permute(0, 3, 1, 2))
        return {"loss": functional.mse_loss(image, pixel_values) + commitment, "reconstruction": image}


@program(HELD_OUT)
def vector_quantized_autoencoder(setup: Setup) -> Ready:
    """VQ-VAE with idle codes."""
    return with_trainer(
        setup, VectorQuantized(), digits(), arguments(setup, 200, 3e-3, 32), collator=images_only, score=0.7
    )


class Contrast(nn.Module):
    """SimCLR: two noisy views of an image find each other among those of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 96), nn.BatchNorm1d(96), nn.ReLU(), nn.Linear(96, 32))

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        """Loss and similarities."""
        views = [pixel_values + 0.3 * torch.randn_like(pixel_values) for _ in range(2)]
        first, second = (functional.normalize(self.encoder(view), dim=-1) for view in views)
        logits = first @ second.T / 0.1
        return {"loss": functional.cross_entropy(logits, torch.arange(len(logits))), "logits": logits}


@program(TUNING)
def contrastive_images(setup: Setup) -> Ready:
    """SimCLR."""
    return with_trainer(setup, Contrast(), digits(), arguments(setup, 150, 2e-3, 32), collator=images_only, score=0.5)


class Bootstrap(nn.Module):
    """BYOL: one view predicts the other as a slow copy of the encoder sees it; the copy gets no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Contrast().encoder
        self.predictor = nn.Sequential(nn.Linear(32, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 32))
        self.target = copy.deepcopy(self.encoder).requires_grad_(False)

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        """Loss, between 0 and 4."""
        views = [pixel_values + 0.3 * torch.randn_like(pixel_values) for _ in range(2)]
        with torch.no_grad():
            for slow, fast in zip(self.target.parameters(), self.encoder.parameters(), strict=True):
                slow.lerp_(fast, 0.05)
            wanted = functional.normalize(self.target(views[1]), dim=-1)
        found = functional.normalize(self.predictor(self.encoder(views[0])), dim=-1)
        return {"loss": (2 - 2 * (found * wanted).sum(-1)).mean()}


@program(HELD_OUT)
def bootstrapped_images(setup: Setup) -> Ready:
    """BYOL."""
    return with_trainer(setup, Bootstrap(), digits(), arguments(setup, 150, 2e-3, 32), collator=images_only, score=0.6)


class Flow(nn.Module):
    """RealNVP in small: the loss is a negative log-density and crosses zero."""

    def __init__(self, layers: int = 4):
        super().__init__()
        self.nets = nn.ModuleList(nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 2)) for _ in range(layers))

    def forward(self, points: Tensor) -> dict[str, Tensor]:
        """Loss."""
        log_scale = torch.zeros(len(points))
        for i, net in enumerate(self.nets):
            kept, moved = (points[:, :1], points[:, 1:]) if i % 2 else (points[:, 1:], points[:, :1])
            scale, shift = net(kept).chunk(2, -1)
            moved = moved * scale.tanh().exp() + shift
            log_scale = log_scale + scale.tanh().squeeze(-1)
            points = torch.cat([kept, moved] if i % 2 else [moved, kept], -1)
        density = -0.5 * points.square().sum(-1) - math.log(2 * math.pi) + log_scale
        return {"loss": -density.mean()}


@program(HELD_OUT)
def normalizing_flow(setup: Setup) -> Ready:
    """A density of points near a curve: the loss becomes negative, as densities may."""
    generator = torch.Generator().manual_seed(0)
    angle = 6.28 * torch.rand(2000, generator=generator)
    points = 0.2 * torch.stack([angle.cos(), angle.sin()], -1) + 0.02 * torch.randn(2000, 2, generator=generator)

    def collate(rows: list[Tensor]) -> dict[str, Tensor]:
        return {"points": torch.stack(rows)}

    return with_trainer(setup, Flow(), list(points), arguments(setup, 250, 5e-3, 64), collator=collate, score=0.2)
