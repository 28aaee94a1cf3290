"""Measures how noisy gradients are: exact values, a callback, its files and a report.

It uses the optimizers and their rules. The report reads the files and needs no Keras.
"""
