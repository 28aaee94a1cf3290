"""How noisy gradients are: the exact values, a callback, its files and a page.

Uses the optimizers and their rules; needs no Keras for the page of the files.
"""
