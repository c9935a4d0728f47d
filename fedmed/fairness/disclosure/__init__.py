"""What may be told of a site's images: which rows, which groups, how few are too few."""
