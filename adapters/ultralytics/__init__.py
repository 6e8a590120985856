"""Adapters of ultralytics' models."""
