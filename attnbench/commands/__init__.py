"""The commands that have no package of their own: they parse, call and print.

What they need is imported when they run.
"""
