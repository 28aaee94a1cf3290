"""What users do with files between two trainings, on the backend that Keras has.

Run under TensorFlow by `test_files_of_models.py` and under the other backends by
`backend_script.py`. Every change is tried with every kind of file.
"""

import copy
import itertools
import pickle
import warnings

import keras
import numpy as np

import svag_tf

LAYERS = (4, 4, 1)
rng = np.random.default_rng(0)
X = rng.normal(size=(16, 4)).astype("float32")
Y = X[:, :1].copy()


def net(optimizer=None, units=LAYERS, frozen=(), name=None):
    """Layers that Keras names, of which some have the same shape."""
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(n) for n in units]
    model = keras.Sequential([keras.Input((4,)), *layers], name=name)
    for i in frozen:
        model.layers[i].trainable = False
    model.compile(optimizer or svag_tf.MSVAG(0.01), "mse")
    return model


def fit(model, epochs=1):
    y = np.repeat(Y, model.output_shape[-1], axis=1)
    model.fit(X, y, epochs=epochs, batch_size=16, verbose=0, shuffle=False)


def counts(model):
    """Updates made to the variables of each layer."""
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    updates = keras.ops.convert_to_numpy(optimizer.update_counts)
    of = {id(v): int(t) for v, t in zip(optimizer._trainable_variables, updates)}
    return [sorted({of[id(v)] for v in layer.trainable_variables if id(v) in of})
            for layer in model.layers]  # fmt: skip


def slots(model, layer):
    optimizer = model.optimizer
    ids = {id(v) for v in model.layers[layer].trainable_variables}
    return [
        keras.ops.convert_to_numpy(getattr(optimizer, kind)[i])
        for i, v in enumerate(optimizer._trainable_variables)
        if id(v) in ids
        for kind in optimizer.slots
    ]


def by_weights(there, here, folder, **arguments):
    there.save_weights(f"{folder}/model.weights.h5")
    here.load_weights(f"{folder}/model.weights.h5", **arguments)


def by_shards(there, here, folder, **arguments):
    there.save_weights(f"{folder}/model.weights.json", max_shard_size=1)
    here.load_weights(f"{folder}/model.weights.json", **arguments)


def by_keras_file(there, here, folder, **arguments):
    there.save(f"{folder}/model.keras")
    here.load_weights(f"{folder}/model.keras", **arguments)


FILES = (by_weights, by_shards, by_keras_file)


def said_of(function, *arguments, **keywords):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        function(*arguments, **keywords)
    return [str(w.message) for w in seen
            if issubclass(w.category, svag_tf.OptimizerStateWarning)]  # fmt: skip


def check_frozen_and_unfrozen(folder):
    """Each layer continues with its own state, whichever layers are trained."""
    pairs = [((0,), ()), ((), (0,)), ((1,), (0,)), ((0, 1), (0, 2)), ((1,), (1,))]
    for n, (before, after) in enumerate(pairs):
        move, built = FILES[n % 3], n % 2
        there = net(frozen=before)
        fit(there, 3)
        here = net(frozen=after)
        if built:
            here.optimizer.build(here.trainable_variables)
        said = said_of(move, there, here, folder)
        # The model is known while it is loaded: no later warning is needed.
        assert len(said) == (before != after), (before, after, said)
        assert said_of(fit, here) == []
        for i in range(3):
            expected = [] if i in after else [1] if i in before else [4]
            assert counts(here)[i] == expected, (before, after, i, counts(here))
        fit(there)
        for i in set(range(3)) - {*before, *after}:
            if before == after:
                for a, b in zip(slots(there, i), slots(here, i), strict=True):
                    np.testing.assert_array_equal(a, b)


def check_loop_of_ones_own(folder):
    """What was matched at loading holds where nothing names the model later."""
    there = net(frozen=(1,))
    fit(there, 3)
    here = net()
    assert len(said_of(by_weights, there, here, folder)) == 1
    variables = here.trainable_variables
    zeros = [keras.ops.zeros(v.shape) for v in variables]
    assert said_of(here.optimizer.apply, zeros, variables) == []
    assert counts(here) == [[4], [1], [4]]
    for i in (0, 2):
        for slot, old in zip(slots(here, i), slots(there, i), strict=True):
            np.testing.assert_allclose(slot, 0.9 * old, 1e-6)


def check_new_head(folder):
    for move in FILES:
        there, here = net(), net(units=(4, 4, 2))
        fit(there, 3)
        (said,) = said_of(move, there, here, folder, skip_mismatch=True)
        assert "its shape is (4, 2), in the file (4, 1)" in said, said
        fit(here)
        assert counts(here) == [[4], [4], [1]]


def check_layer_removed_and_added(folder):
    for move in FILES:
        there = net(units=(4, 4, 4))
        fit(there, 3)
        here = net(units=(4, 4))
        (said,) = said_of(move, there, here, folder, skip_mismatch=True)
        assert "does not train it" in said and "Starts afresh" not in said
        fit(here)
        assert counts(here) == [[4], [4]]
        back = net(units=(4, 4, 4))
        said_of(move, here, back, folder, skip_mismatch=True)
        fit(back)
        assert counts(back) == [[5], [5], [1]]


def check_named_layers(folder):
    """A user's own name identifies a layer, including its numbers."""

    def named(*names):
        keras.utils.set_random_seed(0)
        layers = [keras.layers.Dense(4, name=name) for name in names]
        model = keras.Sequential([keras.Input((4,)), *layers])
        model.compile(svag_tf.MSVAG(0.01), "mse")
        return model

    there, here = named("block_1", "block_2", "block_3"), named("block_2", "block_3")
    fit(there, 3)
    expected = slots(there, 1)
    store = {}
    there.optimizer.save_own_variables(store)
    here.optimizer.build(here.trainable_variables)
    (said,) = said_of(here.optimizer.load_own_variables, store)
    assert "block_1" in said and "block_3/kernel" in said
    for a, b in zip(slots(here, 0), expected, strict=True):
        np.testing.assert_array_equal(a, b)


def check_layers_that_two_models_share(folder):
    base = net(name="base")
    fit(base, 3)
    store = {}
    base.optimizer.save_own_variables(store)
    top = keras.Sequential([base.layers[0], base.layers[1], keras.layers.Dense(1)])
    top.build((None, 4))
    top.compile(svag_tf.MSVAG(0.01), "mse")
    top.optimizer.build(top.trainable_variables)
    said_of(top.optimizer.load_own_variables, store)
    fit(top)
    assert counts(top) == [[4], [4], [1]], counts(top)


def check_made_again_in_one_process(folder):
    """Though some names are chosen and the same, and others are new numbers."""

    def made(name, head, others=0):
        keras.utils.set_random_seed(0)
        for _ in range(others):
            keras.layers.Dense(4)
        layers = [keras.layers.Dense(4), keras.layers.Dense(4)]
        layers.append(keras.layers.Dense(1, name=head))
        model = keras.Sequential([keras.Input((4,)), *layers], name=name)
        model.compile(svag_tf.MSVAG(0.01), "mse")
        return model

    pairs = [(None, "head", False), ("net", "head", False), (None, None, True)]
    for move, (name, head, cleared) in zip(FILES, pairs):
        keras.utils.clear_session()
        there = made(name, head)
        fit(there, 2)
        if cleared:  # Numbers begin again: the same path is then another layer's.
            keras.utils.clear_session()
        here = made(name, head, others=1)
        assert said_of(move, there, here, folder) == []
        fit(here)
        fit(there)
        for i in range(3):
            for a, b in zip(slots(there, i), slots(here, i), strict=True):
                np.testing.assert_array_equal(a, b)


def check_layers_of_the_same_name(folder):
    """In two models within a model."""

    def towers(frozen):
        keras.utils.set_random_seed(0)
        parts = []
        for _ in range(2):
            x = keras.Input((4,))
            parts.append(keras.Model(x, keras.layers.Dense(4, name="h")(x)))
        for i in frozen:
            parts[i].trainable = False
        x = keras.Input((4,))
        y = keras.layers.Dense(1)(parts[0](x) + parts[1](x))
        model = keras.Model(x, y)
        model.compile(svag_tf.MSVAG(0.01), "mse")
        return model

    for before, after in (((0,), (1,)), ((0,), ()), ((), (0,)), ((), ())):
        for move in FILES:
            there, here = towers(before), towers(after)
            fit(there, 2)
            said = said_of(move, there, here, folder)
            assert len(said) == (before != after), said
            fit(here)
            updates = keras.ops.convert_to_numpy(here.optimizer.update_counts)
            expected = [1 if i in before else 3 for i in (0, 1) if i not in after]
            assert updates[::2].tolist() == [*expected, 3], (before, after, updates)


def check_models_within_a_model(folder):
    """`load_model` gives their variables paths without the names of the models."""

    def made(quantized):
        keras.utils.set_random_seed(0)
        x = keras.Input((4,))
        inner = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4, name="a")])
        part = keras.Sequential([keras.Input((4,)), inner, keras.layers.Dense(4)])
        model = keras.Model(x, keras.layers.Dense(4, name="a")(part(x)))
        if quantized:
            model.quantize("float8")
        model.compile(svag_tf.MSVAG(0.01), "mse")
        return model

    def leaves(model):
        return [each for each in model._flatten_layers() if hasattr(each, "kernel")]

    for quantized in (False, True):
        there = made(quantized)
        fit(there, 2)
        there.save(f"{folder}/model.keras")
        with warnings.catch_warnings():
            warnings.simplefilter("error", svag_tf.OptimizerStateWarning)
            here = keras.models.load_model(f"{folder}/model.keras")
        backup = svag_tf.callbacks.BackupAndRestore(f"{folder}/{quantized}", False)
        there.fit(X, X, epochs=3, batch_size=16, verbose=0, callbacks=[backup])
        if not quantized:  # Else Keras lists the variables in another order.
            here.fit(X, X, epochs=3, batch_size=16, verbose=0, callbacks=[backup])
        else:
            here.fit(X, X, epochs=3, batch_size=16, verbose=0)
        of = {}
        for model in (there, here):
            slots = zip(model.optimizer._trainable_variables, model.optimizer.v_tilde)
            of |= {id(v): keras.ops.convert_to_numpy(slot) for v, slot in slots}
        for a, b in zip(leaves(there), leaves(here), strict=True):
            np.testing.assert_array_equal(of[id(a._kernel)], of[id(b._kernel)])
            np.testing.assert_array_equal(of[id(a.bias)], of[id(b.bias)])


def check_lora(folder):
    there = net()
    fit(there, 3)
    for move in FILES:
        here = net()
        here.layers[1].enable_lora(2)
        here.compile(svag_tf.MSVAG(0.01), "mse")
        (said,) = said_of(move, there, here, folder)
        assert "lora_kernel_a" in said and "dense" in said
        fit(here)
        assert counts(here) == [[4], [1, 4], [4]], counts(here)
        # And a model with LoRA continues with all of it.
        again = net()
        again.layers[1].enable_lora(2)
        again.compile(svag_tf.MSVAG(0.01), "mse")
        said_of(move, here, again, folder)
        fit(again)
        assert counts(again) == [[5], [2, 5], [5]]


def check_another_optimizer(folder):
    """Keras' or ours, and a file without one: the weights, a warning, a new one."""

    class Own(svag_tf.MSVAG):
        pass

    others = [keras.optimizers.Adam, keras.optimizers.SGD, svag_tf.MSVAS, Own, None]
    for n, other in enumerate(others):
        move = FILES[n % 3]
        there = net(other(0.01)) if other else keras.Sequential(net().layers)
        if other is None:
            there.build((None, 4))
        else:
            fit(there, 2)
        for trained in (False, True):
            here = net()
            if trained:
                fit(here, 2)
            keywords = {"skip_mismatch": trained}
            (said,) = said_of(move, there, here, folder, **keywords)
            assert "starts afresh" in said, said
            for a, b in zip(there.get_weights(), here.get_weights(), strict=True):
                np.testing.assert_array_equal(a, b)
            fit(here)
            assert counts(here) == [[1], [1], [1]]


def check_our_state_in_another_optimizer(folder):
    there, here = net(), net(keras.optimizers.Adam())
    fit(there, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        by_weights(there, here, folder)
    np.testing.assert_array_equal(here.get_weights()[0], there.get_weights()[0])
    fit(here)


def check_warning_as_an_error(folder):
    """The optimizer is then unchanged, and can be used."""
    there = net(frozen=(0,))
    fit(there, 2)
    for move in FILES:
        here = net()
        fit(here, 2)
        before = [keras.ops.convert_to_numpy(v) for v in here.optimizer.variables]
        with warnings.catch_warnings():
            warnings.simplefilter("error", svag_tf.OptimizerStateWarning)
            try:
                move(there, here, folder)
            except ValueError as error:
                assert "Starts afresh" in str(error)
            else:
                raise AssertionError("no error")
        for a, b in zip(before, here.optimizer.variables, strict=True):
            np.testing.assert_array_equal(a, keras.ops.convert_to_numpy(b))
        fit(here)
        fit(here)
        assert counts(here) == [[4], [4], [4]]


def check_copies(folder):
    for copied in (copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))):
        model = net(frozen=(1,))
        fit(model, 2)
        again = copied(model)
        assert counts(again) == [[2], [], [2]]
        fit(model)
        fit(again)
        for a, b in zip(model.get_weights(), again.get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)


def check_mixed_precision(folder):
    """Keras wraps the optimizer in loss scaling, or not, by the policy of the model."""
    for saved, loaded in itertools.product(["float32", "mixed_float16"], repeat=2):
        try:
            keras.config.set_dtype_policy(saved)
            there = net(svag_tf.MSVAG(1e-3))
            fit(there, 8)
            there.save(f"{folder}/mixed.keras")
            keras.config.set_dtype_policy(loaded)
            said = []
            with warnings.catch_warnings(record=True) as seen:
                warnings.simplefilter("always")
                here = keras.models.load_model(f"{folder}/mixed.keras")
                said = [w for w in seen if "restored" in str(w.message)]
            assert not said, said
            assert counts(here) == counts(there) and counts(here)[0][0] > 0
            fit(here)
        finally:
            keras.config.set_dtype_policy("float32")


def check_ema_and_fit_twice(folder):
    model = net(svag_tf.MSVAG(0.01, use_ema=True, ema_momentum=0.5))
    fit(model, 2)
    fit(model, 2)
    assert counts(model) == [[4], [4], [4]]


CHECKS = [
    check_frozen_and_unfrozen,
    check_loop_of_ones_own,
    check_new_head,
    check_layer_removed_and_added,
    check_named_layers,
    check_layers_that_two_models_share,
    check_made_again_in_one_process,
    check_layers_of_the_same_name,
    check_models_within_a_model,
    check_lora,
    check_another_optimizer,
    check_our_state_in_another_optimizer,
    check_warning_as_an_error,
    check_copies,
    check_mixed_precision,
    check_ema_and_fit_twice,
]
