"""A local Gemini: the same wire protocol, quotas, faults and token counts, for the demo and the tests."""

from potstill.teacher.emulator.server import Running, running
from potstill.teacher.emulator.settings import EmulatorSettings

__all__ = ["EmulatorSettings", "Running", "running"]
