"""A library of small example adapters: data generators, training and packaging."""
