"""The two ways to damp a sign: the choice that SVAS and M-SVAS share."""

from svag_tf import rules
from svag_tf.optimizers.arguments import check_choice
from svag_tf.optimizers.base import MomentOptimizer

_GAMMAS = {"gaussian": rules.gamma_sign, "adam": rules.gamma_sign_adam}


class SignAdaptedOptimizer(MomentOptimizer):
    """Base class of the variance-adapted sign methods: argument `adaptation`."""

    damping = "sign"

    def __init__(
        self,
        learning_rate=0.001,
        beta=0.9,
        adaptation="gaussian",
        state_dtype=None,
        jit_compile="auto",
        sparse_updates="exact",
        weight_decay=None,
        clipnorm=None,
        clipvalue=None,
        global_clipnorm=None,
        use_ema=False,
        ema_momentum=0.99,
        ema_overwrite_frequency=None,
        loss_scale_factor=None,
        gradient_accumulation_steps=None,
        name=None,
    ):
        check_choice("adaptation", adaptation, tuple(_GAMMAS))
        super().__init__(
            learning_rate=learning_rate,
            beta=beta,
            state_dtype=state_dtype,
            jit_compile=jit_compile,
            sparse_updates=sparse_updates,
            weight_decay=weight_decay,
            clipnorm=clipnorm,
            clipvalue=clipvalue,
            global_clipnorm=global_clipnorm,
            use_ema=use_ema,
            ema_momentum=ema_momentum,
            ema_overwrite_frequency=ema_overwrite_frequency,
            loss_scale_factor=loss_scale_factor,
            gradient_accumulation_steps=gradient_accumulation_steps,
            name=name,
        )
        self.adaptation = adaptation

    @property
    def gamma(self):
        """The factor of the chosen adaptation, a function of signal and noise."""
        return _GAMMAS[self.adaptation]
