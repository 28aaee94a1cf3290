"""Finds what data a model was trained on, from the steps that Keras has traced."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import keras

from svag_tf import internals
from svag_tf.optional import tensorflow as tf

NAMES = ("x", "y", "sample_weight")
MADE_HERE: Any = weakref.WeakSet()  # Training steps that Keras made for an export.


def leaves(structure: Any) -> list[Any]:
    """Returns the tensors of a structure, without any None."""
    return [leaf for leaf in keras.tree.flatten(structure) if leaf is not None]


def map_leaves(function: Callable[..., Any], *structures: Any) -> Any:
    """Applies a function to the tensors of structures; None stays None."""
    return keras.tree.map_structure(
        lambda first, *more: None if first is None else function(first, *more),
        *structures,
    )


def shown(arguments: dict[str, Any]) -> str:
    """Describes arguments, for a message."""

    def leaf(spec):
        if not isinstance(spec, tf.TensorSpec):
            return type(spec).__name__
        return f"{spec.dtype.name}{spec.shape.as_list()}".replace("None", "any")

    return ", ".join(f"{k}={map_leaves(leaf, v)}" for k, v in arguments.items())


class Form(NamedTuple):
    """The form in which `fit` passes data to a training step.

    Attributes:
        length: That of the tuple; 0 for data that is not in a tuple.
    """

    length: int

    @classmethod
    def of(cls, arguments: dict[str, Any]) -> Form:
        """Returns the form in which `fit` passes these arrays on."""
        if len(arguments) > 1:
            return cls(3 if "sample_weight" in arguments else 2)
        return cls(int(isinstance(arguments["x"], tuple | list)))

    def packed(self, arguments: dict[str, Any]) -> Any:
        """Packs arguments as the data of a training step."""
        if not self.length:
            return arguments["x"]
        return tuple(arguments.get(name) for name in NAMES[: self.length])


TRAIN_ON_BATCH = Form(3)


class Kind(NamedTuple):
    """Training data of one structure, with the same dtypes and ranks."""

    form: Form
    steps: list[dict[str, Any]]  # Specs of what each of Keras' steps for it takes.
    made_here: bool

    def like(self, name: str) -> tuple[Any, ...]:
        """Returns what all arguments of one kind have in common."""
        return _like(self.steps[0].get(name))


def _like(specs: Any) -> tuple[Any, ...]:
    return tuple(
        (path, leaf and (type(leaf), leaf.dtype, leaf.shape.rank))
        for path, leaf in keras.tree.flatten_with_path(specs)
    )


def traced_data(model: keras.Model) -> Iterator[tuple[Any, Any]]:
    """Yields the data that each of Keras' training steps takes, and the step."""
    for concrete in internals.training_steps(model):
        arguments, _ = concrete.structured_input_signature
        if arguments:
            # An iterator stands for the data that it yields.
            data = internals.element_spec(arguments[0])
            yield keras.tree.map_structure(_none_for_nothing, data), concrete


def _none_for_nothing(spec):
    """Returns None for the empty optional that data sets and iterators hold for it."""
    nothing = isinstance(spec, tf.OptionalSpec | type(tf.type_spec_from_value(None)))
    return None if nothing else spec


def arguments_of(data: Any) -> tuple[Form, dict[str, Any]]:
    """Splits a training step's data into arguments; data of unknown form is `x`."""
    if isinstance(data, tuple | list) and 0 < len(data) <= len(NAMES):
        form, parts = Form(len(data)), data
    else:
        form, parts = Form(0), [data]
    return form, {n: part for n, part in zip(NAMES, parts) if part is not None}


def kinds(model: keras.Model) -> list[Kind]:
    """Returns the kinds of data that the model was trained on since `compile`."""
    found: dict[Any, Kind] = {}
    for data, concrete in traced_data(model):
        form, arguments = arguments_of(data)
        if "x" not in arguments:
            continue
        if any(leaf.shape.rank is None for leaf in leaves(arguments)):
            continue
        kind = Kind(form, [arguments], concrete in MADE_HERE)
        key = tuple(kind.like(name) for name in NAMES)
        if key in found:
            other = found[key]
            kind = Kind(
                min(form, other.form),
                [*other.steps, arguments],
                kind.made_here and other.made_here,
            )
        found[key] = kind
    own = [kind for kind in found.values() if not kind.made_here]
    return own or list(found.values())


def trained_kind(model: keras.Model, specified: dict[str, Any]) -> Kind | None:
    """Returns the kind of data that the model was trained on, if it was.

    Args:
        model: Compiled model.
        specified: What the caller specified of the arguments: their specs, `False` if
            there is no such argument, `True` if there is one.

    Raises:
        ValueError: If there are several kinds; lists them.
    """
    known = kinds(model)

    def agrees(kind):
        return all(
            (kind.like(name) != _like(None)) == like
            if isinstance(like, bool)
            else kind.like(name) == _like(like)
            for name, like in specified.items()
        )

    known = [kind for kind in known if agrees(kind)] or known
    unspecified = [name for name in NAMES if name not in specified]
    different = {tuple(kind.like(n) for n in unspecified): kind for kind in known}
    if "sample_weight" in unspecified:  # Only an argument if all training had it.
        different = {
            key: kind
            for key, kind in different.items()
            if kind.like("sample_weight") == _like(None)
            or (*key[:-1], _like(None)) not in different
        }
    if len(different) > 1:
        raise ValueError(
            "The model was trained on data of several kinds: "
            f"{'; '.join(shown(kind.steps[0]) for kind in different.values())}. Choose "
            "one with the arguments `x`, `y` and `sample_weight` of "
            "`export_trainable`: a batch of it, a tf.TensorSpec, or False for none."
        )
    kind = next(iter(different.values()), None)
    found = {} if kind is None else kind.steps[0]
    for name in set(unspecified) & set(found):
        if not all(isinstance(leaf, tf.TensorSpec) for leaf in leaves(found[name])):
            raise ValueError(
                "The data of an exported model must be dense tensors. This one was "
                f"trained on {shown(found)}. Compile it and train it on dense data, "
                "tf.sparse.to_dense(x) or x.to_tensor(), or give dense data in the "
                f"argument `{name}`."
            )
    return kind


def general(kind: Kind, name: str, known: Any) -> Any:
    """Returns an argument's spec that covers all steps of a kind, and other batches.

    Args:
        kind: What the model was trained on.
        name: Name of an argument of that kind.
        known: The argument's spec according to the model; `None` if it has none.
    """

    def spec(*traced):
        sizes = [set(same) for same in zip(*(each.shape for each in traced))]
        shape = [same.pop() if len(same) == 1 else None for same in sizes]
        return tf.TensorSpec([None, *shape[1:]] if shape else [], traced[0].dtype)

    found = map_leaves(spec, *(_as(step[name], like=kind.steps[0][name])
                               for step in kind.steps))  # fmt: skip
    own = leaves(known)
    if len(own) != len(leaves(found)):
        return found
    fitting = iter(own)

    def with_known_shape(leaf):
        shape = next(fitting).shape
        fits = shape.is_compatible_with(leaf.shape)
        return tf.TensorSpec(shape, leaf.dtype) if fits else leaf

    return map_leaves(with_known_shape, found)


def _as(structure, like):
    """Packs leaves in the structure `like`: lists may have become tuples."""
    return keras.tree.pack_sequence_as(like, keras.tree.flatten(structure))


def known_sizes(model: keras.Model, given: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns specs for which Keras has training steps, the most general first."""
    own = leaves(given)
    found = {}
    for data, _ in traced_data(model):
        steps = leaves(data)
        if len(steps) != len(own) or not all(
            isinstance(step, tf.TensorSpec)
            and step.shape.rank is not None
            and step.shape.is_compatible_with(spec.shape)
            for step, spec in zip(steps, own)
        ):
            continue
        shapes = [a.shape.merge_with(b.shape) for a, b in zip(own, steps)]
        specs = [tf.TensorSpec(shape, s.dtype) for s, shape in zip(own, shapes)]
        if specs != own:
            unknown = sum(n is None for shape in shapes for n in shape)
            found[-unknown, str(specs)] = specs
    ordered = [iter(found[key]) for key in sorted(found)]
    return [map_leaves(lambda _, specs=specs: next(specs), given) for specs in ordered]
