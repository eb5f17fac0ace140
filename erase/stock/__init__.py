"""Pruning inside stock transformers calls: `with erase.pruning(model, policy)`."""
