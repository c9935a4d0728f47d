"""The library: neither Flower's engine nor Ray; what both sides of a federation and a simulation share."""
