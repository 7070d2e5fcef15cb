# docker build -f conf/spark/kubernetes.Dockerfile -t registry.example.com/gristmill:latest .     from a checkout
#
# Driver and executors: Spark from its own image; CUDA's libraries come with torch's wheels, and the node's NVIDIA
# container toolkit mounts the driver's. Spark and pip's pyspark are of one version, which is told once.
ARG SPARK=4.0.1
FROM apache/spark:${SPARK}-scala2.13-java17-ubuntu AS spark
FROM nvidia/cuda:12.8.1-base-ubuntu24.04
ARG SPARK

RUN apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
      python3 python3-venv openjdk-17-jre-headless tini procps && rm -rf /var/lib/apt/lists/*

COPY --from=spark /opt/spark /opt/spark
COPY --from=spark /opt/entrypoint.sh /opt/entrypoint.sh

ENV VIRTUAL_ENV=/opt/venv PATH=/opt/venv/bin:$PATH SPARK_HOME=/opt/spark
ENV JAVA_HOME=/usr/lib/jvm/java-17-openjdk-amd64
ENV PYSPARK_PYTHON=/opt/venv/bin/python PYSPARK_DRIVER_PYTHON=/opt/venv/bin/python
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility

RUN python3 -m venv /opt/venv && pip install --no-cache-dir torch==2.13.0 pyspark==${SPARK}
COPY . /opt/gristmill
RUN pip install --no-cache-dir '/opt/gristmill[mlflow]'

# Spark's pods run as this user; engine and workers share a socket that only their user can open.
RUN useradd --uid 185 --create-home spark
USER 185
WORKDIR /opt/gristmill
ENTRYPOINT ["/opt/entrypoint.sh"]
