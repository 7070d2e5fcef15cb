"""Text that a model writes: what the engine needs for it, and what it answers."""
