"""Ablations of the toy tokenizer's training on the sample emoji; too long for `make bench`.

    nextloom samples; nextloom run emoji --to pictures; nextloom release emoji pictures
    python benchmarks/tools/stages.py [--root data] [--steps 360] [--seeds 0 1] [--only scratch single]

Every variant has the same number of steps, the shipped toy recipe's settings and `HELD` pictures held out:

    scratch     stage joint from random weights; scales dropped in the first 10 % of the steps
    staged      pixel, then joint from it (39 % of the steps each), then a decoder of double capacity (22 %)
    two         pixel, then joint from it, half of the steps each
    single      stage pixel alone
    throughout  as scratch, scales dropped in every step
    never       as scratch, no scale dropped

Per variant and seed it prints PSNR on held and on training pictures, PSNR of held pictures from self-corrected codes
(robustness: 60 % of tokens drawn among the 10 nearest), codes used, CPU-seconds of training, and the loss per code
(nats, unweighted, held pictures without captions) of a small decoder trained `AR_STEPS` steps on its codes. The last
line is one JSON object: variant -> seed -> figures.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from nextloom import pixels
from nextloom.hashing import hash64
from nextloom.store.release import open_release
from nextloom.tokenize.documents import Picture
from nextloom.tokenize.quantizer import Correction
from nextloom.tokenize.tokenizer import Tokenizer
from nextloom.train import recipe as recipes
from nextloom.train.decoder.task import DecoderTask
from nextloom.train.engine.loop import train
from nextloom.train.pictures.likeness import psnr
from nextloom.train.pictures.rows import originals
from nextloom.train.tokenizer.task import TokenizerTask

HELD, AR_STEPS, AR_BATCH = 24, 150, 16
BASE = {"train": "tokenizer", "release": "pictures", "batch": 16, "lr": 2e-3, "warmup": 15, "drop_until": 0.1}
BASE |= {"vq_weight": 0.25, "held": HELD}
MODEL = {"text_vocab": 1, "width": 128, "layers": 4, "heads": 4, "kv_heads": 2, "head_dim": 32, "mlp": 352}


class Bench:
    """The pictures of a release and a folder for runs."""

    def __init__(self, root: str, work: Path) -> None:
        self.dataset = f"{Path(root).absolute()}/datasets/emoji"
        release = open_release(self.dataset, "pictures")
        self.pictures, self.ids, self.work = [o.rgb for o in originals(release)], release.ids, work

    def fit(self, name: str, steps: int, seed: int, **fields) -> tuple[TokenizerTask, float]:
        """Train into `<work>/<name>`; the task and CPU-seconds."""
        output, start = self.work / name, time.process_time()
        execution = {"workers": 0, "threads": 1, "checkpoint_every": 10**6, "log_every": 10**6}
        data = {**BASE, "output": str(output), "dataset": self.dataset, "steps": steps, "seed": seed, **fields}
        wanted = recipes.build({**data, "execution": execution})
        task = TokenizerTask(wanted, self.pictures, ids=self.ids)
        model, _ = train(task, wanted, {})
        task.save(model, output)
        shutil.rmtree(wanted.run_folder)
        return task, time.process_time() - start

    def variant(self, name: str, steps: int, seed: int) -> tuple[TokenizerTask, float]:
        """Train one variant into `<work>/<name>`."""
        if name == "staged":
            first = round(0.39 * steps)
            start = {"pixel": str(self.work / "first")}
            _, one = self.fit("first", first, seed, stage="pixel", tokenizer="toy_vqgan")
            _, two = self.fit("second", first, seed, init_from=start)
            last = {"stage": "decoder", "drop": 0.0, "init_from": {"tokenizer": str(self.work / "second")}}
            task, three = self.fit(name, steps - 2 * first, seed, **last)
            return task, one + two + three
        if name == "two":
            _, one = self.fit("first", steps // 2, seed, stage="pixel", tokenizer="toy_vqgan")
            task, two = self.fit(name, steps - steps // 2, seed, init_from={"pixel": str(self.work / "first")})
            return task, one + two
        fields = {
            "scratch": {},
            "single": {"stage": "pixel", "tokenizer": "toy_vqgan"},
            "throughout": {"drop_until": 1.0},
            "never": {"drop": 0.0},
        }[name]
        return self.fit(name, steps, seed, **fields)

    def judge(self, task: TokenizerTask, name: str, seed: int) -> dict[str, float]:
        """Figures of the tokenizer in `<work>/<name>`."""
        tokenizer = Tokenizer.load(self.work / name)
        held = [self.pictures[n] for n in sorted(task.held)]
        rest = [p for n, p in enumerate(self.pictures) if n not in task.held]
        figures, seen = task.evaluate(tokenizer, held), task.evaluate(tokenizer, rest)
        drawn, documents = [], []
        for number, picture in enumerate([*held, *rest]):
            grids = task.grids(task._row(picture))
            (h, w), patch = grids[-1], tokenizer.config.patch
            x = torch.from_numpy(pixels.to_model(picture, h * patch, w * patch))[None]
            inputs, targets = tokenizer.tokenize(x, grids, Correction(seed=seed), [str(number)])
            documents.append([Picture(grids, inputs[0].numpy(), targets[0].numpy())])
            if number < len(held):
                restored = pixels.from_model(tokenizer.decode_codes(inputs, grids)[0].numpy())
                drawn.append(psnr(restored, pixels.from_model(x[0].numpy())))
        return {
            "psnr_held": figures["psnr_db"],
            "psnr_train": seen["psnr_db"],
            "psnr_corrected": float(np.mean(drawn)),
            "ssim_held": figures["ssim"],
            "codes": seen["codes_used"],
            "perplexity": seen["perplexity"],
            "ar_loss": ar_loss(tokenizer, documents, len(held), seed),
        }


def ar_loss(tokenizer: Tokenizer, documents: list, held: int, seed: int) -> float:
    """Nats per code of the first `held` documents after training on the others."""
    config = tokenizer.config
    model = {**MODEL, "codes": config.codes, "semantic_dim": config.semantic_dim, "pixel_dim": config.pixel_dim}
    data = {"train": "decoder", "output": "x", "dataset": "x", "packs": "x", "tokenizer": "x", "steps": AR_STEPS}
    wanted = recipes.build({**data, "model": model, "alpha": 0.0, "warmup": 15, "lr": 2e-3, "seed": seed})
    task = DecoderTask(wanted, None, tokenizer.codebook())
    decoder, rest = task.build(), documents[held:]
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=wanted.lr, betas=wanted.betas)
    for step in range(AR_STEPS):
        for group in optimizer.param_groups:
            group["lr"] = wanted.learning_rate(step)
        order = np.argsort(hash64(np.arange(len(rest)), "ar", seed, step))[:AR_BATCH]
        total, count, _ = task.loss(decoder, task.layout([rest[i] for i in order]), step)
        (total / count).backward()
        torch.nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        return task._mean(decoder.eval(), documents[:held])["loss"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", default="data")
    parser.add_argument("--steps", type=int, default=360)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    variants = ["scratch", "staged", "two", "single", "throughout", "never"]
    parser.add_argument("--only", nargs="+", default=variants, choices=variants)
    args = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, dict[int, dict[str, float]]] = {}
    for seed in args.seeds:
        for name in args.only:
            with tempfile.TemporaryDirectory() as work:
                bench = Bench(args.root, Path(work))
                task, seconds = bench.variant(name, args.steps, seed)
                figures = {**bench.judge(task, name, seed), "cpu_s": seconds}
            results.setdefault(name, {})[seed] = figures
            print(f"{name:<11} seed {seed}  " + "  ".join(f"{k} {v:.3f}" for k, v in figures.items()), flush=True)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
