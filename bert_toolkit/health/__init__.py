"""Training health: from statistics of sampled steps to findings that name fault, place, cause and remedy."""
