"""Recipes: composed from files and the command line, checked against signatures, built into an experiment."""
