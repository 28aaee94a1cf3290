"""scikit-learn's bundled digits with M-SVAG: about a minute on two cores.

    python scripts/train.py

A field that is None has its default, which for the optimizer's fields is that of its
class. Any field can be overridden: `--config.optimizer.name=adam`.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config() -> ConfigDict:
    """Returns all fields, with the values of this problem."""
    config = ConfigDict()
    config.problem = "digits"
    config.seed = 0
    config.epochs = 30
    config.batch_size = 32

    config.data_dir = placeholder(str)  # for problems whose data is in a folder
    config.train_examples = placeholder(int)  # only the first so many; None: all
    config.test_examples = placeholder(int)

    config.dtype_policy = "float32"  # or mixed_bfloat16, mixed_float16
    config.jit_compile = "auto"  # or true, false
    config.distribution = "none"  # or mirrored, multi_worker, jax: many devices
    # mirrored, jax: devices. None: all GPUs; without GPUs 2 logical CPUs (mirrored) or
    # all of JAX's devices
    config.replicas = placeholder(int)

    config.optimizer = ConfigDict()
    # msvag, svag, mssd, ssd, msvas, svas, msgd; Keras' sgd, momentum, adam, lion
    config.optimizer.name = "msvag"
    config.optimizer.learning_rate = placeholder(float)
    config.optimizer.beta = placeholder(float)  # all of svag_tf
    config.optimizer.adaptation = placeholder(str)  # msvas, svas: gaussian or adam
    config.optimizer.state_dtype = placeholder(str)  # all of svag_tf
    config.optimizer.aggregation = placeholder(str)  # ssd, mssd: mean, majority_vote
    config.optimizer.variance = placeholder(str)  # msvag: time, replicas
    config.optimizer.momentum = placeholder(float)  # momentum; its default is 0.9
    config.optimizer.beta_1 = placeholder(float)  # adam, lion
    config.optimizer.beta_2 = placeholder(float)  # adam, lion
    config.optimizer.epsilon = placeholder(float)  # adam
    config.optimizer.weight_decay = placeholder(float)
    config.optimizer.clipnorm = placeholder(float)
    config.optimizer.clipvalue = placeholder(float)
    config.optimizer.global_clipnorm = placeholder(float)
    config.optimizer.use_ema = placeholder(bool)  # then the average is evaluated
    config.optimizer.ema_momentum = placeholder(float)
    config.optimizer.ema_overwrite_frequency = placeholder(int)
    config.optimizer.loss_scale_factor = placeholder(float)
    config.optimizer.gradient_accumulation_steps = placeholder(int)

    config.noise = ConfigDict()  # see svag_tf.callbacks.GradientNoise
    config.noise.preset = placeholder(str)  # economy, business or full; None: off
    config.noise.every = 100  # batches between two measurements

    config.schedule = ConfigDict()
    config.schedule.name = "constant"  # or cosine, step
    config.schedule.warmup_epochs = 0.0  # linear; a fraction of an epoch will do
    config.schedule.boundaries = ()  # step: after these epochs ...
    config.schedule.factor = placeholder(float)  # ... times this; default 0.1
    config.schedule.final_fraction = placeholder(float)  # cosine: default 0
    return config
