"""Weights that exist, in another form: other sharing, other files."""
