"""Golden indices of the quantiser, by other means: plain numpy in float64, pooling and bicubic written out.

    python tests/make_quantizer_golden.py        writes tests/data/quantizer_golden.npz

32,768 codes of 32 + 8 dimensions. Nothing of the package is used but the names of the cases.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

CODES, SEMANTIC, PIXEL = 32_768, 32, 8
STEPS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16)
CASES = {"square8": (64, 64, 8), "square12": (64, 64, 12), "wide8": (32, 128, 8), "tall12": (84, 44, 12)}
"""Name -> rows and columns of the 18th grid, number of scales (NextFlow, Table 14)."""
FILE = Path(__file__).with_name("data") / "quantizer_golden.npz"


def grids(height: int, width: int, scales: int) -> list[tuple[int, int]]:
    return [(1, 1), *((round(height * s / 64), round(width * s / 64)) for s in STEPS[1:scales])]


def codebook() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(2601)
    return rng.standard_normal((CODES, SEMANTIC), np.float32), rng.standard_normal((CODES, PIXEL), np.float32)


def features(name: str) -> np.ndarray:
    """(40, H, W) float32: smooth at large, so that coarse scales have something to say."""
    rows, columns = grids(*CASES[name])[-1]
    rng = np.random.default_rng(list(CASES).index(name))
    z = rng.standard_normal((SEMANTIC + PIXEL, rows, columns)) + 2 * rng.standard_normal((SEMANTIC + PIXEL, 1, 1))
    return z.astype(np.float32)


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def averaging(size: int, to: int) -> np.ndarray:
    """(to, size): output i is the mean of inputs floor(i size / to) .. ceil((i + 1) size / to)."""
    matrix = np.zeros((to, size))
    for i in range(to):
        low, high = i * size // to, -(-(i + 1) * size // to)
        matrix[i, low:high] = 1 / (high - low)
    return matrix


def cubic(size: int, to: int, a: float = -0.75) -> np.ndarray:
    """(to, size): Keys' kernel, pixel centres aligned, edges repeated."""

    def kernel(x: float) -> float:
        x = abs(x)
        if x <= 1:
            return (a + 2) * x**3 - (a + 3) * x**2 + 1
        return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0

    matrix = np.zeros((to, size))
    for i in range(to):
        centre = (i + 0.5) * size / to - 0.5
        for tap in range(int(np.floor(centre)) - 1, int(np.floor(centre)) + 3):
            matrix[i, min(max(tap, 0), size - 1)] += kernel(centre - tap)
    return matrix


def along(x: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Both matrices along the last two axes of (D, H, W)."""
    return np.einsum("ih,dhw,jw->dij", rows, x, columns, optimize=True)


def encode(z: np.ndarray, schedule: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    """Indices, scale by scale, and by how much each code beats the second best, in squared distance."""
    semantic, pixel = (unit(part.astype(np.float64)) for part in codebook())
    rest, (height, width) = z.astype(np.float64), z.shape[1:]
    found, leads = [], []
    for h, w in schedule:
        u = along(rest, averaging(height, h), averaging(width, w)).reshape(len(z), -1).T
        us, up = unit(u[:, :SEMANTIC]), unit(u[:, SEMANTIC:])
        distance = (2 - 2 * us @ semantic.T) + (2 - 2 * up @ pixel.T)
        index = distance.argmin(1)
        first, second = np.partition(distance, 1, axis=1)[:, :2].T
        q = np.concatenate([semantic[index], pixel[index]], axis=1).T.reshape(len(z), h, w)
        rest = rest - along(q, cubic(h, height), cubic(w, width))
        found.append(index)
        leads.append(second - first)
    return np.concatenate(found), np.concatenate(leads)


if __name__ == "__main__":
    out = {}
    for case, shape in CASES.items():
        indices, lead = encode(features(case), grids(*shape))
        out[case], out[f"{case}_lead"] = indices.astype(np.uint16), lead.min(keepdims=True)
        print(f"{case}: {len(indices)} codes, {len(np.unique(indices))} different, least lead {lead.min():.1e}")
    np.savez_compressed(FILE, **out)
