"""Studies: many runs of one question, resumed, tabulated and drawn."""
