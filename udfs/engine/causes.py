"""What an exception out of a model means: the device is lost, or else the items are to blame."""

from __future__ import annotations

_DEVICE_IS_LOST = ("cuda error", "cudnn error", "device-side assert", "cublas_status", "unspecified launch failure")


def is_device_lost(error: Exception) -> bool:
    """A CUDA error that every later call would get too."""
    return any(part in str(error).lower() for part in _DEVICE_IS_LOST)
