"""An importance matrix as an artifact of its own: what llama-imatrix makes, from the same calibration as all else of a job."""
