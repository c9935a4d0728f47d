"""A synthetic cohort: what is sampled, and how it becomes pixels; no real data."""
