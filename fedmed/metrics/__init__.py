"""Evaluation tables, the figures computed from them, and the course of a run."""
