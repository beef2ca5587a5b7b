"""The Hugging Face Hub: downloads, whether it can be reached, the files of repositories, metadata of model cards.

Knows repositories and files, and nothing of tasks or tensors.
"""
