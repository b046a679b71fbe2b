"""Functions, right and wrong, that `minprefix.gradcheck` is tried on."""
