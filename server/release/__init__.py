"""How a finished model is decided on and published."""
