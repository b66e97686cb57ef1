"""What a tokenizer's own chat template does, and where the words of a text begin; templates are in
:mod:`dslight.data.conversation`.
"""
