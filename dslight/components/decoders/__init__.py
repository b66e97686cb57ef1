"""What a decoder of transformers is, discovered: its layers, its positions, whether it pads and packs."""
