"""The optimizers, a file each."""

from svag_tf.optimizers.msgd import MSGD
from svag_tf.optimizers.mssd import MSSD
from svag_tf.optimizers.msvag import MSVAG
from svag_tf.optimizers.msvas import MSVAS
from svag_tf.optimizers.ssd import SSD
from svag_tf.optimizers.svag import SVAG
from svag_tf.optimizers.svas import SVAS

__all__ = ["MSGD", "MSSD", "MSVAG", "MSVAS", "SSD", "SVAG", "SVAS"]
