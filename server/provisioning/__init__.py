"""Keys, kits, the list of sites and renewed certificates; nothing that runs during a federation."""
