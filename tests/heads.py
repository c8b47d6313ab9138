"""Heads normalised and rotated by NumPy in float64."""

import numpy as np

EPS = 1e-6


def rotated(x: np.ndarray, weight: np.ndarray | None, angles: np.ndarray) -> np.ndarray:
    """x [n, n_head, head_dim], normalised with weight [head_dim] if there is one, pairs (i, i + n_rot / 2) turned by angles."""
    x = x.astype(np.float64)
    if weight is not None:
        x = x / np.sqrt(np.mean(x**2, -1, keepdims=True) + np.float32(EPS)) * weight
    half = angles.shape[1]
    turned = (x[..., :half] + 1j * x[..., half : 2 * half]) * np.exp(1j * angles)[:, None]
    return np.concatenate([turned.real, turned.imag, x[..., 2 * half :]], -1)


def table(angles: np.ndarray) -> np.ndarray:
    return np.concatenate([np.cos(angles), np.sin(angles)], -1).astype(np.float32)
