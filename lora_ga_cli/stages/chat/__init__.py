"""Talking to trained models: `loraga chat`."""
