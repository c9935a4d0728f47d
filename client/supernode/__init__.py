"""All of Flower's internals at a site: the loop that dials out, its worker, and what is said when that fails."""
