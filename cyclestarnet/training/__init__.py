"""From two sets of spectra to a model: losses, trainer, data, configuration, assembly and evaluation."""
