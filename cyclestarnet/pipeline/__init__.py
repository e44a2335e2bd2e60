"""From spectra to results: options, fits, samples, errors and flags, and many stars."""
