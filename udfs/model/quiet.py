"""transformers, told to be quiet and to fetch nothing."""

from __future__ import annotations

import os


def quiet_transformers() -> None:
    """Set what must be set before transformers is imported, and keep its bars off the job's terminal."""
    os.environ["USE_HUB_KERNELS"] = "0"
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
