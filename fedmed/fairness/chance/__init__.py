"""Whether a difference is more than chance: intervals, flags, alarms, paired comparisons."""
