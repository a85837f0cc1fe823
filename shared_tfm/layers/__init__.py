"""Ordinary Flax modules. They know nothing about sharing.

Shape letters, here and in model/: B batch, L length, D model width, H query
heads, G key/value heads, K head width, F feed-forward width, V vocabulary,
E embedding width, N layers (visits), U owners (stored rows).

Every parameter carries logical axis names: 'embed' for D and E, 'heads' and
'kv_heads' for H*K and G*K, 'mlp' for F, 'vocab' for V, 'expert' for experts,
and None where no mesh should ever cut.
"""
