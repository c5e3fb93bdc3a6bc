"""How many masks a pattern admits, exactly where that can be counted; and how far two masks are apart."""

from nmflow.diversity.counting import asymptotic_log_count, count_masks
from nmflow.diversity.distance import Divergence, divergence
from nmflow.diversity.tensors import Diversity, mask_diversity

__all__ = ["Divergence", "Diversity", "asymptotic_log_count", "count_masks", "divergence", "mask_diversity"]
