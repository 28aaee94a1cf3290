"""The optimizers, a file each, and what they share.

`base` has the order of an update, `update` runs the rules. Uses the rules, the kernels,
the replicas and the saving of state.
"""

from svag_tf.optimizers.msgd import MSGD
from svag_tf.optimizers.mssd import MSSD
from svag_tf.optimizers.msvag import MSVAG
from svag_tf.optimizers.msvas import MSVAS
from svag_tf.optimizers.ssd import SSD
from svag_tf.optimizers.svag import SVAG
from svag_tf.optimizers.svas import SVAS

__all__ = ["MSGD", "MSSD", "MSVAG", "MSVAS", "SSD", "SVAG", "SVAS"]
