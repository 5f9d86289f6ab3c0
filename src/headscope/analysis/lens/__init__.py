"""The logit lens: predictions, loss, entropy and calibration at every state of the residual stream."""
