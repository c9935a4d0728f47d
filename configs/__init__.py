"""The settings that are shipped, every field explained; no code."""
