"""The two ways to damp a sign: the choice that SVAS and M-SVAS share."""

from svag_tf import rules
from svag_tf.optimizers.arguments import check_choice
from svag_tf.optimizers.base import MomentOptimizer

_GAMMAS = {"gaussian": rules.gamma_sign, "adam": rules.gamma_sign_adam}


class SignAdaptedOptimizer(MomentOptimizer):
    """Base class of the variance-adapted sign methods: argument `adaptation`."""

    def __init__(self, adaptation, **kwargs):
        check_choice("adaptation", adaptation, tuple(_GAMMAS))
        super().__init__(**kwargs)
        self.adaptation = adaptation

    def gamma(self, signal, noise):
        """The factor of the chosen adaptation."""
        return _GAMMAS[self.adaptation](signal, noise)

    def get_config(self):
        """The arguments that make an equal optimizer, for `from_config`."""
        return {**super().get_config(), "adaptation": self.adaptation}
