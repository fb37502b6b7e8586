"""What a training reads, as digests that are part of its identity."""

from __future__ import annotations

from typing import Any

from nextloom.store.release import open_release
from nextloom.train.decoder.inputs import decoder_inputs
from nextloom.train.decoder.recipe import DecoderRecipe
from nextloom.train.recipe import TrainRecipe
from nextloom.train.tokenizer.inputs import tokenizer_inputs


def inputs(recipe: TrainRecipe) -> dict[str, Any]:
    """Digests of all that a training reads, checked against each other; imports neither ray nor torch.

    Raises:
        UserError: something is absent, or does not belong together.
    """
    if isinstance(recipe, DecoderRecipe):
        return decoder_inputs(recipe)
    return tokenizer_inputs(recipe, open_release(recipe.dataset, recipe.release))
