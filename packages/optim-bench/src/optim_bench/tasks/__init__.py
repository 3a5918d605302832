"""Problems to train on: the interface, and the built-in ones. This loads no framework."""

from optim_bench.tasks._find import ENTRY_POINT_GROUP, enter_task, find_task, is_object
from optim_bench.tasks._frameworks import MOST_PER_CALL, JaxTask, TorchTask
from optim_bench.tasks._task import SPLITS, Entry, Task, TaskError, call_with, is_finite, ran_out

__all__ = [
    "ENTRY_POINT_GROUP",
    "MOST_PER_CALL",
    "SPLITS",
    "Entry",
    "JaxTask",
    "Task",
    "TaskError",
    "TorchTask",
    "call_with",
    "enter_task",
    "find_task",
    "is_finite",
    "is_object",
    "ran_out",
]
