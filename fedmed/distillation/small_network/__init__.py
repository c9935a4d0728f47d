"""Distillation after the rounds: the common model into a small network, and whether that is good enough."""
