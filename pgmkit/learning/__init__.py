"""What is trained anywhere goes through one loop: steps, clock, checkpoints, logs and ranks."""

from pgmkit.learning.batches import Batch
from pgmkit.learning.clock import Clock
from pgmkit.learning.folder import keeping
from pgmkit.learning.loop import Exports, Measures, Task, learn
from pgmkit.learning.minimise import minimise

__all__ = ["Batch", "Clock", "Exports", "Measures", "Task", "keeping", "learn", "minimise"]
