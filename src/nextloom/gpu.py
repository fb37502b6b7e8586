"""Whether there is a GPU where work asks for one."""

from __future__ import annotations

from nextloom.errors import UserError


def cuda(where: str) -> str:
    """Name of the current GPU of this process.

    Args:
        where: the field that asks for it.

    Raises:
        UserError: torch sees none.
    """
    import torch

    if not torch.cuda.is_available():
        raise UserError(
            f"a GPU is asked for, but torch {torch.__version__} sees none on this machine",
            where=where,
            next="run where there is one, with a CUDA build of torch; or leave this field out, for CPUs",
        )
    return "cuda"
