"""What a run can answer of the guidelines for publications: the items in our own words, and the answers."""
