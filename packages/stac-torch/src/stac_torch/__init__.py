"""STAC for PyTorch: sign updates on the early layers, AdamW on the last ones."""
