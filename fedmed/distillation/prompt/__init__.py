"""The Fourier prompt and how it is learned; a reconstruction."""
