"""Studies: a protocol as a file, run on a data set, ending in a verdict and a model."""
