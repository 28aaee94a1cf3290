"""The two ways to damp a sign: the choice that SVAS and M-SVAS share."""

from svag_tf import rules
from svag_tf.optimizers.base import MomentOptimizer

_GAMMAS = {"gaussian": rules.gamma_sign, "adam": rules.gamma_sign_adam}


class SignAdaptedOptimizer(MomentOptimizer):
    """Base class of the variance-adapted sign methods: argument `adaptation`."""

    def __init__(self, adaptation, **kwargs):
        if not isinstance(adaptation, str):
            raise TypeError(
                "Argument `adaptation` must be one of 'gaussian', 'adam'. Received: "
                f"adaptation={adaptation!r} of type {type(adaptation).__name__}"
            )
        if adaptation not in _GAMMAS:
            raise ValueError(
                "Argument `adaptation` must be one of 'gaussian', 'adam'. Received: "
                f"adaptation={adaptation!r}"
            )
        super().__init__(**kwargs)
        self.adaptation = adaptation

    def gamma(self, m, eta):
        """The factor of the chosen adaptation."""
        return _GAMMAS[self.adaptation](m, eta)

    def rule_key(self):
        """What distinguishes the rules of two optimizers of this class: a tuple."""
        return (*super().rule_key(), self.adaptation)

    def get_config(self):
        """The arguments that make an equal optimizer, for `from_config`."""
        return {**super().get_config(), "adaptation": self.adaptation}
