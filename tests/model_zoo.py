"""Models as people write them, with training steps of their own.

Each function builds one, compiled, with an optimizer of ours, and is to be called after
`keras.utils.set_random_seed`. `DATA` has what `fit` is given for each: a tuple of `x`,
or `x` and `y`, and so on.
"""

import keras
import numpy as np
import pytest
from keras import ops

import svag_tf

tf = pytest.importorskip("tensorflow")  # Also for the tests that import this.

N, BATCHES = 8, 3
RNG = np.random.default_rng(0)
X = RNG.normal(size=(N * BATCHES, 4)).astype("float32")
Y = X[:, :1] ** 2
LABELS = RNG.integers(3, size=N * BATCHES).astype("int32")


def dense(*units, built=True, **arguments):
    layers = [keras.layers.Dense(n, activation="tanh", **arguments) for n in units]
    return keras.Sequential([keras.Input((4,))] * built + layers)


class Net(keras.Model):
    """A subclassed model with Keras' own training step."""

    def __init__(self, units=1):
        super().__init__()
        self.hidden = keras.layers.Dense(5)
        self.dropout = keras.layers.Dropout(0.5)
        self.out = keras.layers.Dense(units)

    def call(self, inputs, training=False):
        return self.out(self.dropout(self.hidden(inputs), training=training))


def subclassed():
    model = Net(3)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(svag_tf.MSVAG(0.1), loss, metrics=["accuracy"])
    return model


class Guide(Net):
    """As in "Customizing what happens in `fit()`"."""

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            y_pred = self(x, training=True)
            loss = self.compute_loss(y=y, y_pred=y_pred)
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply(gradients, self.trainable_variables)
        for metric in self.metrics:
            if metric.name == "loss":
                metric.update_state(loss)
            else:
                metric.update_state(y, y_pred)
        return {m.name: m.result() for m in self.metrics}


def guide():
    model = Guide()
    model.compile(svag_tf.MSVAG(0.1), "mse", metrics=["mae"])
    return model


class GuideWithoutLoss(Net):
    """Its second part: own metrics and a `test_step`."""

    def __init__(self):
        super().__init__()
        self.loss_tracker = keras.metrics.Mean(name="loss")
        self.mae_metric = keras.metrics.MeanAbsoluteError(name="error/mae")

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            y_pred = self(x, training=True)
            loss = ops.mean(keras.losses.mean_squared_error(y, y_pred))
        gradients = tape.gradient(loss, self.trainable_weights)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_weights))
        self.loss_tracker.update_state(loss)
        self.mae_metric.update_state(y, y_pred)
        return {m.name: m.result() for m in self.metrics}

    def test_step(self, data):
        x, y = data
        self.mae_metric.update_state(y, self(x, training=False))
        return {"error/mae": self.mae_metric.result()}

    @property
    def metrics(self):
        return [self.loss_tracker, self.mae_metric]


def guide_without_loss():
    model = GuideWithoutLoss()
    model.compile(svag_tf.MSVAG(0.1))
    return model


class Weighted(Net):
    def train_step(self, data):
        x, y, sample_weight = data
        with tf.GradientTape() as tape:
            y_pred = self(x, training=True)
            loss = self.compute_loss(y=y, y_pred=y_pred, sample_weight=sample_weight)
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply(gradients, self.trainable_variables)
        return self.compute_metrics(x, y, y_pred, sample_weight=sample_weight)


def weighted():
    model = Weighted()
    model.compile(svag_tf.SVAG(0.1), "mse", weighted_metrics=["mae"])
    return model


class Autoencoder(keras.Model):
    """Data without targets; nothing in `compile` but the optimizer."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = dense(2), keras.layers.Dense(4)

    def call(self, inputs, training=False):
        return self.decoder(self.encoder(inputs))

    def train_step(self, data):
        x = data[0] if isinstance(data, tuple) else data
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((self(x, training=True) - x) ** 2)
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply(gradients, self.trainable_variables)
        return {"loss": loss}


def autoencoder():
    model = Autoencoder()
    model.compile(svag_tf.MSGD(0.1))
    return model


class AutoencoderWithLoss(Autoencoder):
    """Its loss is in `compile`, and its `train_step` gives it targets."""

    def train_step(self, data):
        (x,) = data
        with tf.GradientTape() as tape:
            loss = self.compute_loss(x=x, y=x, y_pred=self(x, training=True))
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply(gradients, self.trainable_variables)
        return {"loss": loss}


def autoencoder_with_loss():
    model = AutoencoderWithLoss()
    model.compile(svag_tf.MSSD(0.01), "mse")
    return model


class Unseeded(Autoencoder):
    """Its step is a `tf.function`, with random numbers from the generator of all."""

    @tf.function
    def train_step(self, data):
        return super().train_step(data + keras.random.normal(ops.shape(data)))


def unseeded():
    model = Unseeded()
    model.compile(svag_tf.MSVAG(0.1))
    return model


class Sampling(keras.layers.Layer):
    def __init__(self):
        super().__init__()
        self.seed_generator = keras.random.SeedGenerator(1337)

    def call(self, inputs):
        mean, log_var = inputs
        noise = keras.random.normal(ops.shape(mean), seed=self.seed_generator)
        self.add_loss(
            -0.5 * ops.mean(1 + log_var - ops.square(mean) - ops.exp(log_var))
        )
        return mean + ops.exp(0.5 * log_var) * noise


class VAE(keras.Model):
    """No `call`; encoder and decoder are attributes; the data is bare."""

    def __init__(self):
        super().__init__()
        inputs = keras.Input((4,))
        mean, log_var = keras.layers.Dense(2)(inputs), keras.layers.Dense(2)(inputs)
        self.encoder = keras.Model(inputs, Sampling()([mean, log_var]))
        self.decoder = keras.Sequential([keras.Input((2,)), keras.layers.Dense(4)])
        self.total_loss_tracker = keras.metrics.Mean(name="total_loss")
        self.kl_loss_tracker = keras.metrics.Mean(name="kl_loss")

    @property
    def metrics(self):
        return [self.total_loss_tracker, self.kl_loss_tracker]

    def train_step(self, data):
        with tf.GradientTape() as tape:
            z = self.encoder(data)
            kl_loss = sum(self.encoder.losses)
            reconstruction = self.decoder(z)
            loss = ops.mean(ops.sum((data - reconstruction) ** 2, axis=1)) + kl_loss
        gradients = tape.gradient(loss, self.trainable_weights)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_weights))
        self.total_loss_tracker.update_state(loss)
        self.kl_loss_tracker.update_state(kl_loss)
        return {"loss": self.total_loss_tracker.result(), "kl/loss": kl_loss}


def vae():
    model = VAE()
    model.compile(optimizer=svag_tf.MSVAG(0.01))
    return model


class GAN(keras.Model):
    """As in Keras' guide: `compile` gives `super().compile()` no optimizer."""

    def __init__(self, built=True):
        super().__init__()
        self.discriminator = dense(5, 1, built=built)
        self.generator = dense(5, 4, built=built)
        self.seed_generator = keras.random.SeedGenerator(1337)

    def compile(self, d_optimizer, g_optimizer, loss_fn):
        super().compile()
        self.d_optimizer = d_optimizer
        self.g_optimizer = g_optimizer
        self.loss_fn = loss_fn
        self.d_loss_metric = keras.metrics.Mean(name="d_loss")
        self.g_loss_metric = keras.metrics.Mean(name="g_loss")

    @property
    def metrics(self):
        return [self.d_loss_metric, self.g_loss_metric]

    def optimizers(self):
        return self.d_optimizer, self.g_optimizer

    def train_step(self, real):
        if isinstance(real, tuple):
            real = real[0]
        d_optimizer, g_optimizer = self.optimizers()
        shape = (ops.shape(real)[0], 4)
        made = self.generator(keras.random.normal(shape, seed=self.seed_generator))
        both = ops.concatenate([made, real], axis=0)
        labels = ops.concatenate([ops.ones(shape)[:, :1], ops.zeros(shape)[:, :1]], 0)
        with tf.GradientTape() as tape:
            d_loss = self.loss_fn(labels, self.discriminator(both))
        weights = self.discriminator.trainable_weights
        d_optimizer.apply_gradients(zip(tape.gradient(d_loss, weights), weights))
        latent = keras.random.normal(shape, seed=self.seed_generator)
        with tf.GradientTape() as tape:
            judged = self.discriminator(self.generator(latent))
            g_loss = self.loss_fn(ops.zeros(shape)[:, :1], judged)
        weights = self.generator.trainable_weights
        g_optimizer.apply_gradients(zip(tape.gradient(g_loss, weights), weights))
        self.d_loss_metric.update_state(d_loss)
        self.g_loss_metric.update_state(g_loss)
        return {m.name: m.result() for m in self.metrics}


def crossentropy():
    return keras.losses.BinaryCrossentropy(from_logits=True)


def gan():
    model = GAN()
    model.compile(svag_tf.MSVAG(0.05), svag_tf.MSVAS(0.01), crossentropy())
    return model


class GANOfLists(GAN):
    """Optimizers in a dict of lists, one of them scaling its loss; layers not built."""

    def __init__(self):
        super().__init__(built=False)

    def compile(self, optimizers, loss_fn):
        super().compile(*optimizers, loss_fn)
        del self.d_optimizer, self.g_optimizer
        self.by_name = {"d": [optimizers[0]], "g": [optimizers[1]]}

    def optimizers(self):
        return self.by_name["d"][0], self.by_name["g"][0]


def gan_of_lists():
    model = GANOfLists()
    scaled = keras.optimizers.LossScaleOptimizer(
        svag_tf.MSVAG(0.05), initial_scale=2.0, dynamic_growth_steps=2
    )
    model.compile([keras.optimizers.Adam(0.01), scaled], crossentropy())
    return model


class GANOfOne(GAN):
    """One of its optimizers is also the one that Keras knows."""

    def compile(self, d_optimizer, g_optimizer, loss_fn):
        super().compile(d_optimizer, g_optimizer, loss_fn)
        self.optimizer = g_optimizer


def gan_of_one():
    model = GANOfOne()
    schedule = keras.optimizers.schedules.CosineDecay(0.1, 10)
    model.compile(svag_tf.SVAG(schedule), svag_tf.MSVAG(schedule), crossentropy())
    return model


class Halves(keras.optimizers.Optimizer):
    """Holds two optimizers, for the first and the second half of the variables."""

    def __init__(self, *parts):
        super().__init__(learning_rate=0.0)
        self.parts = parts

    def apply(self, grads, trainable_variables=None):
        half = len(grads) // 2
        for part, which in zip(self.parts, (slice(half), slice(half, None))):
            part.apply(grads[which], trainable_variables[which])
        self.iterations.assign_add(1)


def halves():
    model = Net()
    model.compile(Halves(svag_tf.MSVAG(0.1), svag_tf.MSVAS(0.01)), "mse")
    return model


class Distiller(keras.Model):
    """A frozen teacher; losses in `compile`; `compute_loss` of its own."""

    def __init__(self):
        super().__init__()
        self.teacher, self.student = dense(5, 3), dense(3)
        self.teacher.trainable = False

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None):
        taught = keras.losses.kl_divergence(
            ops.softmax(self.teacher(x, training=False)), ops.softmax(y_pred)
        )
        return super().compute_loss(x, y, y_pred, sample_weight) + ops.mean(taught)

    def call(self, x):
        return self.student(x)


def distiller():
    model = Distiller()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(svag_tf.MSVAG(0.1), loss, metrics=["sparse_categorical_accuracy"])
    return model


class Contrastive(keras.Model):
    """Random views of the data, two optimizers in sub-models, nested pairs of data."""

    def __init__(self):
        super().__init__()
        self.noise = keras.layers.GaussianNoise(0.1, seed=3)
        self.encoder, self.probe = dense(4), keras.layers.Dense(3)
        self.temperature = self.add_weight(initializer="ones", name="temperature")

    def compile(self, contrastive_optimizer, probe_optimizer, **arguments):
        super().compile(**arguments)
        self.encoder.my_optimizer = contrastive_optimizer
        self.probe_optimizer = probe_optimizer
        self.probe_loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def train_step(self, data):
        unlabeled, (labeled, labels) = data
        with tf.GradientTape() as tape:
            a, b = (self.encoder(self.noise(unlabeled, training=True)) for _ in "ab")
            similarities = ops.matmul(a, ops.transpose(b)) * self.temperature
            loss = ops.mean(ops.logsumexp(similarities, 1) - ops.diagonal(similarities))
        weights = [*self.encoder.trainable_weights, self.temperature]
        self.encoder.my_optimizer.apply_gradients(
            zip(tape.gradient(loss, weights), weights)
        )
        with tf.GradientTape() as tape:
            probe_loss = self.probe_loss(labels, self.probe(self.encoder(labeled)))
        weights = self.probe.trainable_weights
        self.probe_optimizer.apply_gradients(
            zip(tape.gradient(probe_loss, weights), weights)
        )
        return {"c": {"loss": loss}, "p": {"loss": probe_loss, "rate": 0.1}}


def contrastive():
    model = Contrastive()
    model.compile(svag_tf.MSVAG(0.1), keras.optimizers.SGD(0.1, momentum=0.9))
    return model


class OfFixedSize(Net):
    """Its training step needs to know the size of a batch."""

    def train_step(self, data):
        x, y = data
        noise = keras.random.normal((x.shape[0], 4), seed=self.dropout.seed_generator)
        return super().train_step((x + noise, y))


def of_fixed_size():
    model = OfFixedSize()
    model.compile(svag_tf.MSVAG(0.1), "mse")
    return model


class OfRecords(Net):
    """A dict of everything, as tf.data makes from files."""

    def train_step(self, data):
        return super().train_step((data["image/encoded"], data["image/label"]))


def of_records():
    model = OfRecords(3)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(svag_tf.MSVAG(0.1), loss)
    return model


class OfFour(Net):
    """More parts than Keras has names for."""

    def train_step(self, data):
        x, y, other, _ = data
        return super().train_step((x + other, y))


def of_four():
    model = OfFour()
    model.compile(svag_tf.MSVAG(0.1), "mse")
    return model


WEIGHTS = np.linspace(0, 1, len(X), dtype="float32")
DATA = {
    subclassed: (X, LABELS),
    guide: (X, Y),
    guide_without_loss: (X, Y),
    weighted: (X, Y, WEIGHTS),
    autoencoder: (X,),
    autoencoder_with_loss: ((X,),),
    vae: (X,),
    gan: (X,),
    gan_of_lists: (X,),
    gan_of_one: (X,),
    unseeded: (X,),
    halves: (X, Y),
    distiller: (X, LABELS),
    contrastive: (X, (X[:, ::-1].copy(), LABELS)),
    of_fixed_size: (X, Y),
    of_records: ({"image/encoded": X, "image/label": LABELS},),
    of_four: ((X, Y, X, X[:, 0]),),
}
