"""Shorter ways to the numbers of the plain architecture: dropout, attention kernels, masks, packed sequences.

The file travels with every saved checkpoint, so it imports only torch and transformers. Letters in shape comments are
those of the model: B sequences, T tokens, H hidden size, N heads, D = H / N.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.modules.module import _has_any_global_hook
from transformers.utils import is_tracing

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # torch before 2.10
    varlen_attn = None  # type: ignore[assignment]


class ToolkitBertDropout(nn.Dropout):
    """Dropout that draws 16 random bits per element on the CPU.

    PyTorch draws a number for each element in turn there, which takes a tenth of a training step. The rate is exact to
    1 / 65536, and the scale that keeps the mean is that of the rate as it is.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Drop elements of x, any shape, in training.

        Args:
            x: Any shape.

        Returns:
            In training x with dropped elements zero and the others scaled up, else x itself.
        """
        dropped = round(self.p * 65536)
        if not self.training or not 0 < dropped < 65536 or x.device.type != "cpu" or is_tracing(x):
            return super().forward(x)
        bits = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
        kept = bits[: x.numel()].view(x.shape) >= dropped - 32768
        return x * kept.to(x.dtype).mul_(65536 / (65536 - dropped))


def is_plain(table: nn.Module) -> bool:
    """Return whether calling an embedding only looks up rows of its weight, so that they may be sliced instead.

    It does more with a hook, an adapter, a parametrization or another module in its place, and where accelerate or
    DeepSpeed keep the weight elsewhere until the call.

    Args:
        table: The embedding.
    """
    return (
        type(table) is nn.Embedding
        and "forward" not in vars(table)
        and not (
            table._forward_hooks or table._forward_pre_hooks or table._backward_hooks or table._backward_pre_hooks
        )
        and not _has_any_global_hook()
        and (table.padding_idx, table.max_norm, table.scale_grad_by_freq, table.sparse) == (None, None, False, False)
    )


class Packing(NamedTuple):
    """The real tokens of a padded batch, end to end, for attention that needs no mask.

    Attributes:
        tokens: Flat indices of the real tokens in B x T.
        rows: Row of every token of B x T among the real ones.
        starts: Row at which each sequence begins, and the end of the last, (B + 1).
        longest: Most tokens in a sequence.
    """

    tokens: Tensor
    rows: Tensor
    starts: Tensor
    longest: int

    @classmethod
    def of(cls, attention_mask: Tensor) -> "Packing":
        """Find the real tokens of an attention mask (B, T) of ones and zeros.

        Args:
            attention_mask: 1 for real tokens and 0 for padding, (B, T).

        Returns:
            Where the real tokens are.
        """
        real = attention_mask.bool()
        starts = F.pad(real.sum(1).cumsum(0), (1, 0)).to(torch.int32)
        return cls(real.flatten().nonzero().squeeze(1), real.flatten().cumsum(0) - 1, starts, attention_mask.shape[1])

    def pack(self, x: Tensor) -> Tensor:
        """Take the real tokens out of a padded batch.

        Args:
            x: Hidden states, (B, T, H).

        Returns:
            Those of the real tokens, (real tokens, H).
        """
        return x.flatten(0, 1).index_select(0, self.tokens)

    def unpack(self, x: Tensor) -> Tensor:
        """Put real tokens back to their places, zeros at the padding.

        Args:
            x: Hidden states of the real tokens, (real tokens, H).

        Returns:
            Hidden states, (B, T, H).
        """
        padded = x.new_zeros(len(self.rows), x.shape[-1]).index_copy(0, self.tokens, x)
        return padded.view(-1, self.longest, x.shape[-1])


def can_pack(attention_mask: Tensor, model: Any) -> bool:
    """Return whether padding can be left out altogether: on CUDA, in half precision, without attention dropout.

    PyTorch's kernel for packed sequences further asks for a GPU of compute capability 8 and a head size that is a
    multiple of 8, at most 256.

    Args:
        attention_mask: As the model takes it; only (B, T) can be packed.
        model: The `ToolkitBertModel`.

    Returns:
        True where `attend` takes a `Packing` of this mask.
    """
    if varlen_attn is None or attention_mask.dim() != 2 or not attention_mask.is_cuda:
        return False
    if is_tracing(attention_mask) or model.config._attn_implementation != "sdpa":
        return False
    attentions = [layer.attention.self for layer in model.encoder.layer]
    if any(attention.dropout.training and attention.dropout.p > 0 for attention in attentions):
        return False
    dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else model.dtype
    return (
        dtype in (torch.float16, torch.bfloat16)
        and all(attention.head_size % 8 == 0 and attention.head_size <= 256 for attention in attentions)
        and torch.cuda.get_device_capability(attention_mask.device) >= (8, 0)
    )


def attention_mask_of_sdpa(attention_mask: Tensor | None) -> Tensor | None:
    """Turn a padding mask into what attention takes: None where nothing is padded.

    Whether all tokens are real is read on the CPU only. On an accelerator the answer would make the host wait for the
    device, so there a caller that knows its batch to be unpadded passes no mask; in a traced or compiled graph the
    answer for one batch would stay for all.

    Args:
        attention_mask: As `ToolkitBertModel.forward` takes it.

    Returns:
        Booleans that broadcast to (B, N, T, T), True where attention is allowed; or floats of that shape, which are
        added to the scores; None allows all.

    Raises:
        ValueError: The mask has another shape, or could be read in two ways.
    """
    if attention_mask is None:
        return None
    dims = attention_mask.dim()
    if dims not in (2, 3, 4):
        raise ValueError(
            f"attention_mask must have the shape (B, T), (B, T, T) or (B, 1, T, T), got {tuple(attention_mask.shape)}."
        )
    if attention_mask.is_floating_point() and dims > 2:
        if dims == 3:
            raise ValueError(
                f"attention_mask has floats with the shape {tuple(attention_mask.shape)}, which may mean 1 where "
                "attention is allowed or what is added to the scores; pass integers or booleans for the first, "
                "(B, 1, T, T) for the second."
            )
        return attention_mask
    if attention_mask.device.type == "cpu" and not is_tracing(attention_mask) and bool(attention_mask.all()):
        return None
    if dims == 2:
        attention_mask = attention_mask[:, None, None, :]  # (B, 1, 1, T)
    elif dims == 3:
        attention_mask = attention_mask[:, None]  # (B, 1, T, T)
    return attention_mask.bool()


def attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | Packing | None, dropout: nn.Dropout, explicit: bool
) -> tuple[Tensor, Tensor | None]:
    """Compute softmax(QKᵀ / √D) V by the kernel that fits.

    Args:
        query: (B, T, N, D); packed (real tokens, N, D).
        key: Shaped as the query.
        value: Shaped as the query.
        mask: As `attention_mask_of_sdpa` returns it, or where each packed sequence begins.
        dropout: Dropout of the probabilities.
        explicit: Take the formula, which alone has the probabilities.

    Returns:
        Context, shaped as the query, and probabilities (B, N, T, T) where the formula was taken.
    """
    if isinstance(mask, Packing):
        packed: Any = varlen_attn(query, key, value, mask.starts, mask.starts, mask.longest, mask.longest)
        return packed, None
    query, key, value = (heads.transpose(1, 2) for heads in (query, key, value))  # (B, N, T, D) each
    if mask is not None and mask.is_floating_point() and mask.dtype != query.dtype:
        # The lowest number of a wider type would become an infinity, and a row of it would see nothing.
        lowest = max(torch.finfo(mask.dtype).min, torch.finfo(query.dtype).min)
        mask = mask.clamp(min=lowest).to(query.dtype)
    rate = dropout.p if dropout.training else 0.0
    # With dropout the CPU has no fused kernel: there the formula is what PyTorch would compute, only faster.
    if not explicit and not (rate and query.device.type == "cpu"):
        context = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=rate)
        return context.transpose(1, 2), None
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)  # (B, N, T, T)
    lowest = torch.finfo(scores.dtype).min
    if mask is not None:
        # A row without any allowed token stays finite: it attends to all of them alike.
        scores = scores.masked_fill(~mask, lowest) if mask.dtype == torch.bool else (scores + mask).clamp(min=lowest)
    probabilities = dropout(scores.softmax(-1))
    return (probabilities @ value).transpose(1, 2), probabilities
