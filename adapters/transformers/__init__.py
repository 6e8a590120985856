"""Adapters of Hugging Face transformers' models."""
