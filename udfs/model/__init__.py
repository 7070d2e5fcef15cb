"""A model's files: whether they are trusted, what they say, their weights on a device; it knows no task and no row."""
