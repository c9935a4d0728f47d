"""How the released model comes home, is checked and reported."""
