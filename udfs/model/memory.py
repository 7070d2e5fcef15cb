"""A device's memory: what it means that it is out, how it is given back, and whether somebody else has it."""

from __future__ import annotations

import gc
import traceback

_OUT_OF_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "alloc_failed",
    "bad_alloc",
)
_OWN_BYTES = 1 << 30  # what a process has of a GPU beside its tensors: the context, libraries


def is_out_of_memory(error: BaseException) -> bool:
    """Memory, the device's or the machine's, was not enough."""
    told = str(error).lower()
    return isinstance(error, MemoryError) or any(part in told for part in _OUT_OF_MEMORY)


def free_memory(error: BaseException | None = None) -> None:
    """Give back what torch keeps of a GPU's memory for later.

    Args:
        error: What memory ran out with; it holds all that was there as it was raised, which is let go first.
    """
    import torch

    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def free_forgotten() -> None:
    """As `free_memory`, with models that nobody refers to any more: their modules refer to each other."""
    gc.collect()
    free_memory()


def is_shared() -> bool:
    """Others may give memory back; on a GPU those that have a good part of it now."""
    import torch

    if not torch.cuda.is_available():
        return True
    free, total = torch.cuda.mem_get_info()
    return total - free - torch.cuda.memory_reserved() > _OWN_BYTES


def name_gpu() -> str | None:
    """What every process of the machine calls the GPU that this one sees; None where it sees none."""
    import torch

    if not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(0)
    return f"GPU {properties.uuid}"
