"""A model of this library as a model of transformers: what ``dslight export`` writes, opened by the Auto classes.

``import dslight`` is all that transformers needs to know: the classes are registered when its own tables are imported
(:mod:`dslight.in_transformers.register`), and a folder names the model by the recipe in its ``config.json``. Nothing in
the folder is code, and what it names is this library's, or was imported by whoever opens it.
"""
