"""How one image becomes views: the base of all policies, and resizing; the policies are in :mod:`dslight.data.images`
and :mod:`dslight.data.native`.
"""
