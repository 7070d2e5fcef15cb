"""What an exception out of a model means: memory is out, or the device is lost, or else the items are to blame."""

from __future__ import annotations

_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "alloc_failed", "cannot allocate memory")
_DEVICE_IS_LOST = ("cuda error", "cudnn error", "device-side assert", "cublas_status", "unspecified launch failure")


def is_out_of_memory(error: Exception) -> bool:
    """Memory, the device's or the machine's, was not enough."""
    told = str(error).lower()
    return isinstance(error, MemoryError) or any(part in told for part in _OUT_OF_MEMORY)


def is_device_lost(error: Exception) -> bool:
    """A CUDA error that every later call would get too."""
    return any(part in str(error).lower() for part in _DEVICE_IS_LOST)


def free_memory() -> None:
    """Give back what torch keeps of a GPU's memory for later."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
