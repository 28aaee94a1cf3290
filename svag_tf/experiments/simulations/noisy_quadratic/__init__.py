"""SGD against sign descent on noisy quadratics.

L(theta) = 0.5 theta' Q theta with stochastic gradients g = Q theta + noise, the noise
normal with variance nu for every element. The optimum is 0; for these methods, any
other would only move the origin.
"""

from svag_tf.experiments.simulations.noisy_quadratic.run import simulate

__all__ = ["simulate"]
