"""How a model learns: data, optimiser, Lightning modules, evaluation, decoding."""
