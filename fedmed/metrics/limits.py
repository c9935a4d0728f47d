"""Names that groups may have, and how many there may be of them; apart from the tables, which need torch."""

MOST_ATTRIBUTES = 40
MOST_GROUPS = 200
LONGEST_NAME = 200
UNKNOWN = "unknown"
"""Group of the images for which an attribute is not known; shown, and left out of gaps."""
