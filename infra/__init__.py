"""Adapters to the outside, settings, and the wiring that chooses between them."""
