"""Compares M-SVAG's estimates of gradient and noise with exact ones during training.

A network is trained with M-SVAG. After certain updates, at the current weights, the
exact gradient G of the mean loss over all training examples is computed, and the exact
element-wise variance V of a mini-batch's gradient, from the gradients of all single
examples. M-SVAG has estimates of both in its two slots, averages over past
mini-batches:

    m      estimates G             s      estimates V
    rho s  estimates var[m] = rho V
    eta^2 = rho s / m^2            estimates rho V / G^2
    gamma = 1 / (1 + eta^2)        estimates the Lemma's best factor for m
"""

from svag_tf.experiments.simulations.gradient_noise.run import simulate

__all__ = ["simulate"]
