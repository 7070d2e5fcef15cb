#!/bin/bash
# Runs on every node of the cluster before Spark starts there. What the wheel asks for is installed with it as the task's
# library; here is what has to be there before: torch as gristmill's tests have it, and a place for models.
set -euo pipefail

/databricks/python/bin/pip install --quiet 'torch==2.13.0'

# The node's own disk, which Databricks mounts and empties. `dbfs:` and volumes are for what has to stay.
mkdir -p /local_disk0/hf
chmod 1777 /local_disk0/hf

# The driver and every Python worker read these; no secret belongs here.
cat >> /databricks/spark/conf/spark-env.sh <<'ENV'
export HF_HOME=/local_disk0/hf
export USE_HUB_KERNELS=0
ENV

# Models that all jobs want may be copied from a volume once, rather than fetched from the hub by each node:
# cp -r /Volumes/main/ml/hf/. /local_disk0/hf/
