"""Calibration of strength: by what it costs, or by what it gains.

==================  ==============================================================================
`calibrate`         the strength whose KL per response token meets a budget (`.budget`)
`calibrate_rate`    the strength at which responses follow the instruction (`.rates`)
`calibrated`        the steering that a calibration saved with a vector stands for (`.saved`)
==================  ==============================================================================
"""

from steerlens.behaviour.calibration.budget import Calibration, calibrate
from steerlens.behaviour.calibration.rates import RateCalibration, calibrate_rate
from steerlens.behaviour.calibration.saved import calibrated

__all__ = ["Calibration", "RateCalibration", "calibrate", "calibrate_rate", "calibrated"]
