"""Measurements, side by side in one run; nothing of a job imports them."""
