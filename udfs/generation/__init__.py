"""A model that writes: its decoder, cache and grammar, in the engine's process; no worker comes here."""
