"""Diagnostics: whether stacking does anything in a model at hand.

``norms``: how large is what each stack adds. ``compare``: what the scores lose without a stack, or with the wrong one.
``heat`` and ``places``: where in the image an answer comes from. ``callback`` runs them behind a validation. The parts
of the model know nothing of it: see :mod:`dslight.nn.intervention`.
"""
