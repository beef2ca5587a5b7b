"""Settings: declared once, read by the command line, the Python API and recipes."""
