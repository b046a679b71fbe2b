"""The bugs of the zoo, in the order in which their numbers arise: the ops as in the contract, then
the model, decoding, the rivals' methods and training."""

from minprefix.conformance.bug import Bug
from minprefix.conformance.bugs import attention, loss, methods, model, rows, training

_ALL = (*rows.BUGS, *attention.BUGS, *loss.BUGS, *model.BUGS, *methods.BUGS, *training.BUGS)

BUGS: dict[str, Bug] = {bug.name: bug for bug in _ALL}
assert len(BUGS) == len(_ALL), "two bugs of one name"
