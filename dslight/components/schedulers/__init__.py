"""The stacking schedulers: one engine that holds every axis, and the paper's names for the points on them."""
