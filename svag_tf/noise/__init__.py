"""Measures how noisy gradients are: exact values, a callback, its files and a report.

Uses the optimizers and their rules; the report on the files needs no Keras.
"""
