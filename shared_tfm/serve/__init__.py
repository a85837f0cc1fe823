"""Serving a trained run over HTTP."""
