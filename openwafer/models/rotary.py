"""Rotary positions: angles for each position, and the rotation of queries and keys by them.

A head's first half of dimensions pairs with its second half, as in Hugging Face's Llama; the released Llama weights
and ModelZoo pair neighbours, which a permutation of the projections' rows makes the same. Source: Su et al., arXiv
2104.09864; the scalings as named at `RopeScaling`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from openwafer.models.config import RopeScaling, Rotary


def rotary_angles(
    rotary: Rotary, dim: int, positions: Tensor, length: int, max_positions: int
) -> tuple[Tensor, Tensor]:
    """Cosine and sine for every position.

    Args:
        dim: dimensions of a head that are rotated.
        positions: [T] or [B, T] integers.
        length: tokens in the longest sequence so far, for the dynamic scaling.
        max_positions: of the decoder.

    Returns:
        Two of [..., T, dim / 2], fp32.
    """
    turns, amplitude = frequencies(rotary, dim, length, max_positions, positions.device)
    angles = positions[..., None].float() * turns
    return angles.cos() * amplitude, angles.sin() * amplitude


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the first 2 * cos.shape[-1] dimensions of x [B, heads, T, head_dim]; cos and sin [B or 1, 1, T, half].

    Computed in fp32; the result has the dtype of x.
    """
    half = cos.shape[-1]
    first, second, rest = x[..., :half].float(), x[..., half : 2 * half].float(), x[..., 2 * half :]
    turned = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)
    return torch.cat((turned, rest), dim=-1) if rest.shape[-1] else turned


def frequencies(
    rotary: Rotary, dim: int, length: int, max_positions: int, device: torch.device | str = "cpu"
) -> tuple[Tensor, float]:
    """Radians per position [dim / 2], and what cosine and sine are multiplied by; arguments as of `rotary_angles`."""
    scaling, theta = rotary.scaling, rotary.theta
    if scaling is None:
        return _plain(theta, dim, device), 1.0
    original = scaling.original_positions or max_positions
    if scaling.kind == "linear":
        return _plain(theta, dim, device) / scaling.factor, 1.0
    if scaling.kind == "dynamic":
        stretch = scaling.factor * max(length, original) / original - (scaling.factor - 1)
        return _plain(theta * stretch ** (dim / (dim - 2)), dim, device), 1.0
    if scaling.kind == "llama3":
        return _llama3(_plain(theta, dim, device), scaling, original), 1.0
    return _yarn(theta, dim, scaling, original, device), _yarn_amplitude(scaling)


def _plain(theta: float, dim: int, device: torch.device | str) -> Tensor:
    return 1.0 / theta ** (torch.arange(0, dim, 2, device=device).float() / dim)


def _llama3(plain: Tensor, scaling: RopeScaling, original: int) -> Tensor:
    """Long wavelengths stretched, short ones left, those between interpolated in the number of turns."""
    wavelength = 2 * math.pi / plain
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    share = ((original / wavelength - low) / (high - low)).clamp(0.0, 1.0)
    return (1 - share) * plain / scaling.factor + share * plain


def _yarn(theta: float, dim: int, scaling: RopeScaling, original: int, device: torch.device | str) -> Tensor:
    """Dimensions that turn often are left, those that turn rarely stretched. Source: arXiv 2309.00071, eq. 19 to 21."""
    plain = _plain(theta, dim, device)

    def dimension(turns: float) -> float:
        return dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = dimension(scaling.beta_fast), dimension(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    if low == high:
        high += 0.001
    stretched = ((torch.arange(dim // 2, device=device).float() - low) / (high - low)).clamp(0, 1)
    return plain / scaling.factor * stretched + plain * (1 - stretched)


def _yarn_amplitude(scaling: RopeScaling) -> float:
    def amplitude(weight: float) -> float:
        return 1.0 if scaling.factor <= 1 else 0.1 * weight * math.log(scaling.factor) + 1.0

    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if scaling.mscale and scaling.mscale_all_dim:
        return amplitude(scaling.mscale) / amplitude(scaling.mscale_all_dim)
    return amplitude(1.0)
