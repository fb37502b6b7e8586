"""What self-correction does to the codes of real pictures, scale by scale.

    python benchmarks/self_correction.py [--tokenizer data/runs/tokenizer] [--pictures data/samples/emoji] [--count 200]

Encodes pictures with a trained tokenizer plainly and with self-correction (60 % of the tokens drawn among the 10
nearest codes, temperature 1) and prints per scale: the share of inputs that differ from their targets, the share of
targets that differ from the plain encoding, and the PSNR of what is drawn from the scales so far, on both paths. The
last line is one JSON object:
    inputs_differ, targets_change    shares over all tokens
    psnr_clean, psnr_drawn           in dB after the last scale, means over pictures
    exact                            pictures whose codes with p = 0, and with top_k = 1, equal the plain encoding
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import numpy as np
import torch

from nextloom import pixels
from nextloom.tokenize.quantizer import Correction
from nextloom.tokenize.schedule import FINAL_GRIDS, schedule
from nextloom.tokenize.tokenizer import Tokenizer


def psnr(tokenizer: Tokenizer, codes: torch.Tensor, grids, x: torch.Tensor) -> list[float]:
    """dB of the picture after each scale."""
    sizes = np.cumsum([h * w for h, w in grids])
    out = []
    for scales in range(1, len(grids) + 1):
        drawn = tokenizer.decode_codes(codes[:, : sizes[scales - 1]], grids[:scales], grids[-1])
        out.append(10 * math.log10(4 / (drawn - x).square().mean().item()))
    return out


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokenizer", default="data/runs/tokenizer")
    parser.add_argument("--pictures", default="data/samples/emoji")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--scales", type=int, default=6)
    parser.add_argument("--peers", action="store_true", help="nothing more: no other tool does this")
    args = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer = Tokenizer.load(args.tokenizer)
    grids = schedule(FINAL_GRIDS[20], args.scales)
    side = grids[-1][0] * tokenizer.config.patch
    files = sorted(Path(args.pictures).glob("*.png"))
    files = files[:: max(1, len(files) // args.count)][: args.count]
    bounds = np.cumsum([0, *(h * w for h, w in grids)])
    differ, change, plain_db, drawn_db, exact = [], [], [], [], 0
    for file in files:
        x = torch.from_numpy(pixels.to_model(pixels.decode(file.read_bytes()), side, side))[None]
        plain = tokenizer.tokenize(x, grids)[0]
        inputs, targets = tokenizer.tokenize(x, grids, Correction(), [file.name])
        differ.append((inputs != targets)[0].numpy())
        change.append((targets != plain)[0].numpy())
        plain_db.append(psnr(tokenizer, plain, grids, x))
        drawn_db.append(psnr(tokenizer, inputs, grids, x))
        settings = (Correction(p=0.0), Correction(p=1.0, top_k=1))
        exact += all(
            torch.equal(part, plain) for c in settings for part in tokenizer.tokenize(x, grids, c, [file.name])
        )
    print(f"{len(files)} pictures of {side} pixels")
    print("scale  grid    inputs differ  targets change  PSNR plain  PSNR drawn")
    inputs_N, targets_N = np.array(differ), np.array(change)
    for k, (h, w) in enumerate(grids):
        part = slice(bounds[k], bounds[k + 1])
        plain, drawn = (np.mean([row[k] for row in rows]) for rows in (plain_db, drawn_db))
        row = f"{k + 1:>5}  {f'{h}x{w}':<7}{inputs_N[:, part].mean():>13.1%}{targets_N[:, part].mean():>16.1%}"
        print(f"{row}{plain:>12.2f}{drawn:>12.2f}")
    print(
        json.dumps(
            {
                "inputs_differ": round(float(inputs_N.mean()), 3),
                "targets_change": round(float(targets_N.mean()), 3),
                "psnr_clean": round(float(np.mean([row[-1] for row in plain_db])), 2),
                "psnr_drawn": round(float(np.mean([row[-1] for row in drawn_db])), 2),
                "exact": exact,
                "pictures": len(files),
            }
        )
    )


if __name__ == "__main__":
    main()
