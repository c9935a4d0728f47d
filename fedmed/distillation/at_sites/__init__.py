"""Distillation during the sites' rounds: features of a frozen teacher into the common model."""
