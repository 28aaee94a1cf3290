"""TensorFlow: the update of one variable, compiled by XLA and made in place.

A kernel reads a variable, its slots and its gradient and writes the variable and the
slots. XLA compiles it into loops over the memory of the variables themselves: nothing
of a variable's size is allocated, except the copies of small variables described below.
It is compiled once for each shape, dtype and rule and shared by all variables and
optimizers of the process: it takes the variables as arguments and captures none, so it
can be called from any graph.

The rule runs op by op, with the same numbers up to round-off, with `jit_compile=False`;
on a device that XLA cannot compile for; for a variable whose slots are on another
device; and for a variable whose shape is not fully known.

The rows that a sparse gradient touches are read, computed by a compiled program, and
written back. Their number changes from batch to batch, and XLA compiles for each
number, so the number is padded to the next power of two.

A model whose variables have many shapes would wait for many kernels to compile. So its
small variables are copied into one array, updated together, and written back.

Where there is a native build (`svag_tf.native`), dense gradients of float32 variables
on a CPU are left to it, with the same bits: one operation for all variables.
"""

from svag_tf.kernels.programs import Kernel, Store
from svag_tf.kernels.updates import (
    MANY_SHAPES,
    after_gradients,
    current_graph,
    deferred,
    schedule_update,
    unconverted,
    update,
    update_lazily,
)

__all__ = [
    "MANY_SHAPES",
    "Kernel",
    "Store",
    "after_gradients",
    "current_graph",
    "deferred",
    "schedule_update",
    "unconverted",
    "update",
    "update_lazily",
]
