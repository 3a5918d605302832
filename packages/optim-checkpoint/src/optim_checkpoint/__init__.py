"""safetensors checkpoints for JAX and PyTorch training that lose nothing."""
