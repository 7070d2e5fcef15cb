"""What `spark-submit` takes: the command `gristmill score`, from a checkout.

spark-submit jobs/score.py conf/catalog_tagging.yaml
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # spark-submit put jobs/ first on the path, where its parent belongs
    _ROOT = Path(__file__).resolve().parents[1]
    if (_ROOT / "jobs" / "score.py").is_file():
        sys.path[0] = str(_ROOT)

from jobs.cli import main

if __name__ == "__main__":
    main(["score", *sys.argv[1:]])
