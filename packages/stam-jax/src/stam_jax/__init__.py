"""STAM and STAMLite as optax gradient transformations: AdamW whose beta1 follows the gradient's variance."""
