"""What there is to read, and what of it can be read; it writes nothing."""
