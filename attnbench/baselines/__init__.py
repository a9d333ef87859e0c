"""What Lightning Attention is measured against, and the adapters: one file per naive form or foreign library.

The call that they all share is described in `attnbench.registry`, which also decides what is available here.
"""
