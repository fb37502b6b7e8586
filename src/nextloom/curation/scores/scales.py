"""Scales: what the numbers of a score mean, in one place for the ops that compute one and the sources that bring one.

Two scores compare, and a threshold holds, on one scale alone: 5 is middling for LAION V2 (1 to 10), impossible for a
probability, and of V1 (0 to 10) it says something else again. A scale's name carries model and version, and the
resolution where the number depends on it. Price paid: ranges are what real pictures cover, as published or seen, not
what the formula allows, so a threshold near an end tells less than one in the middle.

Sources: LAION-AI/aesthetic-predictor (V1), christophschuhmann/improved-aesthetic-predictor (V2), the dataset cards of
COYO-700M, LAION-5B and Koala-36M. Koala's scorers are internal and were never released: its columns are read, and a
number that another scorer gives is not on their scale.
"""

from __future__ import annotations

import math

from nextloom.errors import UserError, did_you_mean
from nextloom.op import Scale

LAION_V1 = Scale("laion-aesthetic-v1", 0, 10)
LAION_V2 = Scale("laion-aesthetic-v2", 1, 10)
LAION_RELU = Scale("laion-aesthetic-ava-logos-relu", 1, 10)
"""The variant of V2 with activations (``ava+logos-l14-reluMSE``)."""
OPEN_NSFW = Scale("open-nsfw", 0, 1)
"""Yahoo's open_nsfw with its own weights and preprocessing."""
OPEN_NSFW2 = Scale("opennsfw2", 0, 1)
"""The Keras port of open_nsfw that COYO used; it resizes otherwise, so its numbers differ a little."""
GANTMAN_NSFW = Scale("nsfw-gantman", 0, 1)
COYO_WATERMARK = Scale("coyo-watermark", 0, 1)
LAION_WATERMARK = Scale("laion-watermark", 0, 1)
LAION_UNSAFE = Scale("laion-unsafe", 0, 1)
LAION_SIMILARITY = Scale("laion-similarity", -1, 1)
"""Cosine of picture and text: CLIP ViT-B/32 in the English sets, a multilingual text encoder in the others."""
CLIP_B32_COSINE = Scale("clip-vitb32-cosine", -1, 1)
CLIP_L14_COSINE = Scale("clip-vitl14-cosine", -1, 1)
KOALA_CLARITY = Scale("koala-clarity", 0, 1)
KOALA_AESTHETIC = Scale("koala-aesthetic", 0, 10)
KOALA_MOTION = Scale("koala-motion", 0, math.inf)
SHARE = Scale("share", 0, 1)
"""A rank as a share of rows: not comparable between row sets, but always from 0 to 1."""

SCALES = {
    scale.name: scale
    for scale in (
        LAION_V1, LAION_V2, LAION_RELU, OPEN_NSFW, OPEN_NSFW2, GANTMAN_NSFW, COYO_WATERMARK, LAION_WATERMARK,
        LAION_UNSAFE, LAION_SIMILARITY, CLIP_B32_COSINE, CLIP_L14_COSINE, KOALA_CLARITY, KOALA_AESTHETIC,
        KOALA_MOTION, SHARE,
    )
}  # fmt: skip
"""Name -> scale, of those with one fixed name."""

BROUGHT = {
    "aesthetic_score_laion_v2": LAION_V2,
    "watermark_score": COYO_WATERMARK,
    "nsfw_score_opennsfw2": OPEN_NSFW2,
    "nsfw_score_gantman": GANTMAN_NSFW,
    "clip_similarity_vitb32": CLIP_B32_COSINE,
    "clip_similarity_vitl14": CLIP_L14_COSINE,
    "pwatermark": LAION_WATERMARK,
    "punsafe": LAION_UNSAFE,
    "similarity": LAION_SIMILARITY,
    "clarity_score": KOALA_CLARITY,
    "aesthetic_score": KOALA_AESTHETIC,
    "motion_score": KOALA_MOTION,
}
"""Name of a column in a public dataset (COYO-700M, LAION, Koala-36M) -> its scale."""

AMBIGUOUS = {"aesthetic": (LAION_V1, LAION_V2)}
"""Names that public datasets use on several scales: which one, only the user knows."""


def brisque(side: int) -> Scale:
    """BRISQUE (Mittal et al. 2012) at a short side of `side` pixels; lower is better."""
    return Scale(f"brisque@{side}", 0, 100)


def brought(column: str) -> Scale:
    """The scale of a column that a public dataset names so; of a dotted path, the last name counts.

    Raises:
        UserError: the name is not known, or known on several scales.
    """
    name = column.rpartition(".")[2]
    if name in BROUGHT:
        return BROUGHT[name]
    if name in AMBIGUOUS:
        one = " or ".join(scale.name for scale in AMBIGUOUS[name])
        raise UserError(f"{name!r} is {one}, depending on the dataset", next=f"say which: scale: {one.split()[-1]}")
    raise UserError(f"what do the numbers of {name!r} mean? Columns of known scale: {', '.join(sorted(BROUGHT))}",
                    next="give the scale: `scale: NAME`, and `range: [LOW, HIGH]` for a name of your own")  # fmt: skip


def named(name: str) -> Scale:
    """The scale called `name`.

    Raises:
        UserError: there is none, with the nearest name.
    """
    if name.startswith("brisque@") and name[8:].isdecimal():
        return brisque(int(name[8:]))
    if name not in SCALES:
        raise UserError(
            f"no scale {name!r}; {did_you_mean(name, SCALES)}", next="for a scale of your own add `range: [LOW, HIGH]`"
        )
    return SCALES[name]


def spoken(scale: Scale) -> str:
    """``laion-aesthetic-v2 (1 to 10)``."""
    high = "no end" if math.isinf(scale.high) else f"{scale.high:g}"
    return f"{scale.name} ({scale.low:g} to {high})"
