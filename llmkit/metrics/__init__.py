"""Figures of quality as plain functions of texts. Nothing here knows a model, imports torch or asks a Hub."""
