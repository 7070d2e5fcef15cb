"""Requests of hosted batch services: what a line asks, and the line that answers it, in the service's own shape."""
