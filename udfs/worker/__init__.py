"""A window's way in a Spark worker, to the engine and back; no torch, and nothing of the engine's process."""
