"""What dslight needs of torch, Lightning and transformers beyond what they promise: their private names, and what is
true of them without being documented. A file per library, and a test for each name, which says what is expected of it.

A release of theirs may take any of it away without a word. Then the tests of this room fail, and this room alone is to
be mended. Nothing of dslight is imported here.
"""
