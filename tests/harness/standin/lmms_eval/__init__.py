"""A stand-in for lmms-eval, written from its model guide: the interface that a "simple" model fulfils, and a loop that
evaluates one task through it. Only tests see it.
"""
