"""Structural similarity of two pictures, in the two forms that papers print.

`gaussian`: 11 x 11 window of deviation 1.5, population covariance (Wang et al. 2004). `uniform`: 7 x 7 mean, sample
covariance, the default of scikit-image and so of many tokenizer papers. Both: data range 255, every colour channel of
sRGB on its own, then the mean over channels and over all windows that lie wholly inside the picture; nothing is padded,
nothing is turned grey. The two differ by a few hundredths, so a figure without its window says little.

Source: Wang, Bovik, Sheikh, Simoncelli, "Image quality assessment" (IEEE TIP 2004), K1 = 0.01, K2 = 0.03.
"""

from __future__ import annotations

from typing import Literal

import cv2
import numpy as np

Window = Literal["gaussian", "uniform"]
SIDE: dict[str, int] = {"gaussian": 11, "uniform": 7}
"""Pixels along a side of each window."""
DEVIATION = 1.5
RANGE = 255.0


def ssim(a: np.ndarray, b: np.ndarray, window: Window = "gaussian") -> float:
    """Mean structural similarity, at most 1 and 1 for equal pictures.

    Args:
        a, b: (height, width, 3) uint8.
        window: see the module.

    Raises:
        ValueError: shapes differ, or a side is shorter than the window.
    """
    side = SIDE[window]
    if a.shape != b.shape or a.dtype != np.uint8 or b.dtype != np.uint8:
        raise ValueError(f"two uint8 pictures of one shape are needed, not {a.dtype} {a.shape} and {b.dtype} {b.shape}")
    if min(a.shape[:2]) < side:
        raise ValueError(f"{a.shape[0]} x {a.shape[1]} pixels are fewer than the {side} x {side} of the window")
    x, y = a.astype(np.float64), b.astype(np.float64)
    mean_x, mean_y = _mean(x, window), _mean(y, window)
    scale = side**2 / (side**2 - 1) if window == "uniform" else 1.0
    var_x = scale * (_mean(x * x, window) - mean_x**2)
    var_y = scale * (_mean(y * y, window) - mean_y**2)
    both = scale * (_mean(x * y, window) - mean_x * mean_y)
    c1, c2 = (0.01 * RANGE) ** 2, (0.03 * RANGE) ** 2
    top = (2 * mean_x * mean_y + c1) * (2 * both + c2)
    return float((top / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))).mean())


def _mean(x: np.ndarray, window: Window) -> np.ndarray:
    """Weighted means over all windows inside the picture."""
    side = SIDE[window]
    if window == "uniform":
        weights = np.full(side, 1 / side)
    else:
        weights = np.exp(-(((np.arange(side) - side // 2) / DEVIATION) ** 2) / 2)
        weights /= weights.sum()
    edge = side // 2
    return cv2.sepFilter2D(x, cv2.CV_64F, weights, weights)[edge:-edge, edge:-edge]
