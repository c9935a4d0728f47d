"""Plots, colours, markup and words that all sections share."""
