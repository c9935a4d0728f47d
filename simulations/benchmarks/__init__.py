"""How fast it is, as ratios within one run; what is right is in ``tests/``."""
