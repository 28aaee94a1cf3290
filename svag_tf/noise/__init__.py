"""Measures how noisy gradients are: exact values, a callback, its files and a report.

It reads an optimizer's slots, and uses its rule. The report needs no Keras.
"""
