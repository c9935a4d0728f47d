"""The site's images, who withdrew, and what was told before."""
