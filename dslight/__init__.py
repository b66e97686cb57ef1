"""dslight: compose, train and compare DeepStack-style multimodal language models (arXiv 2406.04334)."""

__version__ = "0.1.0"
