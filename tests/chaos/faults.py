"""All faults: name -> function of a `Bench` that does the harm and says what came of it."""

from tests.chaos.damage import DAMAGE_FAULTS
from tests.chaos.disks import DISK_FAULTS
from tests.chaos.mishaps import MISHAPS

FAULTS = DISK_FAULTS | DAMAGE_FAULTS | MISHAPS
