"""A local Gemini: the same wire protocol, quotas, faults and token counts, for the demo and the tests."""

from potstill.teacher.emulator.serving import Running, running
from potstill.teacher.emulator.settings import EmulatorSettings

__all__ = ["EmulatorSettings", "Running", "running"]
