"""The round loop and what it asks of the sites; free of Flower's internals."""
