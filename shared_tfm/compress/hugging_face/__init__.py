"""Models of Hugging Face's `transformers`, both ways.

A family is data: which of their settings is which of our fields, and how their
tensors are named. `settings.py` and `tensors.py` read it in both directions,
`reading.py` and `writing.py` have the files.
"""
