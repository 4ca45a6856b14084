"""Time as a parameter: what every part that needs the time is given.

``Clock`` is any callable that returns monotonic seconds. The machines take ``now`` instead; only the
parts that do I/O hold a clock, read it once per loop turn and pass the value down.
"""

from __future__ import annotations

import time
from collections.abc import Callable

Clock = Callable[[], float]

monotonic: Clock = time.monotonic
