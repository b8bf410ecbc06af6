"""Energy and CO2 by codecarbon, without network access, console output or files.

codecarbon measures what the machine allows (RAPL counters of the CPU, NVML of NVIDIA GPUs) and estimates the rest: the
CPU's power from its load and TDP, the RAM's power from its size. All figures are for the whole machine.
"""

import importlib.util
import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from toolkit.distribution import pip_install_extra

INSTALL = f"codecarbon is not installed ({pip_install_extra('compute')})"
"""Reason for missing figures if codecarbon is not installed."""

METHODS: Mapping[str, str] = {
    "intel_rapl": "measured (RAPL)",
    "windows_emi": "measured (Windows EMI)",
    "intel_power_gadget": "measured (Power Gadget)",
    "cpu_load": "estimated (load and TDP)",
    "constant": "estimated (TDP constant)",
}
"""codecarbon's mode for a CPU -> how its figures were obtained."""

_NEVER = 7 * 86_400.0
"""Seconds between codecarbon's own measurements. ``read`` makes them here."""


@dataclass(frozen=True, slots=True)
class Reading:
    """Energy in kWh, CO2 in kg, and the seconds that they cover. None: unknown."""

    energy: float | None = None
    seconds: float = 0.0
    co2: float | None = None


def is_installed() -> bool:
    """Return whether codecarbon is installed, without importing it."""
    return importlib.util.find_spec("codecarbon") is not None


class EnergyMeter:
    """A codecarbon tracker, which starts at once.

    Args:
        country: ISO 3166 code of three letters. Its electricity mix determines the CO2. None: no CO2.
    """

    def __init__(self, country: str | None) -> None:
        logging.getLogger("codecarbon").disabled = True  # It logs every measurement to standard error.
        from codecarbon import OfflineEmissionsTracker

        self._totals = _totals()
        self._country = country
        self._lock = threading.Lock()
        self._tracker: Any = OfflineEmissionsTracker(
            country_iso_code=country,
            force_carbon_intensity_g_co2e_kwh=None if country else 0.0,  # None would select the world average.
            output_methods=[],
            output_handlers=[self._totals],
            # A configuration file or variable of codecarbon could set a network address.
            emissions_endpoint=None,
            electricitymaps_api_token="",
            cloud_provider=None,
            cloud_region=None,
            country_2letter_iso_code=None,
            region=None,
            allow_multiple_runs=True,  # False would replace the handlers of SIGINT and SIGTERM.
            measure_power_secs=_NEVER,
            api_call_interval=-1,
            tracking_mode="machine",
            pue=1.0,
            log_level="critical",
        )
        self._begun = time.monotonic()
        self._tracker.start()

    def read(self) -> Reading:
        """Measure, and return the totals so far."""
        with self._lock:
            self._tracker.flush()
            last = self._totals.last
        if last is None:  # codecarbon does not report its own errors.
            return Reading()
        known = self._country is not None and last.country_name is not None
        seconds = time.monotonic() - self._begun
        return Reading(float(last.energy_consumed), seconds, float(last.emissions) if known else None)

    def describe(self) -> dict[str, str | None]:
        """Return how each part was obtained, the name of the country, and the version of codecarbon."""
        last, how = self._totals.last, {"GPU": "measured (NVML)", "RAM": "estimated (size)"}
        parts = {type(part).__name__: part for part in getattr(self._tracker, "_hardware", [])}
        cpu = getattr(parts.get("CPU"), "_mode", None)
        return {
            "cpu": METHODS.get(str(cpu), f"codecarbon: {cpu or 'no figure'}"),
            "gpu": how["GPU"] if "GPU" in parts else None,
            "memory": how["RAM"] if "RAM" in parts else None,
            "country": last.country_name if last and self._country else None,
            "codecarbon": last.codecarbon_version if last else None,
        }

    def stop(self) -> None:
        """Stop the threads of codecarbon."""
        with self._lock:
            self._tracker.stop()


def _totals() -> Any:
    """Return the handler to which codecarbon passes its totals at each ``flush``."""
    from codecarbon.output_methods.base_output import BaseOutput

    class Totals(BaseOutput):  # type: ignore[misc]
        last: Any = None

        def out(self, total: Any, delta: Any) -> None:
            self.last = total

    return Totals()
