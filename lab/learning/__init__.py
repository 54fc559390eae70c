"""Training of a model: data, optimiser, Lightning modules, evaluation."""
